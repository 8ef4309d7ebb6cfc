"""The open part of the soft-label protocol: its settings, and named recipes of them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from rayddl.config import Config
from rayddl.methods.training.settings import KL, SOFT_EPOCHS, published_batch

MSE_GT, GIFT = "mse_gt", "gift"
LOSSES = (KL, MSE_GT, GIFT)
"""rayddl's own losses of students of soft labels."""
Recipe = Literal["rded", "edc", "rd3", "bps"]


class SoftSettings(Config):
    """Choices of training by soft labels; what is not set is that of the recipe."""

    crop_min: float | None = Field(default=None, gt=0, le=1)
    """``soft``: the smallest share of the area in a random crop. ``rded``: 1/``factor``, so that images of one
    patch are hardly cropped."""
    crop_within_patch: bool | None = None
    """``soft``: take each crop from within one patch of its image, so that no crop joins parts of two patches."""
    optimizer: Literal["adamw", "sgd", "muon"] | None = None
    """``soft``: ``adamw``; ``sgd`` with momentum 0.9; ``muon`` (Jordan 2024, torch's) for the weights of hidden
    layers with updates as large as AdamW's, and AdamW for the rest."""
    schedule: Literal["half_cosine", "cosine", "linear", "constant"] | None = None
    """``soft``: the learning rate from its start down to a half of it along the first half of a cosine (``rded``), or
    down to 0 along a whole cosine or a line."""
    ema: float | None = Field(default=None, ge=0, lt=1)
    """``soft``: test an exponential moving average of the student's weights with this decay, e.g. 0.99 (EDC); 0 tests
    the student itself."""
    label_smoothing: float | None = Field(default=None, ge=0, lt=1)
    """``loss: mse_gt``, ``gift``: smoothing of the images' own labels. Default: 0 and 0.1."""
    zoom: bool | None = None
    """``soft``: test on images as RDED's published code shows them: scaled by 8/7, and the centre cut out. Default: for
    ``tinyimagenet`` and ``imagenet``. No effect at 8 and 32 pixels. Photos are first decoded at the source's ``size``;
    the published code scales the original, and so shows them a little sharper."""
    statistics: Literal["once", "twice"] | None = None
    """``soft``: how often a step updates batch norm's running statistics. ``twice``, as RDED's published code,
    which first runs the student on the batch before CutMix to print its training accuracy."""


PLAIN: Mapping[str, Any] = {
    "crop_within_patch": False,
    "optimizer": "adamw",
    "schedule": "half_cosine",
    "ema": 0.0,
    "statistics": "once",
    "loss": KL,
}
"""RDED's choices. Its ``crop_min`` depends on the set."""
CROPPING: tuple[Recipe, ...] = ("edc", "bps")
"""The recipes that have a ``crop_min`` of their own."""
_BPS = {
    10: {10: (0.1, 16), 50: (0.2, 16), 100: (0.2, 32), 250: (0.4, 32), 500: (0.6, 64), 1000: (0.9, 128)},
    100: {10: (0.2, 32), 25: (0.4, 32), 50: (0.6, 64), 100: (0.9, 128), 150: (1.0, 128)},
    200: {10: (0.2, 32), 50: (0.6, 64), 100: (0.9, 128)},
    1000: {10: (0.2, 128), 50: (0.2, 256), 100: (0.2, 512)},
}
"""BPS's smallest crop and batch by classes and images per class."""
_EDC: Mapping[int, Mapping[str, Any]] = {
    10: {"epochs": 1000, "crop_min": 0.08},
    100: {"epochs": 1000, "crop_min": 0.5, "batch": 50},
    200: {"epochs": SOFT_EPOCHS, "crop_min": 0.5, "batch": 100},
    1000: {"epochs": SOFT_EPOCHS, "crop_min": 0.5, "batch": 100},
}
"""EDC's choices by classes: those of its code for CIFAR-10, CIFAR-100, Tiny-ImageNet and ImageNet-1K."""


def place_bytes(classes: int) -> int:
    """Bytes of the smallest integer that counts ``classes``."""
    return 1 if classes <= 2**8 else 2 if classes <= 2**15 else 4


def epoch_bytes(count: int, classes: int, factor: int, top: int | None = None) -> int:
    """Approximate bytes of an epoch's stored labels for ``count`` images of ``factor`` patches a side, with the ``top``
    largest logits of each; ``None``: with all.
    """
    logits = 2 * classes if top is None or top >= classes else top * (2 + place_bytes(classes)) + 2
    return count * (logits + 2 * factor + 17)


def recipe(name: Recipe, ipc: int, classes: int, count: int) -> dict[str, Any]:
    """The settings of a recipe for a set of ``count`` images, ``ipc`` of each of ``classes`` classes.

    - ``rded``: the published code of RDED (Sun et al. 2024, ``validation/main.py``): 300 epochs, batch 10, 50 or 100,
      KL divergence at temperature 20, AdamW, half a cosine.
    - ``edc``: the published code of EDC (Shao et al. 2024, ``train.sh`` of its branches): ``mse_gt`` with weight 0.025
      of the images' own labels, EMA 0.99; by classes (those of CIFAR-10, CIFAR-100, Tiny-ImageNet and ImageNet-1K)
      crops from 0.08 of the area, or a half, 1000 epochs, or 300 from Tiny-ImageNet on, and a batch of 50 or 100.
      Without its RandAugment, patch shuffling (ImageNet-1K), steps of the learning rate (CIFAR) and SGD (CIFAR-100,
      Tiny-ImageNet); its several observers are a list in ``observer``.
    - ``rd3``: the unified protocol of RD3 (Zhong et al. 2025, arXiv 2509.19743; numbers from its reviews and a note on
      the paper): RDED's with 400 epochs, batch 50 and a whole cosine, which it takes for ResNets.
    - ``bps``: the published code of BPS (CVPR 2026, ``stage3_training.py``): RDED's with 500 epochs, and smallest crop
      and batch from a table. Its loss has the factor T², which AdamW does not depend on, and its decay includes norms.
    """
    if name == "edc":
        branch = dict(_EDC[max((known for known in _EDC if known <= classes), default=10)])
        if "batch" in branch:
            branch["batch"] = max(1, min(branch["batch"], count))
        own: dict[str, Any] = {"loss": MSE_GT, "ema": 0.99, **branch}
    elif name == "rd3":
        own = {"epochs": 400, "batch": max(1, min(50, count)), "schedule": "cosine"}
    elif name == "bps":
        table = _BPS[max((known for known in _BPS if known <= classes), default=10)]
        crop_min, batch = table[max((known for known in table if known <= ipc), default=10)]
        own = {"epochs": 500, "crop_min": crop_min, "batch": max(1, min(batch, count))}
    else:
        own = {}
    return {**PLAIN, "epochs": SOFT_EPOCHS, "batch": published_batch(ipc, classes, count), **own}
