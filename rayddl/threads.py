"""Threads that can be interrupted as the main thread is: by one ``KeyboardInterrupt``, raised where it is safe."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from types import FrameType

LOST_SECONDS = 5.0
"""Seconds without a reaction after which the exception counts as swallowed and is raised again."""
_IMPORTING = "<frozen importlib"


class Interruptible(threading.Thread):
    """A daemon thread that calls ``work``; :meth:`interrupt` raises ``KeyboardInterrupt`` in it.

    Python delivers the exception between two of the thread's instructions, so a call that blocks delays it.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        # The thread has the context of the one that makes it, such as the hosts that a command may contact.
        super().__init__(target=copy_context().run, args=(work,), name=name, daemon=True)
        self.reacted = False
        """True once the interrupt is handled, so that it is not raised again."""
        self._lock = threading.Lock()
        self._held = 0
        self._asked = False
        self._raised_at: float | None = None

    def run(self) -> None:
        # An interrupt may come when the work is done already.
        with suppress(KeyboardInterrupt):
            super().run()

    def interrupt(self) -> None:
        """Raise ``KeyboardInterrupt`` in the thread, unless it holds interrupts, imports a module or runs a destructor.

        Call it repeatedly until the thread ends: it then raises at the next opportunity, and again if the exception
        was lost. Does nothing after :attr:`reacted` is set.
        """
        with self._lock:
            self._asked = True
            if self._due() and fragile(sys._current_frames().get(self.ident or 0)) == 0:
                self._raised_at = time.monotonic()
                _set_exception(self, ctypes.py_object(KeyboardInterrupt))

    def hold(self) -> None:
        """Delay interrupts until :meth:`release`. Called by the thread itself."""
        with self._lock:
            # One that has been set and not delivered would be raised inside the block.
            _set_exception(self, None)
            self._held += 1

    def release(self) -> None:
        """End a :meth:`hold`."""
        with self._lock:
            self._held -= 1

    def act(self) -> None:
        """Raise ``KeyboardInterrupt`` if :meth:`interrupt` was called during a hold. Called by the thread itself."""
        with self._lock:
            due = self._asked and self._raised_at is None and self._due()
            self._raised_at = time.monotonic() if due else self._raised_at
        if due:
            raise KeyboardInterrupt

    def _due(self) -> bool:
        lately = self._raised_at is not None and time.monotonic() - self._raised_at < LOST_SECONDS
        return not (self._held or self.reacted or lately)


def mine() -> Interruptible | None:
    """The current thread, if it is interruptible."""
    thread = threading.current_thread()
    return thread if isinstance(thread, Interruptible) else None


def fragile(frame: FrameType | None) -> int:
    """Count the imports and destructors in progress in ``frame``; an exception does not propagate from them."""
    count = 0
    while frame is not None:
        code = frame.f_code
        count += code.co_filename.startswith(_IMPORTING) or code.co_name == "__del__"
        frame = frame.f_back
    return count


def _set_exception(thread: threading.Thread, exception: ctypes.py_object[type[BaseException]] | None) -> None:
    """Set the exception that ``thread`` raises next; ``None`` clears one that it has not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), exception)
