"""Settings of ``kind: experts``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rayddl.config import OnDisk
from rayddl.data.config import SourceConfig
from rayddl.methods.trajectories.settings import BUFFER, ExpertSettings
from rayddl.nets.config import NetConfig
from rayddl.stages.settings import FileRead, NetStageConfig, Reads, StageConfig, with_fitting_batch

CONVEX_EPOCHS = 50
ADAPTIVE = "flat experts by adaptive steps uphill"


class ExpertsConfig(ExpertSettings, NetStageConfig):
    """Trajectories of networks trained on the real images (MTT section 3.1)."""

    produces: ClassVar[str] = "experts"
    unit_count: ClassVar[str] = "count"

    kind: Literal["experts"]
    net: NetConfig = NetConfig()
    """The network that is trained."""
    replay: Annotated[str | None, OnDisk()] = None
    """A ``replay_buffer_N.pt`` of MTT's code, or a folder of them, to import instead of training. Its experts
    must be of the definition's source in its pixel space; settings of training do not apply."""
    scores: Annotated[str | None, Reads(("teacher",), added=True)] = None
    """``curriculum``: the teacher by whose EL2N scores of the training images these are easy or hard."""
    count: int = Field(default=100, ge=1)
    """Experts to train; with ``replay`` the largest number to import."""
    keep: Literal["convex", "all"] = "convex"
    """``convex``: waypoints and the table of step lengths (MCT). ``all``: a snapshot per epoch (MTT)."""
    waypoints: tuple[int, ...] | None = None
    """``keep: convex``: epochs of the waypoints. Default: ``[0, epochs]``."""
    disk: Literal["float32", "bfloat16"] = "float32"
    """The number format in which parameters are stored."""
    cuda_graphs: bool | None = None
    """On a GPU, replay compiled steps as CUDA graphs, which saves most of the launch time. Default: yes, unless
    ``experts_per_task`` is above 1."""
    experts_per_task: int | None = Field(default=None, ge=1)
    """Experts that one task trains in turns, each on its own CUDA stream. Default: on a GPU as many as memory
    allows and measured throughput grows with, elsewhere 1. Changes no result and no fingerprint."""

    @model_validator(mode="after")
    def _graphs_alone(self) -> ExpertsConfig:
        if self.cuda_graphs and (self.experts_per_task or 1) > 1:
            raise ValueError(
                "cuda_graphs replay into one expert's buffers; set experts_per_task to 1 with them"
            )
        if self.cuda_graphs and self.compile is False:
            raise ValueError("cuda_graphs replay compiled steps; leave compile out or set it to true")
        return self

    @model_validator(mode="after")
    def _waypoints_fit(self) -> ExpertsConfig:
        points = self.waypoints
        if points is None:
            return self
        if self.keep != "convex":
            raise ValueError("waypoints belong to keep: convex")
        if len(points) < 2 or list(points) != sorted(set(points)):
            raise ValueError("waypoints must be at least two rising epochs")
        if points[0] != 0 or points[-1] != (self.epochs or CONVEX_EPOCHS):
            raise ValueError(f"waypoints must go from 0 to epochs ({self.epochs or CONVEX_EPOCHS})")
        return self

    @model_validator(mode="after")
    def _curriculum_with_scores(self) -> ExpertsConfig:
        if (self.curriculum is None) != (self.scores is None):
            raise ValueError("curriculum and scores belong together: give both or neither")
        return self

    def revisions(self, source: SourceConfig) -> Sequence[str]:
        """Also that of flat experts."""
        return (*super().revisions(source), *((ADAPTIVE,) if self.flat_rho else ()))

    @property
    def read_by_workers(self) -> Mapping[str, str]:
        """The buffers that are imported."""
        return {} if self.replay is None else {"replay": self.replay}

    @property
    def most_units(self) -> int:
        """The tasks that train the experts."""
        return -(-self.count // (self.experts_per_task or 1))

    def files_at(self, where: str) -> Iterator[FileRead]:
        """The file, or the files of experts in the folder."""
        named = super().files_at(where)
        yield from (each for each in named if BUFFER.fullmatch(each.name) or where.endswith(each.name))

    def fitted(self, images: int, stages: Mapping[str, StageConfig]) -> ExpertsConfig:
        """With a smaller batch for few images, where experts are trained and ``batch`` is not set."""
        del stages
        return self if self.replay is not None else with_fitting_batch(self, images)

    def network(self, stages: Mapping[str, StageConfig]) -> NetConfig:
        """The experts' network."""
        del stages
        return self.net

    def resolved(self, readers: Sequence[StageConfig]) -> ExpertsConfig:
        """The settings with ``epochs`` filled in. Imported experts' length is known only after import."""
        if self.epochs is not None or self.replay is not None:
            return self
        windows = [r.last_epoch for r in readers if r.last_epoch is not None]
        epochs = max(windows) if windows and self.keep == "all" else CONVEX_EPOCHS
        return self.model_copy(update={"epochs": epochs})
