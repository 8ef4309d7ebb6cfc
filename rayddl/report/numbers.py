"""Formats numbers for people. Values that are not finite are shown as a dash."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

ABSENT = "–"
NBSP = "\u00a0"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def percent(share: float, decimals: int = 1) -> str:
    """Return 0.712 as ``71.2 %``."""
    return f"{share * 100:.{decimals}f}{NBSP}%" if math.isfinite(share) else ABSENT


def spread(mean: float, std: float, several: bool = True) -> str:
    """Return mean and standard deviation, both fractions, as ``71.2 ± 1.3 %``; without ``several``, the mean."""
    if not (several and math.isfinite(mean) and math.isfinite(std)):
        return percent(mean)
    return f"{mean * 100:.1f}{NBSP}±{NBSP}{std * 100:.1f}{NBSP}%"


def in_percent(mean: float, std: float, count: int) -> str:
    """Return mean and standard deviation of ``count`` fractions as percentages: ``71.2 ± 1.3``; of one: ``71.2``."""
    return f"{100 * mean:.1f} ± {100 * std:.1f}" if count > 1 else f"{100 * mean:.1f}"


def points(difference: float) -> str:
    """Return a difference of two fractions in percentage points: ``+22.9``."""
    if not math.isfinite(difference):
        return ABSENT
    text = f"{abs(difference) * 100:.1f}"
    sign = "" if float(text) == 0 else "+" if difference > 0 else "−"
    return sign + text


def count(value: float) -> str:
    """Return 1437 as ``1,437``."""
    return f"{round(value):,}" if math.isfinite(value) else ABSENT


def counted(value: int, noun: str) -> str:
    """Return ``1 image``, ``10 images`` or ``10 classes``."""
    return f"{value:,}{NBSP}{plural(value, noun)}"


def plural(value: float | None, noun: str) -> str:
    """Return ``image`` for one, else ``images``; ``classes`` for nouns that end in a hiss, which ``epoch`` does not."""
    hiss = noun.endswith(("s", "x", "ch")) and not noun.endswith("epoch")
    return noun if value == 1 else f"{noun}es" if hiss else f"{noun}s"


def duration(seconds: float) -> str:
    """Return seconds in the two largest units: ``0.42 s``, ``41.3 s``, ``2 min 14 s``, ``3 h 05 min``."""
    if not math.isfinite(seconds):
        return ABSENT
    if seconds < 59.95:
        return f"{seconds:.{2 if seconds < 0.995 else 1}f}{NBSP}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{NBSP}min{NBSP}{whole % 60:02d}{NBSP}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,}{NBSP}h{NBSP}{minutes % 60:02d}{NBSP}min"


def size(amount: float) -> str:
    """Return bytes in decimal units: ``512 B``, ``48.2 MB``."""
    if not math.isfinite(amount):
        return ABSENT
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            break
        amount /= 1000
    decimals = 0 if unit == "B" or amount >= 99.95 else 1
    return f"{amount:,.{decimals}f}{NBSP}{unit}"


def factor(ratio: float) -> str:
    """Return a ratio as ``25×`` or ``1.8×``."""
    if not math.isfinite(ratio):
        return ABSENT
    return f"{ratio:,.0f}×" if ratio >= 9.95 else f"{ratio:.1f}×"


def figure(value: float, digits: int = 3) -> str:
    """Return a number with ``digits`` significant digits; very large and small ones with a power of ten."""
    if not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if not -4 <= exponent < 6:
        mantissa = f"{value / 10**exponent:.{digits - 1}f}".rstrip("0").rstrip(".")
        return _scientific(mantissa, exponent)
    return f"{value:,.{max(0, digits - 1 - exponent)}f}".replace("-", "−")


def tick_labels(values: Sequence[float]) -> list[str]:
    """Return labels for evenly spaced ticks, with as many decimals as needed to distinguish them."""
    if not values:
        return []
    largest = max(abs(v) for v in values)
    step = min((b - a for a, b in pairwise(values)), default=largest)
    exponent = math.floor(math.log10(largest)) if largest else 0
    if exponent < -3 or exponent >= 6:
        scaled = [v / 10.0**exponent for v in values]
        decimals = max(_decimals(v) for v in (step / 10.0**exponent, *scaled))
        return [_scientific(f"{v:.{decimals}f}", exponent) if v else "0" for v in scaled]
    decimals = max(_decimals(v) for v in (step, *values))
    return [f"{v:,.{decimals}f}".replace("-", "−") for v in values]


def power_labels(values: Sequence[float]) -> list[str]:
    """Return labels for ticks of a logarithmic axis, each with its own number of digits."""
    return [_power(v) for v in values]


def _power(value: float) -> str:
    exponent = math.floor(math.log10(value) + 1e-9)
    if -3 <= exponent < 5:
        return f"{value:,.{max(0, -exponent)}f}"
    return _scientific(f"{value / 10.0**exponent:.0f}", exponent)


def _scientific(mantissa: str, exponent: int) -> str:
    power = f"10{str(exponent).translate(_SUPERSCRIPTS)}"
    return power if mantissa == "1" else f"{mantissa.replace('-', '−')}×{power}"


def _decimals(step: float) -> int:
    for decimals in range(6):
        if math.isclose(step * 10**decimals, round(step * 10**decimals), rel_tol=1e-6, abs_tol=1e-9):
            return decimals
    return 6
