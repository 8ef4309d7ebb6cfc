"""Scales and ticks of axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LOG_FROM = 30.0
"""Minimum ratio of the largest to the smallest value for a logarithmic axis."""


@dataclass(frozen=True)
class Scale:
    """Maps values from ``low … high`` to coordinates from ``start … stop`` in the drawing's units."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the coordinate of ``value``; NaN if it has none, as 0 on a logarithmic axis."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return math.nan
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Return round values inside the range, about ``about`` of them."""
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high, about)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return about ``about`` multiples of 1, 2 or 5 times a power of ten within ``low … high``."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = min((m * magnitude for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounding avoids values such as 3 * 0.1 = 0.30000000000000004.
    decimals = max(0, 1 - math.floor(math.log10(step)))
    return [round(i * step, decimals) + 0.0 for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten within ``low … high``: fewer over many decades, with multiples in between over few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = math.log10(high / low)
    multiples = (1, 2, 5) if decades < 1.7 else (1, 3) if decades < 3 else (1,)
    stride = 1 if decades <= 6 else math.ceil(decades / 5)
    values = (m * 10.0**e for e in range(first, last + 1, stride) for m in multiples)
    return [v for v in values if low * 0.999 <= v <= high * 1.001]


def spans_decades(values: Iterable[float]) -> bool:
    """True if all values are positive and their ratio is at least :data:`LOG_FROM`."""
    finite = [v for v in values if math.isfinite(v)]
    return len(finite) > 1 and min(finite) > 0 and max(finite) / min(finite) >= LOG_FROM


def padded(values: Iterable[float], log: bool = False, share: float = 0.06) -> tuple[float, float]:
    """Return a range with all finite values and a margin; linear ranges near zero start at zero."""
    finite = [v for v in values if math.isfinite(v) and (not log or v > 0)]
    if not finite:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(finite), max(finite)
    if log:
        margin = (high / low) ** share if high > low else 2.0
        return low / margin, high * margin
    if low >= 0 and low < 0.4 * high:
        return 0.0, high * (1 + share)
    margin = (high - low) * share if high > low else (abs(high) * 0.5 or 1.0)
    return low - margin, high + margin


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Return places near the given ones, in the same order on the axis, at least ``gap`` apart."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[tuple[list[int], float]] = []
    for i in order:
        blocks.append(([i], places[i]))
        # Overlapping neighbours are merged into a block around their mean.
        while len(blocks) > 1:
            (before, middle), (after, other) = blocks[-2:]
            if other - middle >= gap * (len(before) + len(after)) / 2:
                break
            members = before + after
            shared = sum(places[m] for m in members) / len(members)
            blocks[-2:] = [(members, shared)]
    found = list(places)
    for members, middle in blocks:
        for rank, i in enumerate(members):
            found[i] = middle + (rank - (len(members) - 1) / 2) * gap
    return found
