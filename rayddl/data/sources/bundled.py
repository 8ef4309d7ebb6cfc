"""The handwritten digits that come with scikit-learn: 1,797 grey images of 8 x 8 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayddl.data.config import SourceConfig
from rayddl.seeds import derive

if TYPE_CHECKING:
    import numpy as np

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

    from rayddl.data.dataset import ImageDataset, Source
    from rayddl.data.pixels.decode import fit_all

    table = _table()
    # Grey levels are stored as 0 ... 16, the label is the last column.
    grey = np.rint(table[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    digits = table[:, -1].astype(np.int64)
    # A copy, because contiguous() keeps the strides of one channel, which are those of channels last: convolutions
    # would take another path, with other last bits, than in workers.
    images = torch.from_numpy(fit_all(grey, config.size)).permute(0, 3, 1, 2)
    images = images.clone(memory_format=torch.contiguous_format)
    labels = torch.from_numpy(digits)
    classes = tuple(str(digit) for digit in range(10))
    train, test = _split(digits.tolist(), len(classes))
    return Source(
        train=ImageDataset(images[train], labels[train], classes),
        test=ImageDataset(images[test], labels[test], classes),
        fingerprint=fingerprint,
    )


def _table() -> np.ndarray[Any, Any]:
    """float64 ``[1797, 65]``: 64 grey levels and the label of each image."""
    import numpy as np

    # Reading scikit-learn's file takes 0.1 seconds of processor time; importing scikit-learn for it takes 3.
    package = find_spec("sklearn")
    for folder in (package.submodule_search_locations or ()) if package else ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


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
