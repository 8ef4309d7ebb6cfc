"""Settings of ``kind: rded``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rayddl.nets.config import NetConfig
from rayddl.stages.runtime import sizes
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.sizes import Ask, Resources
from rayddl.stages.settings import Precision, Reads, StageConfig, Tunable


class RdedConfig(StageConfig):
    """The most realistic crops of real images, several on one image (RDED, Sun et al. 2024)."""

    produces: ClassVar[str] = "set"
    # Ray Data plans each stream's memory in the object store as if it were the only one.
    one_at_a_time: ClassVar[str] = "Ray Data"
    soft: ClassVar[bool] = True
    tunable: ClassVar[Tunable | None] = Tunable({"accuracy": "max"}, "rayddl.stages.rded.trials:trials")

    kind: Literal["rded"]
    teacher: Annotated[str, Reads(("teacher",))]
    """The observer that scores the crops."""
    ipc: int = Field(ge=1)
    """Images per class."""
    factor: int = Field(default=2, ge=1, le=8)
    """Patches along one side of an image; published: 1 at 32 and 64 pixels, 2 at 224."""
    num_crops: int = Field(default=5, ge=1)
    """K: random crops of each image; the one with the best score is kept."""
    whole: bool = False
    """Score and keep whole images, cut to their centre square, in place of crops; ``num_crops`` does not apply."""
    jpeg: int | None = Field(default=None, ge=1, le=95)
    """Pass the images through a JPEG file of this quality. RDED's published code stores them with 75. Default:
    without loss."""
    mipc: int = Field(default=300, ge=1)
    """Real images per class that are cropped and scored."""
    scoring: Literal["published", "native"] = "published"
    """``published``: the observer sees the patch surrounded by zeros, at its own input size. ``native``: it
    sees the patch alone, decoded no larger than needed; cheaper, for observers that take any size. The two
    choose differently: of 40 patches a class of Tiny-ImageNet they had 19 % of the images in common, where
    chance gives 13 %."""
    precision: Precision = "bf16"
    """The number format in which the observer computes."""
    batch: int | None = Field(default=None, ge=1)
    """Patches scored together. Default: by device and size."""
    short_class: Literal["error", "cap", "repeat"] = "error"
    """A class of fewer than ``factor² ipc`` readable images: refuse it, make fewer images of it, or use some
    patches more than once."""
    decoders: Resources = Resources()
    """Resources of a worker that decodes, if the observer has a GPU. Without one, the same worker decodes and
    scores, and has ``resources``."""

    @property
    def reads_source(self) -> bool:
        """The stream does."""
        return True

    @property
    def candidates(self) -> int:
        """The number of crops of an image that are scored."""
        return 1 if self.whole else self.num_crops

    def asks(self, have: Capacity) -> Sequence[Ask]:
        """Scoring workers, and decoding workers if the observer has a GPU."""
        judges, cutters = sizes.streamed(self.resources, self.decoders, have)
        shares = {"resources": judges, "decoders": cutters}
        return [Ask(key, share, units=share.at_once) for key, share in shares.items() if share]

    def network(self, stages: Mapping[str, StageConfig]) -> NetConfig | None:
        """The observer's network."""
        teacher = stages.get(self.teacher)
        return teacher.network(stages) if teacher else None

    @property
    def images_needed(self) -> int:
        """One for each patch."""
        return self.factor**2 * self.ipc if self.short_class == "error" else 0

    def check(self, reads: Mapping[str, StageConfig]) -> list[str]:
        """Problems with ``mipc``: at most one patch of each scored image is selected."""
        del reads
        needed = self.factor**2 * self.ipc
        if needed > self.mipc and self.short_class == "error":
            return [
                f"{self.ipc} images of {self.factor} x {self.factor} patches need {needed} images of each class, but "
                f"mipc looks at {self.mipc}; raise mipc, or lower ipc or factor"
            ]
        return []
