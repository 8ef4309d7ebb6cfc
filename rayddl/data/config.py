"""The settings of the real images and of augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rayddl import plugins
from rayddl.config import Config, OnDisk, Registered

IMAGENET_SIZE = 128
"""Default side in pixels of ``imagenet`` images: the size used in the papers on its subsets."""
Subset = Literal[
    "nette", "woof", "fruit", "fruits", "meow", "cats", "squawk", "birds", "yellow", "10", "100"
]  # fmt: skip
plugins.shipped(
    "sources",
    ("digits", "cifar10", "cifar100", "parquet", "webdataset", "imagefolder", "tinyimagenet", "imagenet"),
)
Scaling = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, of pixels in 0..1."""
_CIFAR: Scaling = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET: Scaling = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PUBLISHED: Mapping[str, Scaling] = {
    "cifar10": _CIFAR,
    # The published code has the same numbers for both.
    "cifar100": _CIFAR,
    "tinyimagenet": _IMAGENET,
    "imagenet": _IMAGENET,
}
"""The scaling of pixels without ZCA in the code of MTT and its successors (``get_dataset``), by source. CIFAR's
deviations are means of single images' deviations, smaller than those of all pixels."""
_WITH_HELD_OUT = ("digits", "cifar10", "cifar100", "tinyimagenet")
"""Sources that always have a held-out split."""
AUGMENTATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


