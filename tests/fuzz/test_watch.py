"""The watch over a piece of work: what waits is told from what other processes keep from running."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fuzz import watch


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alarm every fifth of a second."""
    monkeypatch.setattr(watch, "WAITED", 0.2)
    monkeypatch.setattr(watch, "IDLE", 0.02)


@pytest.mark.usefixtures("impatient")
def test_what_waits_is_found(tmp_path: Path) -> None:
    """A read of a pipe that nobody writes to would wait for ever."""
    with pytest.raises(AssertionError), watch.bounded(tmp_path):
        time.sleep(10)
    assert watch.WATCH.seen[0].startswith("waits: ")


@pytest.mark.usefixtures("impatient")
def test_what_other_processes_keep_from_running_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine work gets hardly any of the processor, although it could use it."""
    monkeypatch.setattr(watch, "_kept_waiting", time.monotonic)
    with watch.bounded(tmp_path):
        time.sleep(0.7)
