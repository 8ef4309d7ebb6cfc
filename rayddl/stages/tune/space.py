"""A search space as in the definition: the settings that vary, their values and conditions.

Every entry maps the unit interval to its values, so that random draws and the ends of the space need the
same code for all forms. Imports neither torch nor Ray.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any, TypeAlias

from pydantic import Field, model_validator

from rayddl.config import Config

LAST = math.nextafter(1.0, 0.0)
"""The largest number in [0, 1) that is used."""
DIGITS = 4
"""Significant digits of a drawn number: enough to distinguish settings, and readable."""


class Entry(Config):
    """The values of one setting: exactly one of the first six keys, and ``when`` if the setting is
    conditional.
    """

    uniform: tuple[float, float] | None = None
    """Any number between the two, uniformly."""
    loguniform: tuple[float, float] | None = None
    """Any number between the two, uniformly in its logarithm."""
    randint: tuple[int, int] | None = None
    """A whole number between the two, both included."""
    quniform: tuple[float, float, float] | None = None
    """From the first to the second in steps of the third, both ends included."""
    choice: tuple[Any, ...] | None = Field(default=None, min_length=1)
    """One of the values listed."""
    grid: tuple[Any, ...] | None = Field(default=None, min_length=1)
    """Each of the values listed, equally often: combinations of grids are tried one after the other."""
    when: dict[str, Any] | None = None
    """Conditions: values of other settings, one or a list for each, outside which this one keeps the
    template's value."""

    @model_validator(mode="after")
    def _one_form(self) -> Entry:
        given = [name for name in FORMS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected exactly one of {', '.join(FORMS)}; found {', '.join(given) or 'none'}"
            )
        ends = self.ends
        if ends is not None and not ends[0] < ends[1]:
            raise ValueError(
                f"{given[0]} must go from a smaller to a larger value, not {ends[0]:g} to {ends[1]:g}"
            )
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform must start above 0, not at {self.loguniform[0]:g}")
        if self.quniform is not None and not 0 < self.quniform[2] <= self.quniform[1] - self.quniform[0]:
            raise ValueError(f"quniform's step must fit between its ends, {self.quniform[2]:g} does not")
        return self

    @property
    def form(self) -> str:
        """The name of the key that gives the values."""
        return next(name for name in FORMS if getattr(self, name) is not None)

    @property
    def ends(self) -> tuple[float, float] | None:
        """The least and the greatest value of a range; ``None`` for a list of values."""
        found = self.uniform or self.loguniform or self.randint or self.quniform
        return None if found is None else (found[0], found[1])

    @property
    def values(self) -> tuple[Any, ...] | None:
        """The values of a list; ``None`` for a range."""
        return self.choice if self.choice is not None else self.grid

    def at(self, place: float) -> Any:
        """The value at ``place`` in [0, 1)."""
        if self.values is not None:
            return self.values[int(place * len(self.values))]
        if self.randint is not None:
            low, high = self.randint
            return low + int(place * (high - low + 1))
        if self.quniform is not None:
            start, stop, step = self.quniform
            steps = math.floor((stop - start) / step + 1e-9) + 1
            return float(f"{start + int(place * steps) * step:.12g}")
        if self.loguniform is not None:
            a, b = self.loguniform
            return _short(math.exp(math.log(a) + place * (math.log(b) - math.log(a))), a, b)
        assert self.uniform is not None
        a, b = self.uniform
        return _short(a + place * (b - a), a, b)

    def place(self, value: Any) -> float | None:
        """The inverse of :meth:`at`: a number in [0, 1); ``None`` if ``value`` is no value of this entry."""
        if self.values is not None:
            found = next((i for i, known in enumerate(self.values) if known == value), None)
            return None if found is None else (found + 0.5) / len(self.values)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        assert self.ends is not None
        low, high = self.ends
        if not low <= value <= high:
            return None
        if self.loguniform is not None:
            return min(LAST, math.log(value / low) / math.log(high / low))
        if self.randint is not None:
            return (int(value) - low + 0.5) / (high - low + 1)
        return min(LAST, (value - low) / (high - low))


FORMS = ("uniform", "loguniform", "randint", "quniform", "choice", "grid")

