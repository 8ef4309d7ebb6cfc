"""Selects the best patch of each image and the best images of each class (RDED, section 4.1), in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CropRows:
    """A table of candidates, one per image, stored by columns."""

    image: NDArray[np.int64]
    """Position in the listing. It breaks ties, as listings are sorted by name."""
    label: NDArray[np.int32]
    score: NDArray[np.float32]
    crop: NDArray[np.int32]
    """Index of the crop among the image's crops."""
    box: NDArray[np.int32]
    """``[n, 3]``: top, left, side in pixels of the whole image."""

    def __len__(self) -> int:
        return len(self.image)

    def take(self, positions: NDArray[np.int64]) -> CropRows:
        """The rows at ``positions``, in that order."""
        return CropRows(*(column[positions] for column in self.columns()))

    def columns(self) -> tuple[NDArray[Any], ...]:
        """The columns in the order of the fields."""
        return (self.image, self.label, self.score, self.crop, self.box)

    @staticmethod
    def none() -> CropRows:
        """A table without rows."""
        whole = np.zeros(0, np.int32)
        return CropRows(
            np.zeros(0, np.int64), whole, np.zeros(0, np.float32), whole, np.zeros((0, 3), np.int32)
        )

    @staticmethod
    def joined(parts: list[CropRows]) -> CropRows:
        """All rows of ``parts``."""
        if not parts:
            return CropRows.none()
        return CropRows(
            *(np.concatenate(columns) for columns in zip(*(p.columns() for p in parts), strict=True))
        )


def best_crop(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Index of each image's crop with the highest score, ``[n, K]`` to ``[n]``; the first of equal ones.

    NaN counts as the lowest score.
    """
    best: NDArray[np.int64] = np.argmax(np.where(np.isnan(scores), -np.inf, scores), axis=1)
    return best


def best_of_class(rows: CropRows, most: int) -> CropRows:
    """The ``most`` best rows of every class, sorted by (class, score from high to low, image, crop)."""
    score = np.where(np.isnan(rows.score), -np.inf, rows.score)
    order = np.lexsort((rows.crop, rows.image, -score, rows.label))
    labels = rows.label[order]
    within = np.arange(len(order)) - np.searchsorted(labels, labels, side="left")
    return rows.take(order[within < most])


@dataclass
class Best:
    """Collects the best rows of every class; the result does not depend on order and size of additions.

    Memory: at most classes x ``most`` rows, and as many that are not merged yet.
    """

    most: int
    classes: int
    _kept: CropRows = field(default_factory=CropRows.none)
    _waiting: list[CropRows] = field(default_factory=list)
    _count: int = 0

    def add(self, rows: CropRows) -> None:
        """Add candidates."""
        self._waiting.append(rows)
        self._count += len(rows)
        if self._count > self.most * self.classes:
            self.rows()

    def rows(self) -> CropRows:
        """The best rows so far, in the order of :func:`best_of_class`."""
        if self._waiting:
            self._kept = best_of_class(CropRows.joined([self._kept, *self._waiting]), self.most)
            self._waiting, self._count = [], 0
        return self._kept
