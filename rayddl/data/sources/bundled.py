"""The handwritten digits that come with scikit-learn: 1,797 grey images of 8 x 8 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rayddl.data.config import SourceConfig
from rayddl.seeds import derive

if TYPE_CHECKING:
    from rayddl.data.dataset import Source

TRAIN_SHARE = 0.8
_SPLIT = 1
"""Version of the split: increase it if the assignment of images to splits changes."""


def identity(config: SourceConfig) -> dict[str, Any]:
    """JSON values that are equal for sources of this family with the same images."""
    del config
    return {"images": "scikit-learn digits, 1797", "split": _SPLIT}


def load(config: SourceConfig, fingerprint: str) -> Source:
    """The digits, with a fixed share of each class held out as the test split."""
    import numpy as np
    import torch
    from sklearn.datasets import load_digits

    from rayddl.data.dataset import ImageDataset, Source
    from rayddl.data.pixels.decode import fit_all

    digits = load_digits()
    # Grey levels are stored as 0 ... 16.
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    images = torch.from_numpy(fit_all(grey, config.size)).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(digits.target.astype(np.int64))
    classes = tuple(str(name) for name in digits.target_names)
    train, test = _split(digits.target.tolist(), len(classes))
    return Source(
        train=ImageDataset(images[train], labels[train], classes),
        test=ImageDataset(images[test], labels[test], classes),
        fingerprint=fingerprint,
    )


def _split(labels: Sequence[int], classes: int) -> tuple[list[int], list[int]]:
    """Indices of the train and the test split, each in stored order, with equal shares of each class.

    Assigned by hash, because the stream of a random generator may change with a library's version.
    """
    held_out: set[int] = set()
    for wanted in range(classes):
        members = [index for index, label in enumerate(labels) if label == wanted]
        members.sort(key=lambda index: derive(0, "digits", index))
        held_out.update(members[round(TRAIN_SHARE * len(members)) :])
    everything = range(len(labels))
    return [i for i in everything if i not in held_out], sorted(held_out)
