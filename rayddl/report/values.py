"""The data of sections: finished stages as plain values, arrays and pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Columns = Mapping[str, npt.NDArray[Any]]
"""A table with one array ``[N]`` per column."""


@dataclass(frozen=True)
class Stage:
    """A finished stage with its settings and its summary."""

    name: str
    kind: str
    folder: str
    """The folder's name ``<stage>-<fingerprint>`` without its path, so that pages show no path of a machine."""
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    tint: str = "random"
    """The colour of the stage's drawings."""

    @property
    def seconds(self) -> float:
        """Duration of the stage in seconds; NaN if unknown."""
        return number(self.summary.get("seconds"))


@dataclass(frozen=True)
class Pictures:
    """Images uint8 ``[N, C, H, W]``, labels ``[N]``, and the names of the classes."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]


def number(value: Any) -> float:
    """Return ``value`` as a float; NaN if it is not a number, since JSON stores NaN as null."""
    return float(value) if isinstance(value, (int, float)) else math.nan
