"""Settings of ``kind: teacher``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rayddl.config import OnDisk
from rayddl.data.config import SourceConfig
from rayddl.methods.training.settings import TeacherSettings
from rayddl.nets.config import NetConfig
from rayddl.stages.revisions import side_of, tested_on_zoomed
from rayddl.stages.runtime import sizes
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.sizes import Ask
from rayddl.stages.settings import StageConfig, TeamStageConfig, Tunable, with_fitting_batch

NAMED = ("DEFAULT", "IMAGENET1K_V1", "IMAGENET1K_V2")
"""Names of torchvision's weights."""
AS_SOURCE = "source"


class TeacherConfig(TeacherSettings, TeamStageConfig):
    """An observer: a network trained on the real images, or a pretrained one (RDED)."""

    produces: ClassVar[str] = "teacher"
    tunable: ClassVar[Tunable | None] = Tunable({"accuracy": "max"}, "rayddl.stages.teacher.trials:trials")

    kind: Literal["teacher"]
    net: NetConfig = NetConfig()
    """The observer's network."""
    weights: Annotated[str | None, OnDisk(NAMED)] = Field(default=None, min_length=1)
    """``DEFAULT``: torchvision's best weights of ``net``; ``IMAGENET1K_V1`` those of its first release, which
    RDED uses, ``IMAGENET1K_V2`` the second. Otherwise the path or URI of a state dict, ``.pt``,
    ``.pth`` or ``.safetensors``; settings of training do not apply. Default: train here."""
    download: bool = False
    """Fetch torchvision's weights if torch hub's cache lacks them."""
    classes: Annotated[tuple[str, ...] | str | None, OnDisk((AS_SOURCE,))] = None
    """The classes of the outputs of ``weights``, in order: a list of names, the path of a text file with a
    line per output (several names with tabs between, any of which may match) or of a JSON file; ``source``
    for the source's classes in their order. Default: torchvision's names for its own weights."""
    size: int | None = Field(default=None, ge=4)
    """Side in pixels of a pretrained network's input. Default: torchvision's, else the source's."""
    mean: tuple[float, ...] | None = None
    """Per-channel mean, of pixels in 0..1, with which a pretrained network was trained. Default:
    torchvision's, else the source's."""
    std: tuple[float, ...] | None = None
    """Per-channel standard deviation, as for ``mean``."""
    check_sample: int = Field(default=10_000, ge=1)
    """Held-out images on which the accuracy is measured, drawn at random if there are more."""
    allow_weak: bool = False
    """Accept a teacher that is hardly better than guessing."""

    def revisions(self, source: SourceConfig) -> Sequence[str]:
        """The accuracy may be measured on zoomed images."""
        side = self.size or (None if self.weights in NAMED else side_of(source))
        changes = tested_on_zoomed(self.zoom, source, side)
        return (*super().revisions(source), *changes)

    def fitted(self, images: int, stages: Mapping[str, StageConfig]) -> TeacherConfig:
        """With a smaller batch for few images, where a network is trained and ``batch`` is not set. Unless it is set,
        the learning rate is as much smaller as the batch (Goyal et al. 2017).
        """
        del stages
        if self.weights is not None:
            return self
        fitting = with_fitting_batch(self, images)
        if fitting is self or "lr" in self.model_fields_set:
            return fitting
        return fitting.model_copy(update={"lr": float(f"{self.lr * fitting.batch / self.batch:.2g}")})

    def network(self, stages: Mapping[str, StageConfig]) -> NetConfig:
        """The observer's network."""
        del stages
        return self.net

    def asks(self, have: Capacity) -> Sequence[Ask]:
        """One worker with all resources of a node, or a team."""
        if self.workers > 1:
            return (self.team(have),)
        return (Ask("resources", sizes.alone(self.resources, have), units=1),)

    @model_validator(mode="after")
    def _fits_together(self) -> TeacherConfig:
        if self.weights is None:
            given = [k for k in ("download", "classes", "size", "mean", "std") if getattr(self, k)]
            if given:
                raise ValueError(
                    f"{' and '.join(given)} belong to weights; a teacher trained here needs none"
                )
        elif self.workers > 1:
            raise ValueError("workers train together; weights are trained already")
        elif self.weights not in NAMED:
            if self.download:
                raise ValueError("download belongs to torchvision's weights")
            if self.classes is None:
                raise ValueError(
                    "weights from a file need classes: what the outputs stand for, in order (a list, a file, "
                    "or `source` for the source's own order)"
                )
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both or neither")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be above 0 in every channel")
        return self
