"""Settings of ``kind: coreset``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rayddl import plugins
from rayddl.config import Registered
from rayddl.nets.config import NetConfig
from rayddl.stages.runtime import sizes
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.sizes import Ask, Share
from rayddl.stages.settings import Reads, StageConfig

METHODS = {
    "random": "random",
    "herding": "herding",
    "kcenter": "k-center",
    "balanced": "balanced",
    "easiest": "easiest",
    "medium": "medium",
}
"""rayddl's own selection methods, with their titles on pages."""
SCORED = ("easiest", "medium")
"""Methods that select by a teacher's score of the image's class."""
BATCH_NORM = (
    "the experts of {!r} have batch norm, and trajectories carry no running statistics; take features from a teacher, "
    "or leave features out"
)
plugins.shipped("selections", METHODS)


class CoresetConfig(StageConfig):
    """Real images chosen class by class: the baselines with which distilled sets are compared."""

    produces: ClassVar[str] = "set"

    kind: Literal["coreset"]
    method: Annotated[str, Registered("selections")]
    """``random``; ``herding``: the mean of the chosen images follows the class's mean; ``kcenter``: each
    image is the farthest from those before it, beginning with the one nearest to the mean; ``balanced``: half at
    the centres and half at the margins of the class's patterns, which are clusters of features (after BPS);
    ``easiest``: those whose class a teacher gives the highest probability (as RDED, without crops); ``medium``:
    those in the middle of that order. Plugins add others."""
    ipc: int = Field(ge=1)
    """Images per class."""
    features: Annotated[str | None, Reads(("experts", "teacher"))] = None
    """The features by which images are compared: the last layer's input in the first expert, or in a teacher.
    Default: their pixels in the pixel space. With a teacher, files are read as needed; otherwise the train split is
    decoded, in shards if it is large. No process holds a split, or more than some 256 MiB of features: if a class has
    more, they are in a file in the temporary folder of the node (``TMPDIR``), and ``balanced`` needs another file of
    twice the size."""
    mipc: int | None = Field(default=None, ge=1)
    """Images per class to choose from, drawn at random. Default: all."""
    short_class: Literal["error", "cap", "repeat"] = "error"
    """A class of fewer than ``ipc`` readable images: refuse it, take fewer of it, or take some of them more
    than once."""

    def asks(self, have: Capacity) -> Sequence[Ask]:
        """One worker."""
        return (Ask("resources", self.share(have, sizes.MANY), units=self.resources.at_once),)

    def share(self, have: Capacity, units: int) -> Share:
        """The resources of a worker for ``units`` groups of classes; a GPU only if a network computes features."""
        networked = self.features is not None and self.method != "random"
        return sizes.spread(self.resources, have, units=units, gpu=networked)

    def network(self, stages: Mapping[str, StageConfig]) -> NetConfig | None:
        """The network of the features."""
        seen = stages.get(self.features) if self.features else None
        return seen.network(stages) if seen else None

    @property
    def reads_source(self) -> bool:
        """Workers read files as needed where a teacher's features are compared."""
        return self.features is not None

    @property
    def images_needed(self) -> int:
        """``ipc``."""
        return self.ipc if self.short_class == "error" else 0

    def check(self, reads: Mapping[str, StageConfig]) -> list[str]:
        """Problems with ``features``: trajectories must hold all state of the network."""
        problems = []
        if self.mipc is not None and self.mipc < self.ipc and self.short_class == "error":
            problems.append(
                f"{self.ipc} images of each class cannot be chosen from {self.mipc}; raise mipc, or lower ipc"
            )
        source = reads.get("features")
        if self.method in SCORED and (source is None or source.produces != "teacher"):
            problems.append(
                f"method: {self.method} selects by a teacher's scores; set features to the name of a teacher stage"
            )
        net = source.network({}) if source and source.produces == "experts" else None
        if net is not None and net.norm == "batch":
            problems.append(BATCH_NORM.format(self.features))
        return problems
