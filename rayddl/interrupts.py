"""Turns SIGINT, SIGTERM and SIGHUP of the command line into one ``KeyboardInterrupt``, raised where it is safe.

A signal may arrive during an import, a destructor or the start of Ray. An exception there is swallowed or
leaves a library half initialised, or the library's own handler aborts the process. The handler therefore
records the first signal and raises only where that is safe. A watcher thread raises it again if it was lost,
and ends the process if the clean-up hangs. Later signals are ignored. Only the command line calls
:func:`install`; without it, Ctrl-C in a Python program works as usual.
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

from rayddl import threads
from rayddl.threads import LOST_SECONDS, fragile

Call: TypeAlias = Callable[[], None]

EXIT_CODE = 130
LAST_SECONDS = 45.0
"""Seconds after the first signal at which the process is ended, whatever it is waiting for."""
_POLL_SECONDS = 0.2
_IDLE_SECONDS = 1.0

SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


@dataclass
class _Interrupts:
    """Which signal was received, and whether it may be raised now."""

    imports: int
    """Number of imports in progress when the handlers were installed."""
    ends: float | None = None
    """Monotonic time at which the process is ended; set by the first signal."""
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
        if fragile(frame) <= self.imports:
            self.act()

    def note(self) -> None:
        """Record that a signal was received."""
        if self.ends is None:
            self.ends = time.monotonic() + LAST_SECONDS

    def act(self) -> None:
        """Raise ``KeyboardInterrupt`` once for a received signal, unless signals are held."""
        if self.ends is None or not self.open or self.held or self.reacted or self.raised_at is not None:
            return
        self.raised_at = time.monotonic()
        self.notice()
        raise KeyboardInterrupt

    def hold(self) -> None:
        """Delay the exception until :meth:`release`."""
        self.held += 1

    def release(self) -> None:
        """End a :meth:`hold`."""
        self.held -= 1

    def notice(self) -> None:
        """Call every function registered with :func:`noticed`."""
        for call in list(self.notices):
            with suppress(Exception):
                call()

    def lost(self) -> bool:
        """True if a received signal should have been raised, and was not raised or had no effect."""
        if self.ends is None or not self.open or self.held or self.reacted:
            return False
        return self.raised_at is None or time.monotonic() - self.raised_at > LOST_SECONDS


_installed: _Interrupts | None = None


def install() -> None:
    """Handle the three signals until the process ends. Does nothing outside the main thread.

    Signals stay blocked until the first :func:`raised` block, also in threads that imports start before it.
    """
    global _installed  # noqa: PLW0603  # a process has one set of signal handlers
    if _installed is not None or not _main_thread():
        return
    _installed = _Interrupts(fragile(sys._getframe()))
    reinstall()
    _silence(_installed)
    _mask(signal.SIG_BLOCK)
    reads, writes = socket.socketpair()
    writes.setblocking(False)
    # The C handler writes here at once, so the watcher sees a signal that the main thread cannot handle yet.
    signal.set_wakeup_fd(writes.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(_installed, reads), name="interrupts", daemon=True).start()


def reinstall() -> None:
    """Install the handlers again after a library has replaced them (Ray does, for SIGTERM)."""
    if _installed is None or not _main_thread():
        return
    for number in SIGNALS:
        # Commands started with nohup, or in the background of a script, ignore some signals on purpose.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _installed.handle)


def installed() -> bool:
    """True after :func:`install`."""
    return _installed is not None


def caught() -> bool:
    """True if a signal has interrupted the command."""
    return _installed is not None and _installed.raised_at is not None


@contextmanager
def raised() -> Iterator[None]:
    """Let signals raise ``KeyboardInterrupt`` inside the block; outside such a block they never do."""
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
    """Delay signals, and interrupts of an :class:`~rayddl.threads.Interruptible`, until the end of the block."""
    state = _installed if _main_thread() else threads.mine()
    if state is None:
        yield
        return
    state.hold()
    try:
        yield
    finally:
        state.release()
    state.act()


def check() -> None:
    """Raise a received signal here, also inside :func:`held`: for waits that may be interrupted."""
    state = _installed if _main_thread() else None
    if state is None:
        return
    held_before, state.held = state.held, 0
    try:
        # A blocked signal is delivered here.
        masked_before = _mask(signal.SIG_UNBLOCK)
        _mask(signal.SIG_SETMASK, masked_before)
        state.act()
    finally:
        state.held = held_before


@contextmanager
def unheard() -> Iterator[None]:
    """Mask signals inside the block; threads and processes that are started in it never receive them."""
    if _installed is None:
        yield
        return
    before = _mask(signal.SIG_BLOCK)
    try:
        yield
    finally:
        _mask(signal.SIG_SETMASK, before)


def react() -> None:
    """Mark the interrupt of this thread as handled, so that it is not raised again."""
    state = threads.mine() or _installed
    if state is not None:
        state.reacted = True


@contextmanager
def noticed(call: Call) -> Iterator[None]:
    """Call ``call`` as soon as the command is interrupted inside the block."""
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
    """Call ``call``, from any thread, if the process is ended inside the block."""
    remove = add_last(call)
    try:
        yield
    finally:
        remove()


def add_last(call: Call) -> Call:
    """Call ``call`` just before an interrupted process ends; returns a function that cancels this."""
    state = _installed
    if state is None:
        return lambda: None
    state.lasts.append(call)

    def remove() -> None:
        with suppress(ValueError):
            state.lasts.remove(call)

    return remove


def afterwards(call: Call) -> None:
    """Let :func:`finish` call ``call``: for slow clean-up after the last message of the command."""
    if _installed is not None:
        _installed.afterwards.append(call)


def finish(seconds: float) -> None:
    """Run the clean-up registered with :func:`afterwards`; the process is ended after ``seconds``.

    Output is discarded from here on, because interrupted libraries print errors.
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
    """End the interrupted process at once, so that no library's exit handler changes its exit code."""
    state = _installed
    for call in list(state.lasts) if state is not None else []:
        with suppress(Exception):
            call()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(EXIT_CODE)


def ignore() -> None:
    """Ignore the three signals from now on: the command has ended with a known exit code."""
    if _installed is not None and _main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _mask(how: int, which: Iterable[int] = SIGNALS) -> set[int]:
    """Change the calling thread's signal mask and return the previous one; empty on systems without masks."""
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
            # Not interrupt_main, which does not make a blocking call of the main thread return.
            signal.pthread_kill(threading.main_thread().ident or 0, ours[0])


def _leave_terminal() -> None:
    """Discard output if the terminal is closed, where every printed line would raise."""
    for descriptor in (1, 2):
        if _terminal_error(descriptor) == errno.EIO:
            _to_devnull(descriptor)


def _to_devnull(descriptor: int) -> None:
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, descriptor)
    os.close(devnull)


def _terminal_error(descriptor: int) -> int:
    """Return the error number of reading a terminal's settings: ``EIO`` if it is closed, 0 if it is open."""
    import termios  # a system without it has no SIGHUP either

    try:
        termios.tcgetattr(descriptor)
    except termios.error as error:
        return int(error.args[0])
    return 0


def _silence(state: _Interrupts) -> None:
    """Suppress tracebacks of threads and destructors once the command is interrupted."""
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
