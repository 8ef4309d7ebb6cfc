"""What a user can write for each stage kind. Imports neither torch nor Ray.

A field that names another stage is marked with :class:`Reads`; those marks are the stage graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rayddl.config import Config
from rayddl.data.config import augmentation_names
from rayddl.nets.config import NetConfig

DSA = "color_crop_cutout_flip_scale_rotate"
CONVEX_EPOCHS = 50


@dataclass(frozen=True)
class Reads:
    """Marks a field as the name of a stage whose output is read, and the kinds that will do.

    The field is a name, ``None`` (nothing read), or a tuple of names. ``"*"`` in a tuple stands for
    every other stage that does not itself read this one.
    """

    kinds: tuple[str, ...]


class Resources(Config):
    """What one worker of the stage asks Ray for. Never part of a fingerprint."""

    num_cpus: float | None = Field(default=None, gt=0)
    num_gpus: float | None = Field(default=None, ge=0)
    memory: int | None = Field(default=None, gt=0)
    """Bytes of heap."""
    at_once: int | None = Field(default=None, ge=1)
    """Units of work in flight; default: as many as the cluster's resources hold."""


class StageConfig(Config):
    """The keys that every stage has."""

    kind: str
    resources: Resources = Resources()

    def check(self, reads: Mapping[str, StageConfig]) -> list[str]:
        """What is wrong between this stage and the ones it reads, by the fields that name them."""
        del reads
        return []

    def resolved(self, readers: Sequence[StageConfig]) -> StageConfig:
        """The config with defaults filled in that depend on the stages that read it."""
        del readers
        return self


Precision = Literal["fp32", "bf16", "tf32"]


class NetStageConfig(StageConfig):
    """The keys of stages that train networks."""

    augment: str = DSA
    """Augmentations joined by ``_``, or ``none``; one of them is drawn for every batch."""
    precision: Precision = "fp32"
    """What convolutions are computed in. Parameters, sums and updates are float32 in each."""
    compile: bool | None = None
    """Compile the steps; default: where the work is long enough to pay for it."""

    @field_validator("augment")
    @classmethod
    def _known_augmentation(cls, value: str) -> str:
        augmentation_names(value)
        return value


class ExpertsConfig(NetStageConfig):
    """Trajectories of networks trained on the real images (MTT section 3.1)."""

    kind: Literal["experts"]
    net: NetConfig = NetConfig()
    replay: str | None = None
    """A ``replay_buffer_N.pt`` of the published code, or a folder of them, to import instead of training.
    They must come from the definition's source in its pixel space; settings of training do not apply."""
    count: int = Field(default=100, ge=1)
    """Experts to train; of imported ones the largest number to take."""
    epochs: int | None = Field(default=None, ge=1)
    """E: epochs of each expert. Default: 50 for ``keep: convex``, whose end point is the last epoch;
    for ``keep: all`` the ``max_start_epoch + expert_epochs`` of the stages that read it."""
    keep: Literal["convex", "all"] = "convex"
    """``convex``: waypoints and the step table (MCT). ``all``: a snapshot per epoch (MTT)."""
    waypoints: tuple[int, ...] | None = None
    """Epochs of the waypoints when ``keep: convex``; default ``[0, epochs]``."""
    lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    batch: int = Field(default=256, ge=1)
    disk: Literal["float32", "bfloat16"] = "float32"
    """The type parameters are stored in."""

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

    def resolved(self, readers: Sequence[StageConfig]) -> ExpertsConfig:
        """With ``epochs`` filled in. How long imported experts are is seen when they are read."""
        if self.epochs is not None or self.replay is not None:
            return self
        windows = [
            math.ceil(r.max_start_epoch + r.expert_epochs) for r in readers if isinstance(r, MatchConfig)
        ]
        epochs = max(windows) if windows and self.keep == "all" else CONVEX_EPOCHS
        return self.model_copy(update={"epochs": epochs})


