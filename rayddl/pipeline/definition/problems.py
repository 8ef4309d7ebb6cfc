"""Collects the problems of a definition, to report all of them in one error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from rayddl.credentials import scrub
from rayddl.errors import DefinitionError

Key: TypeAlias = tuple[str | int, ...]
"""The path of a key in a definition, e.g. ``("stages", "evaluate", "nets", 0, "depth")``."""

UNSET = "variable-not-set"
"""The code of an unset variable; such a problem is dropped if another value replaces the variable."""
_LONGEST_VALUE = 60
_LONGEST_KEY = 200
_MOST_SHOWN = 1000


@dataclass(frozen=True)
class Place:
    """The place of a value: a file and line, or an override."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


class Fault(NamedTuple):
    """A fault of a value, without its place."""

    key: Key
    text: str
    code: str


@dataclass(frozen=True)
class Problem:
    """A fault with its place."""

    place: Place
    key: Key
    text: str
    code: str
    """Identifies the kind of fault, as :attr:`rayddl.errors.RayddlError.code` does."""

    def __str__(self) -> str:
        where = dotted(self.key)
        return f"{self.place}: {where}: {self.text}" if where else f"{self.place}: {self.text}"

    def to_json(self) -> dict[str, str]:
        """Return the problem as JSON values."""
        return {"place": str(self.place), "key": dotted(self.key), "code": self.code, "text": self.text}


@dataclass
class Problems:
    """The problems found so far."""

    found: list[Problem] = field(default_factory=list)
    _known: set[Problem] = field(default_factory=set)
    _unset: set[Key] = field(default_factory=set)
    _lost: set[Key] = field(default_factory=set)

    def add(self, place: Place, key: Key, text: str, *, code: str) -> None:
        """Add a problem, unless it is already in the list.

        After the problem of an unset variable or of a value that could not be read, others about the same key are
        ignored.
        """
        problem = Problem(place, key, text, code)
        if problem in self._known or key in self._unset or key in self._lost:
            return
        self.found.append(problem)
        self._known.add(problem)
        if code == UNSET:
            self._unset.add(key)

    def lose(self, key: Key) -> None:
        """Ignore further problems about ``key``: its value could not be read, and another is in its place."""
        self._lost.add(key)

    def extend(self, others: Problems) -> None:
        """Add the problems of another list."""
        for problem in others.found:
            self.add(problem.place, problem.key, problem.text, code=problem.code)
        self._lost |= others._lost

    def settle(self, places: Mapping[Key, Place]) -> None:
        """Drop the problems of unset variables that another file or an override replaces.

        Problems of variables in an override have no key and are kept.
        """
        self.found = [p for p in self.found if p.code != UNSET or not p.key or places.get(p.key) == p.place]
        self._known = set(self.found)
        self._unset = {p.key for p in self.found if p.code == UNSET}

    def raise_any(self, subject: str) -> None:
        """Raise one :class:`DefinitionError` with all problems, if there are any."""
        if not self.found:
            return
        count = "1 problem" if len(self.found) == 1 else f"{len(self.found)} problems"
        files = {file: i for i, file in enumerate(dict.fromkeys(p.place.file for p in self.found))}
        ordered = sorted(self.found, key=lambda p: (files[p.place.file], p.place.line or 0))
        lines = "\n".join(f"  {problem}" for problem in ordered[:_MOST_SHOWN])
        if len(ordered) > _MOST_SHOWN:
            lines += f"\n  and {len(ordered) - _MOST_SHOWN:,} more"
        raise DefinitionError(
            f"{count} in {subject}; nothing was started.\n{lines}",
            code="definition-refused",
            problems=[problem.to_json() for problem in ordered],
        )


def dotted(key: Key) -> str:
    """Return the key as ``stages.evaluate.nets.0.depth``, the form that ``--set`` accepts, shortened if it is long."""
    text = ".".join(str(part) for part in key)
    return text if len(text) <= _LONGEST_KEY else f"{text[: _LONGEST_KEY - 1]}…"


def quoted(value: Any) -> str:
    """Return a value for a message, shortened and without credentials."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(scrub(value))
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
