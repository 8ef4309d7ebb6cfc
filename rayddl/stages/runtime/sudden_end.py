"""Says on the terminal that this process was ended from outside or by Ray's library, which say nothing themselves."""

from __future__ import annotations

import subprocess
from contextlib import suppress

_SCRIPT = r"""
say() { if [ -t 2 ]; then printf '\033[?25h' >&2; fi; printf '%s\n' "$1" >&2; }
read -r started || { say "$1"; exit; }
read -r stopped || say "$2"
"""
"""Reads a line for each phase that is over; the pipe's end without it is that of the process. Shows the cursor again,
which a display of progress hides."""


class SuddenEnd:
    """A child process that writes ``starting`` to the terminal if this process ends before :meth:`started`, and
    ``running`` if it ends before :meth:`stopped`.
    """

    def __init__(self, starting: str, running: str) -> None:
        # In a session of its own: Ctrl-C ends this process, and not the child.
        self._child = subprocess.Popen(
            ["sh", "-c", _SCRIPT, "sh", starting, running],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def started(self) -> None:
        """The first phase is over."""
        self._tell("started\n")

    def stopped(self) -> None:
        """All is over, and nothing will be written. May be called again, and from any thread."""
        self._tell("started\nstopped\n")
        with suppress(OSError, ValueError):
            if self._child.stdin is not None:
                self._child.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(1.0)

    def _tell(self, lines: str) -> None:
        with suppress(OSError, ValueError):
            if self._child.stdin is not None:
                self._child.stdin.write(lines.encode())
                self._child.stdin.flush()