class MatchConfig(NetStageConfig):
    """Distillation by matching training trajectories: MTT and MCT."""

    kind: Literal["match"]
    experts: Annotated[str, Reads(("experts",))]
    trajectory: Literal["convex", "snapshots"] = "convex"
    """``convex``: MCT. ``snapshots``: MTT."""
    ipc: int = Field(ge=1)
    """Images per class."""
    iterations: int = Field(default=5000, ge=1)
    """Outer iterations."""
    syn_steps: int = Field(ge=1)
    """N: student steps on the synthetic set in one iteration."""
    expert_epochs: float = Field(gt=0)
    """M: epochs of the expert that the student is to cover. Whole for ``snapshots``."""
    max_start_epoch: float = Field(gt=0)
    """T+: the latest epoch a window may start at (exclusive for ``snapshots``)."""
    batch_syn: int | None = Field(default=None, ge=1)
    """Synthetic images in one student step; default: all of them."""
    lr_image: float = Field(default=1000.0, gt=0)
    lr_lr: float = Field(default=1e-5, ge=0)
    """Rate at which the student's learning rate is learned; 0 keeps it."""
    lr_student: float = Field(default=0.01, gt=0)
    """The student's learning rate at the start."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Momentum of the images' and the learning rate's updates."""
    start_from: Literal["real", "noise"] = "real"
    short_class: Literal["error", "cap", "repeat"] = "error"
    """What to do with a class of fewer than ``ipc`` real images: refuse it, make fewer images of it, or
    start from some of them more than once."""
    gradient: Literal["exact", "truncated", "unrolled"] = "exact"
    """``exact``: constant memory. ``truncated``: TESLA's. ``unrolled``: autograd, as MTT publishes it."""
    labels: Literal["hard", "expert", "learned"] = "hard"
    """``hard``: MTT and MCT. ``expert``: TESLA's soft labels. ``learned``: DATM's."""
    lr_label: float = Field(default=1.0, gt=0)
    """Rate of the label logits when ``labels: learned``."""
    continuous: bool = True
    """Real start epochs when ``trajectory: convex`` (MCT's continuous sampling); whole ones if false."""
    min_start_epoch: float = Field(default=0.0, ge=0)
    """The earliest epoch a window may start at (DATM's T-)."""
    first_start_epoch: float | None = Field(default=None, gt=0)
    """Where the upper end of the start range begins when it grows (DATM's T); default: it is fixed."""
    grow_iterations: int = Field(default=0, ge=0)
    """Iterations over which the upper end grows to ``max_start_epoch``."""
    start_noise: float = Field(default=0.0, ge=0)
    """Relative noise on the start parameters."""
    image_optimizer: Literal["sgd", "adam"] = "sgd"
    image_decay: float = Field(default=0.0, ge=0)
    """Weight decay on the images."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the images' gradient; default: unbounded."""
    lr_space: Literal["linear", "log"] = "linear"
    """What the student's learning rate is learned as; ``linear`` is published."""
    workers: int = Field(default=1, ge=1)
    """Windows averaged in one update, each computed by a worker of its own."""
    retries: int = Field(default=3, ge=0)
    """Times a run going astray is taken back, with a tenth of the rates, before it counts as diverged."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Iterations between short evaluations beside the matching; default: none."""
    evaluate_epochs: int = Field(default=300, ge=1)
    """Epochs of those evaluations' students (hard-label protocol)."""
    evaluate_seeds: int = Field(default=1, ge=1)
    """Students in each of them."""

    @model_validator(mode="after")
    def _window_makes_sense(self) -> MatchConfig:
        whole = (self.expert_epochs, self.max_start_epoch, self.min_start_epoch)
        if self.trajectory == "snapshots" and any(v != int(v) for v in whole):
            raise ValueError("expert_epochs and start epochs must be whole for trajectory: snapshots")
        if self.min_start_epoch >= self.max_start_epoch:
            raise ValueError(
                f"min_start_epoch ({self.min_start_epoch:g}) must lie below max_start_epoch ({self.max_start_epoch:g})"
            )
        return self

    def check(self, reads: Mapping[str, StageConfig]) -> list[str]:
        """The experts must be long enough and kept in the form that is matched."""
        experts = reads.get("experts")
        if not isinstance(experts, ExpertsConfig):
            return []
        problems = []
        needed, epochs = math.ceil(self.max_start_epoch + self.expert_epochs), experts.epochs
        if epochs is not None and epochs < needed:
            problems.append(
                f"windows reach epoch {needed} (max_start_epoch {self.max_start_epoch:g} + expert_epochs "
                f"{self.expert_epochs:g}), but the experts of {self.experts!r} have {epochs} epochs; "
                f"train longer ones with --set {self.experts}.epochs={needed}"
            )
        if self.trajectory == "snapshots" and experts.keep != "all":
            problems.append(
                f"trajectory: snapshots reads every epoch, but {self.experts!r} keeps only waypoints; "
                f"set --set {self.experts}.keep=all, or trajectory: convex"
            )
        return problems


class EvaluateConfig(NetStageConfig):
    """Students trained on the distilled set, beside random real images (hard-label protocol)."""

    kind: Literal["evaluate"]
    set: Annotated[str, Reads(("match",))]
    nets: tuple[NetConfig, ...] | None = Field(default=None, min_length=1)
    """Networks to train; default: the one that the set was made with."""
    seeds: int = Field(default=5, ge=1)
    """Students per net and set."""
    epochs: int = Field(default=1000, ge=1)
    lr: float | None = Field(default=None, gt=0)
    """Learning rate; default: the set's own for the set, the same for random images."""
    batch: int = Field(default=256, ge=1)
    random: bool = True
    """Also train on as many random real images, a fresh draw per seed."""
    whole: bool = False
    """Also train on the whole train split."""
    whole_epochs: int = Field(default=50, ge=1)


class ReportConfig(StageConfig):
    """One self-contained page about the run."""

    kind: Literal["report"]
    of: Annotated[tuple[str, ...], Reads(("experts", "match", "evaluate"))] = ("*",)
    """The stages to show; ``"*"`` is every other stage."""


def without_resources(config: StageConfig) -> dict[str, Any]:
    """The settings that decide the result, as JSON values: what a fingerprint hashes.

    Defaults are left out, so that a new setting whose default changes nothing moves no folder. Whoever
    changes what a default means raises the kind's version.
    """
    return config.model_dump(mode="json", exclude={"resources"}, exclude_defaults=True)
