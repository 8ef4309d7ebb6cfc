"""What sections are made from: finished stages as plain values, arrays and pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Columns = Mapping[str, npt.NDArray[Any]]
"""A table as one array per column, all of one length."""


@dataclass(frozen=True)
class Stage:
    """One finished stage: what was asked for and what it handed back."""

    name: str
    kind: str
    folder: str
    """The folder's own name, ``<stage>-<fingerprint>``: no path of the machine that made it."""
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    tint: str = "random"
    """The colour of what is drawn of the stage itself."""

    @property
    def seconds(self) -> float:
        """How long the stage took; NaN where it does not say."""
        return number(self.summary.get("seconds"))


@dataclass(frozen=True)
class Pictures:
    """Images to look at: uint8 [N,C,H,W], a class number for each, and the classes' names."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]


def number(value: Any) -> float:
    """``value`` as a float; NaN for anything that is not a number, as JSON has no NaN of its own."""
    return float(value) if isinstance(value, (int, float)) else math.nan
