"""SIGINT, SIGTERM and SIGHUP of the command line: one ``KeyboardInterrupt``, raised where it does no harm.

A signal may arrive inside an import, a destructor or Ray's start, where an exception is swallowed or
leaves a library half initialised, or a library's own handler aborts the process. So the handler notes
the first signal and raises only where that is safe; a watching thread has it raised again if it got
lost, and ends the process if the clean-up hangs. Later signals are ignored. Nothing happens before
:func:`install`, which the command line alone calls: in Python programs Ctrl-C stays what it is.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeAlias

Call: TypeAlias = Callable[[], None]

EXIT_CODE = 130
LOST_SECONDS = 5.0
"""An exception that nothing has reacted to for this long was swallowed, and is raised again."""
LAST_SECONDS = 45.0
"""The process ends hard this long after the first signal, whatever it is waiting for."""
_POLL_SECONDS = 0.2
_IDLE_SECONDS = 1.0
_IMPORTING = "<frozen importlib"

SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


@dataclass
class _Interrupts:
    """What has arrived, and what may be raised."""

    imports: int
    """Imports in progress when the handlers were installed."""
    ends: float | None = None
    """When the process ends hard; set by the first signal."""
    raised_at: float | None = None
    open: bool = False
    held: int = 0
    reacted: bool = False
    notices: list[Call] = field(default_factory=list)
    afterwards: list[Call] = field(default_factory=list)
    lasts: list[Call] = field(default_factory=list)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Python's signal handler."""
        self.note()
        if number == getattr(signal, "SIGHUP", None):
            _leave_terminal()
        if _fragile(frame) <= self.imports:
            self.act()

    def note(self) -> None:
        """A signal has arrived."""
        if self.ends is None:
            self.ends = time.monotonic() + LAST_SECONDS

    def act(self) -> None:
        """Raise what has arrived, once, unless that has to wait."""
        if self.ends is None or not self.open or self.held or self.reacted or self.raised_at is not None:
            return
        self.raised_at = time.monotonic()
        self.notice()
        raise KeyboardInterrupt

    def notice(self) -> None:
        """Have everyone who asked for it know."""
        for call in list(self.notices):
            with suppress(Exception):
                call()

    def lost(self) -> bool:
        """Whether something has arrived that should have been raised, and was not, or led to nothing."""
        if self.ends is None or not self.open or self.held or self.reacted:
            return False
        return self.raised_at is None or time.monotonic() - self.raised_at > LOST_SECONDS


_installed: _Interrupts | None = None


def install() -> None:
    """Take over the three signals until the process ends. Does nothing outside the main thread.

    They wait until :func:`raised` opens the first block, in the threads that imports start before that too.
    """
    global _installed  # noqa: PLW0603  # a process has one set of signal handlers
    if _installed is not None or not _main_thread():
        return
    _installed = _Interrupts(_fragile(sys._getframe()))
    reinstall()
    _silence(_installed)
    _mask(signal.SIG_BLOCK)
    reads, writes = socket.socketpair()
    writes.setblocking(False)
    # Written by the C handler at once: the watcher hears a signal that the main thread cannot act on yet.
    signal.set_wakeup_fd(writes.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(_installed, reads), name="interrupts", daemon=True).start()


def reinstall() -> None:
    """Put the handlers back where a library has replaced them (Ray does, for SIGTERM)."""
    if _installed is None or not _main_thread():
        return
    for number in SIGNALS:
        # A command that was started with nohup, or in a script's background, is meant to ignore some.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _installed.handle)


def installed() -> bool:
    """Whether signals are handled here."""
    return _installed is not None


def caught() -> bool:
    """Whether a signal has interrupted the command."""
    return _installed is not None and _installed.raised_at is not None


@contextmanager
def raised() -> Iterator[None]:
    """Signals raise ``KeyboardInterrupt`` in the block, and outside of it never."""
    state = _installed if _main_thread() else None
    if state is None:
        yield
        return
    state.open = True
    try:
        _mask(signal.SIG_UNBLOCK)
        state.act()
        yield
    finally:
        state.open = False


@contextmanager
def held() -> Iterator[None]:
    """Signals are only noted in the block, and raised at its end."""
    state = _installed if _main_thread() else None
    if state is None:
        yield
        return
    state.held += 1
    try:
        yield
    finally:
        state.held -= 1
    state.act()


def check() -> None:
    """Raise here what has arrived, inside :func:`held` too. For waits that may be left at this place."""
    state = _installed if _main_thread() else None
    if state is None:
        return
    held_before, state.held = state.held, 0
    try:
        # One that waits arrives here.
        masked_before = _mask(signal.SIG_UNBLOCK)
        _mask(signal.SIG_SETMASK, masked_before)
        state.act()
    finally:
        state.held = held_before


