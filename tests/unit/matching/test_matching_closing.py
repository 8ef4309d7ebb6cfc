"""What the line of a matching says when the stage ends."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayddl.data.config import SourceConfig
from rayddl.stages.context import Context, Silent
from rayddl.stages.match import stage
from rayddl.stages.match.short_evaluations import newest
from rayddl.stages.match.worker import MatchProgress
from rayddl.storage import Folder


class _Short:
    """Short evaluations of which the last one ends after the last iteration."""

    def __init__(self, *_: object) -> None:
        self.shown = "  accuracy 41.7 %"

    def latest(self) -> str:
        return self.shown

    def finish(self) -> list[tuple[int, int, float]]:
        self.shown = "  accuracy 33.3 %"
        return [(200, 0, 0.417), (300, 0, 0.333)]

    def close(self) -> None: ...


class _Shown(Silent):
    """Keeps the last figures."""

    last = ""

    def update(self, done: float, total: float, metric: str = "") -> None:
        del done, total
        self.last = metric or self.last


def test_the_closing_line_has_the_accuracy_of_the_last_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the summary and the page have it, also if that evaluation ends after the loop."""
    where = MatchProgress(300, 0.5, 0.02, 0, 0, None)
    source = SimpleNamespace(shape=(1, 8, 8), classes=("a", "b"))
    made = SimpleNamespace(save=lambda _: None)
    summary: dict[str, Any] = {}
    for name, value in {
        "prepared": lambda *_: (SimpleNamespace(net=None, source=source), None),
        "has_batch_norm": lambda *_: False,
        "ShortEvaluations": _Short,
        "_at_work": lambda *_: nullcontext(SimpleNamespace(keep=_Remote(), rows=_Remote(), pause=_Remote())),
        "_distil": lambda *_: where,
        "_typed": lambda rows: rows,
        "made_of": lambda *_: made,
        "_summary": lambda *_: summary,
    }.items():
        monkeypatch.setattr(stage, name, value)
    monkeypatch.setattr(stage.groups, "opened", lambda *_: nullcontext())
    monkeypatch.setattr(stage.workers, "get", lambda *_: {})
    monkeypatch.setattr(stage.tables, "write", lambda *_: None)
    monkeypatch.setattr(stage.matcher, "read_snapshot", lambda *_: None)
    shown = _Shown()
    context = Context(
        "distill",
        SourceConfig(name="digits"),
        0,
        Folder(str(tmp_path)),
        {},
        {},
        shown,
        backend=SimpleNamespace(start=lambda: None),  # type: ignore[arg-type]  # all that the stage uses here
    )
    config: Any = SimpleNamespace(iterations=300)

    stage.run(config, context)

    assert shown.last == "loss 0.500  lr 0.0200  accuracy 33.3 %"


def test_the_last_accuracy_is_the_mean_over_its_seeds() -> None:
    """As on the page; earlier iterations, whatever their seeds, are left out."""
    assert newest([(200, 0, 0.9), (300, 1, 0.2), (300, 0, 0.4)]) == pytest.approx(0.3)


class _Remote:
    """A method of an actor."""

    def remote(self, *_: object) -> None:
        """Does nothing."""
