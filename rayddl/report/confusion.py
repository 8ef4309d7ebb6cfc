"""Confusion matrices as small pictures for light and dark pages."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from rayddl.report import numbers
from rayddl.report.values import Columns

SIDE = 240
"""Maximum number of fields per side; for more classes, each field shows the maximum of a block."""
INK = (64, 128, 235)
"""A blue that is visible on white and on near black."""
NAMED = 24
"""Largest number of classes whose names stand at the axes."""
FIELD, WHOLE = 20, 200
"""Side of a field with names, and of a matrix without them, in CSS pixels."""
LETTERS, LETTER = 12, 6.4
"""Letters of a name that are shown, and the width of one in CSS pixels."""
GAMMA = 0.6
"""Exponent for the opacity; below 1, it makes small shares visible."""
SCALE = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares whose shades are shown below a matrix."""
STEP, BELOW = 18, 38
"""Width of a shade, and the room for the scale below a matrix, in CSS pixels."""
SCALE_WIDTH = 230
"""Width of the scale with its words, in CSS pixels."""


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix with its picture as a data URI."""

    label: str
    src: str
    alt: str
    classes: tuple[str, ...]
    shares: npt.NDArray[np.float64]
    """``[K, K]``: for each true class, the share of each predicted class."""

    def draw(self) -> Markup:
        """Return the matrix as SVG: true classes from top to bottom, answers from left to right."""
        named = len(self.classes) <= NAMED
        side = FIELD * len(self.classes) if named else WHOLE
        names = [name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…" for name in self.classes]
        room = round(LETTER * max(map(len, names))) + 8 if named else 6
        left, top = room + 16, room + 16
        parts = [
            Markup(
                '<svg class="confusion" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-label="{2}">'
                "<title>{2}</title>"
            ).format(max(left + side, left + SCALE_WIDTH) + 1, top + side + BELOW, self.alt),
            Markup('<text class="axis" x="{}" y="11">taken for</text>').format(left),
            Markup(
                '<text class="axis" transform="translate(11 {}) rotate(-90)" text-anchor="end">true class</text>'
            ).format(top),
            Markup('<image href="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
                self.src, left, top, side, side
            ),
            Markup('<rect class="frame" x="{}" y="{}" width="{}" height="{}"/>').format(
                left, top, side, side
            ),
            *_scale(left, top + side + 10),
        ]
        for i, name in enumerate(names if named else ()):
            at = FIELD * (i + 0.5) + 4
            parts.append(
                Markup('<text x="{}" y="{:g}" text-anchor="end">{}</text>').format(left - 5, top + at, name)
            )
            parts.append(
                Markup('<text transform="translate({:g} {}) rotate(-90)">{}</text>').format(
                    left + at, top - 5, name
                )
            )
        return Markup("").join([*parts, Markup("</svg>")])


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


def _scale(left: int, top: int) -> list[Markup]:
    """Shades with their shares, from ``left`` and ``top``."""
    shade = Markup('<rect x="{}" y="{}" width="{}" height="10" fill="rgb({},{},{})" fill-opacity="{:.3f}"/>')
    shades = [shade.format(left + k * STEP, top, STEP, *INK, share**GAMMA) for k, share in enumerate(SCALE)]
    end = left + len(SCALE) * STEP
    return [
        *shades,
        Markup('<rect class="frame" x="{}" y="{}" width="{}" height="10"/>').format(left, top, end - left),
        Markup('<text class="axis" x="{}" y="{}">0</text>').format(left, top + 23),
        Markup('<text class="axis" x="{}" y="{}" text-anchor="end">100 %</text>').format(end, top + 23),
        Markup('<text class="axis" x="{}" y="{}">of the true class</text>').format(end + 8, top + 9),
    ]


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