@contextmanager
def unheard() -> Iterator[None]:
    """Signals wait in the block, and never reach the threads and processes that are started in it."""
    if _installed is None:
        yield
        return
    before = _mask(signal.SIG_BLOCK)
    try:
        yield
    finally:
        _mask(signal.SIG_SETMASK, before)


def react() -> None:
    """Say that the interrupt has been received: it is not raised again."""
    if _installed is not None:
        _installed.reacted = True


@contextmanager
def noticed(call: Call) -> Iterator[None]:
    """Have ``call`` made as soon as the command is interrupted, while it is in the block."""
    if _installed is None:
        yield
        return
    _installed.notices.append(call)
    try:
        yield
    finally:
        _installed.notices.remove(call)


@contextmanager
def at_last(call: Call) -> Iterator[None]:
    """Have ``call`` made, from any thread, if the process ends hard while it is in the block."""
    remove = add_last(call)
    try:
        yield
    finally:
        remove()


def add_last(call: Call) -> Call:
    """Have ``call`` made just before an interrupted process ends; what is returned takes that back."""
    state = _installed
    if state is None:
        return lambda: None
    state.lasts.append(call)

    def remove() -> None:
        with suppress(ValueError):
            state.lasts.remove(call)

    return remove


def afterwards(call: Call) -> None:
    """Have :func:`finish` make ``call``: what may take its time, when the command has said its last words."""
    if _installed is not None:
        _installed.afterwards.append(call)


def finish(seconds: float) -> None:
    """Do what was left for the end of an interrupted command; the process ends hard after ``seconds``.

    Nothing is printed any more: libraries that are stopped in the middle of something complain.
    """
    state = _installed
    if state is None or state.ends is None:
        return
    state.ends = min(state.ends, time.monotonic() + seconds)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    for descriptor in (1, 2):
        _to_devnull(descriptor)
    while state.afterwards:
        with suppress(Exception):
            state.afterwards.pop()()


def leave() -> None:
    """End the interrupted process at once: no exit handler of a library can change its exit code."""
    state = _installed
    for call in list(state.lasts) if state is not None else []:
        with suppress(Exception):
            call()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(EXIT_CODE)


def ignore() -> None:
    """Ignore the three signals from now on: the command is over, and its exit code is known."""
    if _installed is not None and _main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _mask(how: int, which: Iterable[int] = SIGNALS) -> set[int]:
    """Change what the calling thread hears; what it did not hear before. Systems without masks have none."""
    return signal.pthread_sigmask(how, which) if hasattr(signal, "pthread_sigmask") else set()


def _watch(state: _Interrupts, wakeup: socket.socket) -> None:
    while True:
        wait = _POLL_SECONDS if state.ends is not None else _IDLE_SECONDS
        ready, _, _ = select.select([wakeup], [], [], wait)
        if ready and set(wakeup.recv(64)) & set(SIGNALS):
            state.note()
        if hasattr(signal, "sigpending") and signal.sigpending() & set(SIGNALS):
            state.note()
        if state.ends is not None and time.monotonic() > state.ends:
            state.notice()
            leave()
        if not ready and state.lost():
            state.raised_at = None
            ours = [number for number in SIGNALS if signal.getsignal(number) == state.handle]
            # Not interrupt_main: a blocking call of the main thread has to return.
            signal.pthread_kill(threading.main_thread().ident or 0, ours[0])


def _fragile(frame: FrameType | None) -> int:
    """How many imports and destructors are in progress in ``frame``: an exception would not come out of them."""
    count = 0
    while frame is not None:
        code = frame.f_code
        count += code.co_filename.startswith(_IMPORTING) or code.co_name == "__del__"
        frame = frame.f_back
    return count


def _leave_terminal() -> None:
    """Where the terminal is gone, send what is still printed nowhere: it would raise at every line."""
    for descriptor in (1, 2):
        if _terminal_error(descriptor) == errno.EIO:
            _to_devnull(descriptor)


def _to_devnull(descriptor: int) -> None:
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, descriptor)
    os.close(devnull)


def _terminal_error(descriptor: int) -> int:
    """The error number that a terminal's settings answer with: ``EIO`` where it is gone, 0 where it is there."""
    import termios  # a system without it has no SIGHUP either

    try:
        termios.tcgetattr(descriptor)
    except termios.error as error:
        return int(error.args[0])
    return 0


def _silence(state: _Interrupts) -> None:
    """Keep tracebacks of threads and destructors off the terminal once the command is being interrupted."""
    ignored, in_thread = sys.unraisablehook, threading.excepthook

    def unraisable(what: Any) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt) and not state.reacted:
            state.raised_at = None
        elif state.ends is None:
            ignored(what)

    def threads(what: Any) -> None:
        if state.ends is None:
            in_thread(what)

    sys.unraisablehook, threading.excepthook = unraisable, threads


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
