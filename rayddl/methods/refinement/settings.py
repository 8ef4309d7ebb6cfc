"""The settings of a refinement. Imports no torch, because definitions are checked with them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rayddl.data.config import Augmented


class RefineSettings(Augmented):
    """How images are refined. The defaults are those of CIM's published code (Shang et al. 2026)."""

    steps: int = Field(default=200, ge=1)
    """Updates of every image."""
    lr: float = Field(default=0.01, gt=0)
    """Learning rate of AdamW on the change of an image, whose pixels are in 0..1."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of the change: it draws an image back to where it began."""
    distance: Literal["l1", "l2"] = "l1"
    """Between the features of a view and those of its anchor: the mean absolute difference, as in the published
    code, or the mean squared one, as in the paper."""
    layers: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The module whose output are the features, by PyTorch's name, such as ``blocks.1`` in a ``convnet`` or ``layer2``
    in a ``resnet18``: one for each observer, or a single one for all. Default: the input of the last linear layer,
    which CIM takes up to 64 pixels; for ResNet-18 at 224 pixels it takes ``layer2``."""
    augment: str = "flip_crop_cutout"
    """Augmentations joined by ``_`` (``color``, ``crop``, ``cutout``, ``flip``, ``scale``, ``rotate``), or ``none``.
    All of them are applied, in this order, in the same way to a view and to its anchor."""
