"""Confusion matrices as small pictures for light and dark pages."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from rayddl.report import numbers
from rayddl.report.values import Columns

SIDE = 240
"""Maximum number of fields per side; for more classes, each field shows the maximum of a block."""
INK = (64, 128, 235)
"""A blue that is visible on white and on near black."""
GAMMA = 0.6
"""Exponent for the opacity; below 1, it makes small shares visible."""


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix with its picture as a data URI."""

    label: str
    src: str
    alt: str
    classes: tuple[str, ...]
    shares: npt.NDArray[np.float64]
    """``[K, K]``: for each true class, the share of each predicted class."""


def matrix(confusion: Columns, net: str, classes: tuple[str, ...], label: str) -> Matrix | None:
    """Return the matrix of all students of ``net`` trained on the distilled set; ``None`` if there are none."""
    mine = (confusion["data"] == "distilled") & (confusion["net"] == net)
    if not mine.any():
        return None
    counts = np.zeros((len(classes), len(classes)))
    at = confusion["true"][mine].astype(int), confusion["predicted"][mine].astype(int)
    np.add.at(counts, at, confusion["count"][mine])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    made = Matrix(label, _picture(shares), "", classes, shares)
    worst = mistakes(made, 1)
    right = numbers.percent(float(np.diagonal(counts).sum() / max(counts.sum(), 1)))
    worst_text = f"; most often {worst[0][0]} is taken for {worst[0][1]}" if worst else ""
    return Matrix(label, made.src, f"Confusion matrix of {label}: {right} right{worst_text}", classes, shares)


def mistakes(made: Matrix, most: int) -> list[tuple[str, str, float]]:
    """Return the most frequent errors: true class, predicted class, share of the true class."""
    wrong = made.shares * (1 - np.eye(len(made.classes)))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    places = [divmod(int(i), len(made.classes)) for i in order]
    return [(made.classes[a], made.classes[b], float(wrong[a, b])) for a, b in places if wrong[a, b] > 0]


def _picture(shares: npt.NDArray[np.float64]) -> str:
    side = len(shares)
    step = -(-side // SIDE)
    if step > 1:
        fill = -side % step
        padded = np.pad(shares, (0, fill))
        blocks = padded.reshape(len(padded) // step, step, len(padded) // step, step)
        shares = blocks.max((1, 3))
    pixels = np.empty((*shares.shape, 4), np.uint8)
    pixels[..., :3] = INK
    # Empty fields are transparent, so that they have the page's own colour.
    pixels[..., 3] = np.round(255 * np.clip(shares, 0, 1) ** GAMMA)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
