"""Interrupts of other threads than the main one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from rayddl import interrupts, threads
from rayddl.threads import Interruptible

PATIENCE = 20.0


def ended(thread: Interruptible) -> None:
    """Interrupt the thread until it ends."""
    deadline = time.monotonic() + PATIENCE
    while thread.is_alive() and time.monotonic() < deadline:
        thread.interrupt()
        thread.join(0.02)
    assert not thread.is_alive()


def started(work: Callable[[threading.Event], None]) -> Interruptible:
    """A thread that is in the middle of its work."""
    ready = threading.Event()
    thread = Interruptible(lambda: work(ready), "work")
    thread.start()
    assert ready.wait(PATIENCE)
    return thread


def forever() -> None:
    while True:
        time.sleep(0.005)


def test_raised_once() -> None:
    """The exception ends the work; a clean-up that takes its time is not interrupted again."""
    said: list[str] = []

    def work(ready: threading.Event) -> None:
        try:
            ready.set()
            forever()
        except KeyboardInterrupt:
            time.sleep(0.3)
            said.append("clean")
            raise

    ended(started(work))
    assert said == ["clean"]


def test_held() -> None:
    """A held block is finished first, and the exception is raised at its end."""
    said: list[str] = []

    def work(ready: threading.Event) -> None:
        with interrupts.held():
            ready.set()
            time.sleep(0.3)
            with interrupts.held():
                time.sleep(0.1)
            said.append("whole")
        said.append("not reached")

    ended(started(work))
    assert said == ["whole"]


def test_reacted(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reaction it is not raised again, however often it is asked for."""
    monkeypatch.setattr(threads, "LOST_SECONDS", 0.05)
    said: list[str] = []

    def work(ready: threading.Event) -> None:
        try:
            ready.set()
            forever()
        except KeyboardInterrupt:
            interrupts.react()
        time.sleep(0.3)
        said.append("whole")

    thread = started(work)
    ended(thread)
    assert thread.reacted
    assert said == ["whole"]


def test_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that was swallowed is raised again."""
    monkeypatch.setattr(threads, "LOST_SECONDS", 0.1)
    caught: list[int] = []

    def work(ready: threading.Event) -> None:
        try:
            ready.set()
            forever()
        except KeyboardInterrupt:
            caught.append(1)
        forever()

    ended(started(work))
    assert caught == [1]


def test_not_in_a_destructor() -> None:
    """In a destructor, where it would be swallowed, it is not raised."""
    said: list[str] = []

    class Slow:
        def __init__(self, ready: threading.Event) -> None:
            self.ready = ready

        def __del__(self) -> None:
            self.ready.set()
            time.sleep(0.3)
            said.append("destroyed")

    def work(ready: threading.Event) -> None:
        slow = Slow(ready)
        del slow
        forever()

    ended(started(work))
    assert said == ["destroyed"]


def test_the_main_thread_is_left_alone() -> None:
    """A reaction in a thread does not mark the interrupt of another one as handled."""
    first, second = (
        started(lambda ready: (ready.set(), forever())[1]),
        started(  # type: ignore[func-returns-value]
            lambda ready: (ready.set(), forever())[1]  # type: ignore[func-returns-value]
        ),
    )
    ended(first)
    assert second.is_alive()
    ended(second)
