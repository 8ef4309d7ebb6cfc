"""What is wrong with a definition, collected until everything is known and then said at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from rayddl.credentials import scrub
from rayddl.errors import DefinitionError

Key: TypeAlias = tuple[str | int, ...]
"""A place in a definition, e.g. ``("stages", "evaluate", "nets", 0, "depth")``."""

UNSET = "variable-not-set"
"""The code of an unset variable: no problem any more once something else stands in its place."""
_LONGEST_VALUE = 60


@dataclass(frozen=True)
class Place:
    """Where something was written: a file with its line, or an override."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


class Fault(NamedTuple):
    """One thing to put right, before it is known where it was written."""

    key: Key
    text: str
    code: str


@dataclass(frozen=True)
class Problem:
    """One thing to put right."""

    place: Place
    key: Key
    text: str
    code: str
    """The kind of fault, as :attr:`rayddl.errors.RayddlError.code`."""

    def __str__(self) -> str:
        where = dotted(self.key)
        return f"{self.place}: {where}: {self.text}" if where else f"{self.place}: {self.text}"

    def to_json(self) -> dict[str, str]:
        """The problem as JSON values."""
        return {"place": str(self.place), "key": dotted(self.key), "code": self.code, "text": self.text}


@dataclass
class Problems:
    """The problems found so far."""

    found: list[Problem] = field(default_factory=list)

    def add(self, place: Place, key: Key, text: str, *, code: str) -> None:
        """Note a problem, once however often it is met.

        Nothing more is said about the value of a variable that is not set.
        """
        problem = Problem(place, key, text, code)
        if problem not in self.found and not any(p.code == UNSET and p.key == key for p in self.found):
            self.found.append(problem)

    def settle(self, places: Mapping[Key, Place]) -> None:
        """Drop the unset variables whose place was taken by another file or an override.

        Those of an override have no key, and stay.
        """
        self.found = [p for p in self.found if p.code != UNSET or not p.key or places.get(p.key) == p.place]

    def raise_any(self, subject: str) -> None:
        """Raise one :class:`DefinitionError` with all of them, if there are any."""
        if not self.found:
            return
        count = "1 problem" if len(self.found) == 1 else f"{len(self.found)} problems"
        files = list(dict.fromkeys(problem.place.file for problem in self.found))
        ordered = sorted(self.found, key=lambda p: (files.index(p.place.file), p.place.line or 0))
        lines = "\n".join(f"  {problem}" for problem in ordered)
        raise DefinitionError(
            f"{count} in {subject}; nothing was started.\n{lines}",
            code="definition-refused",
            problems=[problem.to_json() for problem in ordered],
        )


def dotted(key: Key) -> str:
    """``stages.evaluate.nets.0.depth``: what ``--set`` takes, too."""
    return ".".join(str(part) for part in key)


def quoted(value: Any) -> str:
    """A value as a person wrote it, short and without credentials."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(scrub(value))
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
