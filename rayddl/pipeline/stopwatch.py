"""The time that a stage took, over all attempts at it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from rayddl.errors import RayddlError
from rayddl.storage import Folder

FILE = "spent.json"
"""In a stage's folder until it is finished: the seconds of its attempts so far."""


class Stopwatch:
    """Counts from now on, and adds what ended attempts at the stage in ``folder`` have left there.

    As a context manager it keeps the seconds of a block that an error or an interrupt ends.
    """

    def __init__(self, folder: Folder, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock, self._began = folder, clock, clock()
        self.before = 0.0
        """Seconds of earlier attempts."""
        with suppress(OSError, RayddlError, ValueError, KeyError, TypeError):
            if folder.has(FILE):
                self.before = max(0.0, float(folder.read_json(FILE)["seconds"]))

    @property
    def seconds(self) -> float:
        """Those of all attempts, this one included."""
        return self.before + self._clock() - self._began

    def keep(self) -> None:
        """Write :attr:`seconds` for a later attempt; a storage that fails now loses them."""
        with suppress(OSError, RayddlError):
            self._folder.write_json(FILE, {"seconds": round(self.seconds, 3)})

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.keep()
