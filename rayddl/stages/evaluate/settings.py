"""Settings of ``kind: evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from rayddl import plugins
from rayddl.config import Registered
from rayddl.data.config import SourceConfig
from rayddl.methods.training.settings import HARD_BATCH, HARD_EPOCHS, KL, StudentSettings
from rayddl.methods.training.soft_settings import CROPPING, LOSSES, MSE_GT, Recipe, SoftSettings
from rayddl.nets.config import NetConfig
from rayddl.stages.revisions import side_of, tested_on_zoomed
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.sizes import Ask
from rayddl.stages.settings import Observers, Reads, StageConfig, TeamStageConfig, listed

EDC = "EDC's crops, epochs and batch by the number of classes"
"""The revision of its evaluations, except of sources of ten classes."""
TEN_CLASSES = ("digits", "cifar10")
OWN_LABELS = "students of own labels for comparison"
"""The revision of soft evaluations that train them."""
REAL_CROPS = "real images cropped as the set's"
"""The revision of soft evaluations whose real images are cropped by as much as the set's patches make its images be.
Those of sets of one patch an image have it, too: their settings do not say so, and results are the same.
"""
plugins.shipped("losses", LOSSES)
NO_OBSERVER = (
    "soft labels come from an observer: set observer to the name of a teacher stage, or protocol: hard"
)


class EvaluateConfig(StudentSettings, SoftSettings, TeamStageConfig):
    """Students trained on the distilled set, compared with students of random real images."""

    produces: ClassVar[str] = "judgement"
    unit_count: ClassVar[str] = "seeds"

    kind: Literal["evaluate"]
    set: Annotated[str, Reads(("set",))]
    """The stage whose set is evaluated."""
    protocol: Literal["hard", "soft"] | None = None
    """``hard``: MTT's, with the images' labels. ``soft``: with the labels that ``observer`` gives, by
    ``recipe``. Default: ``soft`` with an ``observer``, else the one for which the set was made."""
    recipe: Recipe = "rded"
    """``soft``: a named set of choices, each of which can be set by itself. ``rded``: that of RDED's published code.
    ``edc``: EDC's (own labels in the loss, small crops, averaged weights, 1000 epochs). ``rd3``: RD3's unified one
    (400 epochs, batch 50, a whole cosine). ``bps``: BPS's (500 epochs, small crops, small batches)."""
    observer: Observers | None = None
    """``soft``: the teacher that labels, or a list of teachers whose logits are averaged (G-VBSM, EDC, FADRM+)."""
    labels: Literal["live", "stored"] = "live"
    """``soft``: ``live`` labels at every step. ``stored`` labels once and keeps the labels (float16) and the
    crops with the set, for all its students: the set can then be used without the observer. So the spread over
    seeds leaves out that of the crops, which students of random images have."""
    label_top: int | None = Field(default=None, ge=1)
    """``labels: stored``: keep this many of an image's largest logits. The other classes share the rest of the softmax
    at temperature 20 equally. Default: all. With 10 of 1,000 classes the labels take a thirtieth of the bytes."""
    loss: Annotated[str | None, Registered("losses")] = None
    """``soft``: what students minimise. ``kl``: the published divergence at temperature 20. ``mse_gt``: the mean
    squared difference of logits, and 0.025 times the cross-entropy with the images' own labels (G-VBSM, EDC).
    ``gift``: the cosine with the observer's logits, refined by the own labels (GIFT). Plugins add others.
    Default: the recipe's, for ``rded`` ``kl``."""
    report: Literal["last", "best"] = "last"
    """``soft``: ``best`` shows, next to the accuracy after the last epoch, the best of every tenth of the last fifth
    of epochs, as published codes report it. It is chosen on the held-out images, and so too high."""
    own_labels: bool = True
    """``soft``: also train students of the set, and with ``random`` of random images, by the same recipe with the
    images' own labels. They show what the observer's labels add, and need no observer, so about half of the time."""
    nets: tuple[NetConfig, ...] | None = Field(default=None, min_length=1)
    """Networks of the students. Default: the one with which the set was made."""
    seeds: int = Field(default=5, ge=1)
    """Students per network and set."""
    lr_grid: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(default=None, min_length=2)
    """Learning rates to choose from, instead of ``lr``: for each network and kind of data, one student per
    rate is evaluated on a part of the train split, and the best rate is taken. Held-out images are not used. Random
    images are not of that part; a set that was selected or made from the whole split may be."""
    grid_images: float = Field(default=0.1, gt=0, lt=1)
    """Share of the train split on which the rates of ``lr_grid`` are compared."""
    random: bool = True
    """Also train on as many random real images, a fresh draw per seed."""
    whole: bool = False
    """Also train on the whole train split."""
    whole_epochs: int = Field(default=50, ge=1)
    """Epochs of students of the whole train split."""
    ranking: bool = False
    """Also train the students that DD-Ranking's scores need: on the set and random images without
    augmentation, on the whole train split, and for soft labels on the set and the whole train split with hard
    ones."""
    together: bool | None = None
    """Train the seeds of a network together on one device. Default: if that is faster."""

    @model_validator(mode="before")
    @classmethod
    def _hard_defaults_spelt_out(cls, value: Any) -> Any:
        """Drop explicit defaults of the hard protocol if there is no observer: they change no fingerprint."""
        if not isinstance(value, Mapping):
            return value
        if value.get("loss") == KL and value.get("recipe", "rded") == "rded":
            value = {k: v for k, v in value.items() if k != "loss"}
        if value.get("observer") or value.get("protocol") == "soft":
            return value
        spelt = {"epochs": HARD_EPOCHS, "batch": HARD_BATCH}
        return {k: v for k, v in value.items() if k not in spelt or v != spelt[k]}

    @model_validator(mode="after")
    def _fits_the_protocol(self) -> EvaluateConfig:
        if self.protocol == "hard" and self.observer is not None:
            raise ValueError("protocol: hard has no use for an observer; leave one of the two out")
        if self.protocol == "hard" and self.labels == "stored":
            raise ValueError("labels: stored belong to protocol: soft")
        if self.label_top is not None and self.labels != "stored":
            raise ValueError("label_top is of labels: stored; set labels, or leave label_top out")
        if self.lr is not None and self.lr_grid is not None:
            raise ValueError("lr is one rate and lr_grid are rates to choose from; leave one of the two out")
        return self

    @property
    def observers(self) -> tuple[str, ...]:
        """The teachers that label."""
        return listed(self.observer)

    @property
    def reads_source(self) -> bool:
        """Workers read the random images of students of soft labels."""
        return self.random and (self.observer is not None or self.protocol == "soft")

    @property
    def most_units(self) -> int:
        """The students, at most."""
        own = self.own_labels and self.observer is not None
        data = 1 + self.random + own + (self.whole or self.ranking) + 4 * self.ranking
        return data * len(self.nets or (None,)) * self.seeds

    def asks(self, have: Capacity) -> Sequence[Ask]:
        """Single workers, or a team, whose resources single workers have before it."""
        return (self.team(have),) if self.workers > 1 else super().asks(have)

    def revisions(self, source: SourceConfig) -> Sequence[str]:
        """Soft evaluations train students of own labels, and may test on zoomed images."""
        found = list(super().revisions(source))
        if self.observer is None:
            return found
        zoomed = tested_on_zoomed(self.zoom, source, side_of(source))
        found += [*zoomed, *([OWN_LABELS] if self.own_labels else [])]
        found += [EDC] if self.recipe == "edc" and source.name not in TEN_CLASSES else []
        cropped = self.crop_min is None and self.recipe not in CROPPING
        return [*found, *([REAL_CROPS] if cropped and (self.random or self.whole or self.ranking) else [])]

    def check(self, reads: Mapping[str, StageConfig]) -> list[str]:
        """Problems with the protocol: soft labels need an observer."""
        of = reads.get("set")
        soft = self.soft_for(of)
        if not soft and (given := self._of_soft_labels()):
            one = len(given) == 1
            them = given[0].partition(":")[0] if one else "them"
            instead = "in place of protocol: hard" if self.protocol == "hard" else ""
            name = " ".join(filter(None, ["name an observer", instead]))
            return [
                f"{', '.join(given)} {'is' if one else 'are'} of soft labels; {name}, or leave {them} out"
            ]
        if self.label_smoothing is not None and self._minimised() == KL:
            return ["label_smoothing is of loss: mse_gt and loss: gift; set one of these, or leave it out"]
        if self.label_top is not None and self._minimised() != KL:
            return [
                f"label_top keeps a softmax at temperature 20, and loss: {self._minimised()} compares all logits; "
                "leave label_top out, or set loss: kl"
            ]
        if self.workers > 1 and not soft:
            return ["workers train students of soft labels together; name an observer, or leave workers out"]
        return [NO_OBSERVER] if soft and self.observer is None else []

    def _minimised(self) -> str:
        """The loss that students minimise."""
        return self.loss or (MSE_GT if self.recipe == "edc" else KL)

    def _of_soft_labels(self) -> list[str]:
        """The settings that have no effect on students of hard labels."""
        fields = type(self).model_fields
        keys = ("recipe", "loss", "report", *SoftSettings.model_fields)
        values = {key: getattr(self, key) for key in keys}
        return [f"{key}: {_written(value)}" for key, value in values.items() if value != fields[key].default]

    def soft_for(self, of: StageConfig | None) -> bool:
        """True if students of the set of stage ``of`` train on soft labels."""
        if self.protocol is not None or self.observer is not None:
            return self.protocol != "hard"
        return of is not None and of.soft


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
