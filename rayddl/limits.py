"""Limits on what a file may declare, so that a small file cannot take the memory or time of a large one.

Each limit is an environment variable with a default; set it where the files are read, on a cluster on every node.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from rayddl.errors import UserError


@dataclass(frozen=True)
class Limit:
    """A limit with the environment variable that replaces its default."""

    variable: str
    default: int

    @property
    def value(self) -> int:
        """The limit in force. Raises :class:`UserError` for a variable that is not a whole number above 0."""
        text = os.environ.get(self.variable, "")
        if not text:
            return self.default
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text)):
            raise UserError(
                f"the environment variable {self.variable} is {text[:40]!r}, expected a whole number above 0",
                code="limit-malformed",
            )
        return int(text)

    def exceeded(self, found: int, what: str) -> str:
        """Return the sentence for a message: what was found, the limit, and how to raise it."""
        return f"{found:,} {what}, the limit is {self.value:,}; if this is right, set {self.variable} to allow more"


PIXELS = Limit("RAYDDL_MAX_PIXELS", 89_478_485)
"""Pixels of one image. PIL itself opens none above twice the default."""
PIXELS_PER_BYTE = Limit("RAYDDL_MAX_PIXELS_PER_BYTE", 10_000)
"""Pixels of one image for each byte of its file, for images above :data:`SMALL` pixels."""
SCANS = Limit("RAYDDL_MAX_JPEG_SCANS", 100)
"""Scans of one JPEG: a decoder goes over all pixels in each."""
CLASSES = Limit("RAYDDL_MAX_CLASSES", 100_000)
"""Classes of a set or source."""
ROWS = Limit("RAYDDL_MAX_ROWS", 100_000_000)
"""Rows of one Parquet file. Above a million, it also needs a byte for each row."""
CELL_BYTES = Limit("RAYDDL_MAX_CELL_BYTES", 64 * 2**20)
"""Bytes of one image in a Parquet file or tar shard."""
LABEL_BYTES = Limit("RAYDDL_MAX_LABEL_BYTES", 2**30)
"""Bytes of the labels of one Parquet file, uncompressed, or tar shard."""
DOCUMENT_BYTES = Limit("RAYDDL_MAX_DOCUMENT_BYTES", 64 * 2**20)
"""Bytes of one JSON document or definition."""
SMALL = 2**24
"""Pixels that an image's file of any size may declare."""


@dataclass(frozen=True)
class OfImages:
    """The limits on an encoded image in force, looked up once for many images."""

    pixels: int
    pixels_per_byte: int
    scans: int


def of_images() -> OfImages:
    """Look up the limits on an encoded image. Raises the error of :attr:`Limit.value`."""
    return OfImages(PIXELS.value, PIXELS_PER_BYTE.value, SCANS.value)
