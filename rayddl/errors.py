"""The errors that rayddl raises on purpose.

::

    RayddlError                 exit code 1
    ├── UserError               exit code 2: the input is wrong; nothing was started
    │   ├── DefinitionError     a definition file: every problem found, each with its place
    │   ├── SourceError         a folder or file of images
    │   ├── NetError            a network that cannot take these images
    │   ├── PluginError         a plugin that cannot be loaded, or a name that is registered twice
    │   ├── PathError           a name that leads out of its folder
    │   └── ArtifactError       a stage's folder or a distilled set that is incomplete or altered
    └── StageError              a stage could not finish; what was done so far is kept
        └── DivergedError       numbers in a run that are not finite, which are not kept

A message says what was found, where, what was expected, and what to do next. An error's ``code`` identifies the fault
for programs and tests; it stays the same when the message is reworded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rayddl.credentials import scrub

_END = 1_000
"""Characters that are kept of the end of a message that is too long."""


class RayddlError(Exception):
    """The base of all errors that rayddl raises on purpose.

    A message has no credentials of the URIs that it quotes. One of more than ``longest`` characters, such as one that
    quotes a name from a file, is cut in its middle.
    """

    exit_code = 1
    longest = 10_000

    def __init__(self, message: str, *, code: str) -> None:
        message = scrub(message)
        if len(message) > self.longest:
            message = f"{message[: self.longest - _END - 1]}…{message[-_END:]}"
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors of Ray's workers arrive pickled, and the default pickling of exceptions drops keyword arguments.
        return partial(type(self), code=self.code), self.args, self.__dict__


class UserError(RayddlError):
    """Wrong input by the user; nothing was started."""

    exit_code = 2


class DefinitionError(UserError):
    """A definition that cannot be run; the message lists every problem found.

    ``problems`` are the same as JSON values, each with place, key, code and text; empty if no definition was read.
    """

    longest = 1_000_000

    def __init__(self, message: str, *, code: str, problems: Sequence[Mapping[str, str]] = ()) -> None:
        super().__init__(message, code=code)
        self.problems = tuple(problems)


class SourceError(UserError):
    """Images or labels that are missing, unreadable or too few.

    ``advice`` ends the message: which settings of a definition to change. :meth:`advised` is for commands that have no
    definition.
    """

    def __init__(self, message: str, *, code: str, advice: str = "") -> None:
        super().__init__(f"{message} {advice}" if advice else message, code=code)
        self.advice = advice

    def advised(self, advice: str) -> SourceError:
        """The error with ``advice`` in place of its own; itself if it has none."""
        if not self.advice:
            return self
        return type(self)(str(self).removesuffix(f" {self.advice}"), code=self.code, advice=advice)


class NetError(UserError, ValueError):
    """A network that cannot be built for images of this shape, or with these settings."""


class PluginError(UserError):
    """A plugin that cannot be loaded, registers a name twice, or returns an unusable value."""


class PathError(UserError, ValueError):
    """A name in a definition, a manifest or an archive that leads out of its folder."""


class ArtifactError(UserError):
    """A stage's folder or a distilled set that is incomplete, altered or from a newer format."""


class StageError(RayddlError):
    """A stage could not finish. Its partial results are on disk; the next run continues from them."""


class DivergedError(StageError):
    """A run produced numbers that are not finite, which are not kept."""