class SourceConfig(Config):
    """The real images, and the pixel space in which all stages work."""

    name: Annotated[str, Registered("sources")]
    """``digits`` (scikit-learn's, no files), ``cifar10``, ``cifar100``, ``tinyimagenet`` and ``imagenet`` in
    their published layouts, or images of your own: ``imagefolder`` (a folder per class), ``parquet``,
    ``webdataset``. Plugins add others."""
    root: Annotated[str | None, OnDisk()] = None
    """Folder or URI of the files; not needed for ``digits``."""
    space: Literal["normalise", "zca", "published"] = "normalise"
    """``normalise``: per-channel mean and deviation of the train split. ``zca``: whitening fitted on it.
    ``published``: the constants of the trajectory-matching papers' code, in whose units its settings without
    ZCA and its ``.pt`` files are; known for ``cifar10``, ``cifar100``, ``tinyimagenet`` and ``imagenet``, and
    for other sources given as ``mean`` and ``std``."""
    mean: tuple[float, ...] | None = None
    """``space: published``: the mean of each channel, of pixels in 0..1."""
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """``space: published``: the standard deviation of each channel, of pixels in 0..1."""
    size: int | None = Field(default=None, ge=4)
    """Side in pixels to which images are resized: the shorter side is scaled, the centre cut out. Default: as
    stored, where all images must have one size; 128 for ``imagenet``."""
    subset: Subset | None = None
    """``imagenet``: the classes of one of the literature's subsets. Default: every class folder found."""
    download: bool = False
    """Fetch ``cifar10`` or ``cifar100`` into ``root`` if the files are missing."""
    train: str | None = None
    """``parquet``, ``webdataset``: the train split's file or files (glob inside ``root``); default
    ``*train*.parquet``, ``*train*.tar``. ``imagefolder``, ``imagenet``: the split's folder; default ``train``."""
    test: str | None = None
    """The held-out split, as for ``train``. Default: ``*test*``, then ``*val*``, with the same ending; for
    ``imagefolder`` the folder ``val`` or ``test``, for ``imagenet`` ``val``."""
    holdout: float | None = Field(default=None, gt=0, lt=1)
    """Share of each class that is held out of the train split, at least one image, for a source without a held-out
    split. Where the files have one, it is used and this has no effect. An ``imagefolder`` may then also be the class
    folders themselves, and ``parquet`` and ``webdataset`` any files; if ``train`` names these, no held-out split is
    looked for. Default: a held-out split is required."""
    holdout_seed: int = Field(default=0, ge=0)
    """Seed of the choice of images that ``holdout`` holds out."""
    image_column: str = "image"
    """``parquet``: the column of images, as encoded bytes."""
    label_column: str = "label"
    """``parquet``: the column of labels."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Largest share of unreadable images; with more the source is refused."""
    range: int | None = Field(default=None, ge=1, le=65535)
    """The value of white in images of 16 bits per pixel, e.g. 4095 for 12-bit pictures; a larger value makes an image
    unreadable. Default: 65535."""
    follow_links: bool = False
    """Use images to which links inside ``root`` lead, wherever they are. Default: a link out of ``root`` is
    refused."""

    @model_validator(mode="before")
    @classmethod
    def _imagenet_has_a_size(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("name") == "imagenet":
            return {"size": IMAGENET_SIZE, **value}
        return value

    @field_validator("subset", mode="before")
    @classmethod
    def _number_as_text(cls, value: Any) -> Any:
        # YAML reads the subset names 10 and 100 as numbers.
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _keys_belong(self) -> SourceConfig:
        if self.subset is not None and self.name != "imagenet":
            raise ValueError(f"subset belongs to name: imagenet, not {self.name}")
        if self.name == "tinyimagenet" and (self.train or self.test):
            raise ValueError("train and test are fixed for name: tinyimagenet; leave them out")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both or neither")
        if self.mean is not None and self.space != "published":
            raise ValueError("mean and std belong to space: published")
        if self.space == "published" and self.scaling is None:
            raise ValueError(
                f"no published mean and std are known for {self.name}: give both, or use space: normalise"
            )
        if self.holdout is not None and self.name in _WITH_HELD_OUT:
            raise ValueError(f"name: {self.name} has a held-out split; leave holdout out")
        if self.holdout is not None and self.test is not None:
            raise ValueError("test names a held-out split and holdout makes one; leave one of the two out")
        return self

    @property
    def scaling(self) -> Scaling | None:
        """Mean and standard deviation per channel in ``space: published``; ``None`` in other spaces."""
        if self.space != "published":
            return None
        if self.mean is not None and self.std is not None:
            return self.mean, self.std
        return PUBLISHED.get(self.name)

    @property
    def zoomed(self) -> bool:
        """True if RDED's published results for the source are of zoomed test images: of more than 32 pixels."""
        return self.name in ("tinyimagenet", "imagenet")

    @property
    def space_key(self) -> str:
        """The pixel space as text, with constants that the settings give; part of fingerprints."""
        given = "" if self.mean is None else f"({', '.join(map(str, (*self.mean, *(self.std or ()))))})"
        return self.space + given


DSA = "color_crop_cutout_flip_scale_rotate"


class Augmented(Config):
    """The augmentation setting, inherited by every configuration that trains on augmented images."""

    augment: str = DSA
    """Augmentations joined by ``_`` (``color``, ``crop``, ``cutout``, ``flip``, ``scale``, ``rotate``), or
    ``none``; one of them is drawn for every batch."""

    @field_validator("augment")
    @classmethod
    def _known_augmentation(cls, value: str) -> str:
        augmentation_names(value)
        return value

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The names of the augmentations; empty for ``none``."""
        return augmentation_names(self.augment)


def augmentation_names(text: str) -> tuple[str, ...]:
    """``"color_crop_flip"`` as a tuple, ``"none"`` as an empty one. Raises ``ValueError`` for an unknown name."""
    if text in ("", "none"):
        return ()
    names = tuple(text.split("_"))
    unknown = [n for n in names if n not in AUGMENTATIONS]
    if unknown:
        raise ValueError(
            f"unknown augmentation {unknown[0]!r}; known: {', '.join(AUGMENTATIONS)}; several are joined by _"
        )
    return names


def recorded_source(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a source as a set or a manifest records them, for use again: without those that are not set, and
    without ``download``, for which only the user's own definition can ask.
    """
    return {key: value for key, value in settings.items() if value is not None and key != "download"}