Space: TypeAlias = Mapping[str, Entry]
"""The entries of the varied settings, by key."""
Settings: TypeAlias = dict[str, Any]
"""A value for each setting that a trial changes, by key."""
Base: TypeAlias = Callable[[str], Any]
"""Returns the template's own value of a key."""


def _short(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.{DIGITS}g}"), low), high)


def in_order(space: Space) -> list[str]:
    """The keys in topological order of their conditions. Raises ``ValueError`` for a cycle."""
    done: list[str] = []
    waiting = list(space)
    while waiting:
        ready = next((k for k in waiting if not set(space[k].when or ()) & set(waiting)), None)
        if ready is None:
            raise ValueError(f"conditions go round in a circle: {', '.join(waiting)}")
        done.append(ready)
        waiting.remove(ready)
    return done


def holds(when: Mapping[str, Any] | None, settings: Mapping[str, Any], base: Base) -> bool:
    """True if every key in ``when`` has the required value, or one of the required values."""
    for key, wanted in (when or {}).items():
        actual = settings[key] if key in settings else base(key)
        if actual not in wanted if isinstance(wanted, list | tuple) else actual != wanted:
            return False
    return True


def assemble(space: Space, base: Base, pick: Callable[[str, Entry], Any]) -> Settings:
    """The settings that ``pick`` returns, called only for entries whose conditions hold."""
    settings: Settings = {}
    for key in in_order(space):
        if holds(space[key].when, settings, base):
            settings[key] = pick(key, space[key])
    return settings


def draw(space: Space, base: Base, number: int, seed: int) -> Settings:
    """Settings of trial ``number``: random draws, and the next combination of grids."""
    draws = random.Random(seed)  # noqa: S311  # not used for secrets
    turns = turn(space, number)

    def pick(key: str, entry: Entry) -> Any:
        place = draws.random()
        return turns[key] if key in turns else entry.at(place)

    return assemble(space, base, pick)


def turn(space: Space, number: int) -> Settings:
    """The values of all grids for trial ``number``: combination ``number`` modulo the number of combinations."""
    grids = {key: entry.grid for key, entry in space.items() if entry.grid is not None}
    settings: Settings = {}
    for key, values in grids.items():
        number, index = divmod(number, len(values))
        settings[key] = values[index]
    return settings


def every(space: Space, base: Base) -> list[Settings]:
    """Every combination of a space of lists. Raises ``ValueError`` for a range."""
    ranges = [key for key, entry in space.items() if entry.values is None]
    if ranges:
        raise ValueError(f"a grid has lists of values only, and {', '.join(ranges)} is a range")
    keys = list(space)
    found: list[Settings] = []
    for combination in product(*(space[key].values or () for key in keys)):
        given = dict(zip(keys, combination, strict=True))
        settings = assemble(space, base, _given(given))
        if settings not in found:
            found.append(settings)
    return found


def corners(space: Space, base: Base, inside: int = 16) -> Iterator[Settings]:
    """Settings at the ends of the space, and some from its inside, to check the space's validity.

    First all settings at their least and at their greatest value, then each setting at each of its ends or values
    (conditional settings with their conditions satisfied), then ``inside`` random draws.
    """
    for place in (0.0, LAST):
        yield assemble(space, base, _at(place))
    for key, entry in space.items():
        values = entry.values if entry.values is not None else (entry.at(0.0), entry.at(LAST))
        for value in values:
            fixed = {**_wanted(space, key), key: value}
            yield assemble(space, base, _given(fixed))
    for number in range(inside):
        yield draw(space, base, number, number)


def _at(place: float) -> Callable[[str, Entry], Any]:
    return lambda _, entry: entry.at(place)


def _given(values: Settings) -> Callable[[str, Entry], Any]:
    """A function that picks ``values``, and for other settings the middle of the range."""
    return lambda key, entry: values[key] if key in values else entry.at(0.5)


def _wanted(space: Space, key: str) -> Settings:
    """Values of the space's settings that satisfy the condition of ``key``."""
    found: Settings = {}
    for other, wanted in (space[key].when or {}).items():
        if other in space:
            found |= {
                **_wanted(space, other),
                other: wanted[0] if isinstance(wanted, list | tuple) else wanted,
            }
    return found
