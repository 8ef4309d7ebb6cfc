"""Settings of ``kind: match``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rayddl.data.config import SourceConfig
from rayddl.methods.matching.settings import Settings
from rayddl.nets.config import NetConfig
from rayddl.stages.experts.settings import CONVEX_EPOCHS, ExpertsConfig
from rayddl.stages.match import fitting
from rayddl.stages.runtime import sizes
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.sizes import Ask, Share
from rayddl.stages.settings import NetStageConfig, Reads, StageConfig, Tunable

LAST_EPOCH = "labels and correct images by experts of the last epoch"
SHORT_EVALUATIONS = "short evaluations"
"""The request for short evaluations on CPUs."""


class MatchConfig(Settings, NetStageConfig):
    """Distillation by matching training trajectories: MTT and MCT."""

    produces: ClassVar[str] = "set"
    once_required: ClassVar[frozenset[str]] = frozenset({"expert_epochs", "max_start_epoch", "syn_steps"})
    tunable: ClassVar[Tunable | None] = Tunable(
        {"accuracy": "max", "loss": "min"},
        "rayddl.stages.match.trials:trials",
        length="iterations",
        fixed=("evaluate_every", "evaluate_epochs", "evaluate_seeds"),
    )

    kind: Literal["match"]
    experts: Annotated[str, Reads(("experts",))]
    """The stage whose experts are matched."""
    ipc: int = Field(ge=1)
    """Images per class."""
    iterations: int = Field(default=5000, ge=1)
    """Updates of the synthetic images."""
    start_from: Literal["real", "noise", "correct"] = "real"
    """Initial images: random real ones of each class, Gaussian noise, or real ones that an expert classifies
    ``correct``-ly at its last epoch (DATM). Then learned labels start as the mean logits, for each
    image, of the experts that classify it correctly."""
    start_set: Annotated[str | None, Reads(("set",))] = None
    """A stage whose set is the initial images, with ``ipc`` of each class. Another ``match`` stage is continued with
    its images (averaged ones with ``image_ema``), learning rate and learned labels; momentum begins anew."""
    short_class: Literal["error", "cap", "repeat"] = "error"
    """A class of fewer than ``ipc`` real images: refuse it, make fewer images of it, or start from some of
    them more than once."""
    waypoints: tuple[int, ...] | None = None
    """``trajectory: convex`` with experts of ``keep: all``: epochs of the waypoints, so that several choices
    can be compared on the same experts. Default: 0 and the experts' last epoch."""
    cuda_graphs: bool | None = None
    """On a GPU, replay the student's compiled steps as CUDA graphs, which saves most of the launch time.
    Default: yes."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Iterations between short evaluations that run during the matching. Default: none. Without a GPU they take a CPU
    from it; where there are two, ``resources: {num_cpus: 2}`` makes it about twice as fast, and it waits for them."""
    evaluate_epochs: int = Field(default=300, ge=1)
    """Epochs of the students of short evaluations (hard labels)."""
    evaluate_seeds: int = Field(default=1, ge=1)
    """Students of one short evaluation."""

    @model_validator(mode="after")
    def _window_makes_sense(self) -> MatchConfig:
        whole = (self.expert_epochs, self.max_start_epoch, self.min_start_epoch)
        if self.trajectory == "snapshots" and any(v != int(v) for v in whole):
            raise ValueError("expert_epochs and start epochs must be whole for trajectory: snapshots")
        points = self.waypoints
        if points is not None:
            if self.trajectory != "convex":
                raise ValueError("waypoints belong to trajectory: convex")
            if len(points) < 2 or points[0] != 0 or list(points) != sorted(set(points)):
                raise ValueError("waypoints must be at least two rising epochs, the first of them 0")
        if self.start_from == "correct" and (self.start_set is not None or self.short_class != "error"):
            raise ValueError("start_from: correct has no use for start_set and short_class; leave them out")
        if self.cuda_graphs and self.compile is False:
            raise ValueError("cuda_graphs replay compiled steps; leave compile out or set it to true")
        if self.skip_layers and self.depth_ratio:
            raise ValueError(
                "skip_layers and depth_ratio both leave parameters out; leave one of the two out"
            )
        if (self.first_start_epoch is None) != (self.grow_iterations == 0):
            raise ValueError(
                "first_start_epoch and grow_iterations make the range of start epochs grow together; "
                "set both or neither"
            )
        first = self.first_start_epoch
        if first is not None and not self.min_start_epoch < first <= self.max_start_epoch:
            raise ValueError(
                f"first_start_epoch ({first:g}) must lie above min_start_epoch ({self.min_start_epoch:g}), and not "
                f"above max_start_epoch ({self.max_start_epoch:g})"
            )
        if self.min_start_epoch >= self.max_start_epoch:
            raise ValueError(
                f"min_start_epoch ({self.min_start_epoch:g}) must lie below max_start_epoch ({self.max_start_epoch:g})"
            )
        return self

    def revisions(self, source: SourceConfig) -> Sequence[str]:
        """Also that of labels and images which experts give."""
        given = self.labels == "learned" or self.start_from == "correct"
        return (*super().revisions(source), *((LAST_EPOCH,) if given else ()))

    def asks(self, have: Capacity) -> Sequence[Ask]:
        """The workers of the matching loop, which must run at the same time. Without GPUs, short evaluations take
        further CPUs if there are any.
        """
        loop = Ask("resources", self.share(have), together=True)
        if self.evaluate_every is None or loop.share.gpus:
            return (loop,)
        return (loop, Ask(SHORT_EVALUATIONS, sizes.STUDENT, units=self.short_at_once, least=0))

    @property
    def short_at_once(self) -> int:
        """Students of short evaluations that may run at the same time: those of two, as one may begin before the
        last one's have ended.
        """
        return 2 * self.evaluate_seeds

    def share(self, have: Capacity) -> Share:
        """The resources of each worker on the cluster ``have``, with a part kept for short evaluations."""
        beside = self.evaluate_every is not None
        return sizes.together(self.resources, have, workers=self.workers, beside=beside)

    @property
    def images_needed(self) -> int:
        """``ipc``, unless other images are the start."""
        real = self.start_from == "real" and self.start_set is None
        return self.ipc if real and self.short_class == "error" else 0

    def network(self, stages: Mapping[str, StageConfig]) -> NetConfig | None:
        """The experts' network."""
        experts = stages.get(self.experts)
        return experts.network(stages) if experts else None

    @property
    def last_epoch(self) -> int:
        """The last epoch of the latest window."""
        return math.ceil(self.max_start_epoch + self.expert_epochs)

    def fitted(self, images: int, stages: Mapping[str, StageConfig]) -> MatchConfig:
        """With windows that have enough steps of the experts, and a rate of the images for these, where they are not
        set.
        """
        experts = stages.get(self.experts)
        if not isinstance(experts, ExpertsConfig) or experts.replay is not None:
            return self
        steps = -(-images // experts.fitted(images, stages).batch)
        longest = experts.epochs or (CONVEX_EPOCHS if experts.keep == "convex" else None)
        given = self.model_fields_set
        window, start = fitting.windows(
            steps, longest, self.expert_epochs if "expert_epochs" in given else None
        )
        lr_image, lr_lr = fitting.rates(self.lr_image, self.lr_lr, window * steps, experts.lr)
        fit = {"expert_epochs": window, "max_start_epoch": start, "lr_image": lr_image, "lr_lr": lr_lr}
        changed = {
            name: value for name, value in fit.items() if name not in given and value != getattr(self, name)
        }
        return self.model_copy(update=changed) if changed else self

    def check(self, reads: Mapping[str, StageConfig]) -> list[str]:
        """Problems with the experts: they must be long enough and stored in the form that is matched."""
        experts = reads.get("experts")
        if not isinstance(experts, ExpertsConfig):
            return []
        problems = []
        needed, epochs = self.last_epoch, experts.epochs
        if epochs is not None and epochs < needed:
            problems.append(
                f"windows reach epoch {needed} (max_start_epoch {self.max_start_epoch:g} + expert_epochs "
                f"{self.expert_epochs:g}), but the experts of {self.experts!r} have {epochs} epochs; "
                f"train longer ones with --set {self.experts}.epochs={needed}"
            )
        if experts.net.name == "tv_vit_b_16":
            problems.append(
                f"the experts of {self.experts!r} are vision transformers, and torch's attention cannot be "
                "differentiated twice, as matching does; take another net"
            )
        if self.trajectory == "snapshots" and experts.keep != "all":
            problems.append(
                f"trajectory: snapshots reads every epoch, but {self.experts!r} keeps only waypoints; "
                f"set --set {self.experts}.keep=all, or trajectory: convex"
            )
        if self.waypoints is not None and experts.keep != "all":
            problems.append(
                f"the experts of {self.experts!r} keep waypoints of their own; set --set {self.experts}.keep=all to "
                f"choose them in the match stage, or give them as {self.experts}.waypoints"
            )
        elif self.waypoints is not None and epochs is not None and self.waypoints[-1] != epochs:
            problems.append(
                f"waypoints must end at the experts' last epoch, {epochs}, and end at {self.waypoints[-1]}"
            )
        return problems
