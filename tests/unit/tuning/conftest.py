"""A function whose best settings are known, as trials: cheap, exact, and with a state like a real stage's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from rayddl.errors import DivergedError
from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.space import Entry
from rayddl.stages.tune.trial import TrialTask, Work
from rayddl.storage import Folder

STOPS = (2, 4, 6, 8, 10, 12, 14, 16, 18)
BEST = {"lr": 0.03, "mix": 0.7, "steps": 12}


def height(settings: Mapping[str, Any]) -> float:
    """1 at the best settings, and less with the distance from them."""
    lr = (math.log10(settings["lr"]) - math.log10(BEST["lr"])) / 1.2
    mix, steps = (settings["mix"] - BEST["mix"]) / 0.35, (settings["steps"] - BEST["steps"]) / 9
    return math.exp(-(lr**2 + mix**2 + steps**2))


@dataclass
class KnownTrial:
    """Climbs to :func:`height`, a little less quickly with every iteration."""

    task: TrialTask
    calls: list[tuple[int, int]]
    at: int = 0
    trace: list[int] = field(default_factory=list)

    def reach(self, until: int) -> Mapping[str, float]:
        self.calls.append((self.task.number, until))
        self.trace += range(self.at + 1, until + 1)
        self.at = until
        if self.task.settings.get("lr", 0) > 0.9:
            raise DivergedError("the loss is nan", code="for-a-test")
        if self.task.settings.get("mix") == 0.123:
            return {"accuracy": math.nan}
        if self.task.settings.get("mix") == 0.321:
            raise ZeroDivisionError("a bug")
        return {
            "accuracy": height(self.task.settings) * (1 - 0.5 ** (until / 2)),
            "steps_done": len(self.trace),
        }

    def save(self) -> bytes:
        return json.dumps({"at": self.at, "trace": self.trace}).encode()

    def load(self, data: bytes) -> None:
        found = json.loads(data)
        self.at, self.trace = found["at"], found["trace"]

    def leave(self) -> None:
        self.task.folder.child("made").write_json("trace.json", self.trace)


@dataclass
class Known:
    """Makes them, and remembers every call."""

    calls: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, task: TrialTask) -> KnownTrial:
        return KnownTrial(task, self.calls)

    def held_out(self, task: TrialTask, seed: int) -> float:
        return height(task.settings) - 0.001 * seed

    def pinned(self, settings: Mapping[str, Any], iteration: int) -> Mapping[str, Any]:
        del settings, iteration
        return {}


SPACE = {
    "lr": Entry(loguniform=(1e-4, 1.0)),
    "mix": Entry(uniform=(0.0, 1.0)),
    "steps": Entry(randint=(1, 30)),
}


@pytest.fixture
def search() -> Callable[..., Search]:
    """Makes a search of the known function."""

    def make(**changes: Any) -> Search:
        base = {"lr": 0.001, "mix": 0.2, "steps": 4}
        settings = {
            "space": SPACE, "base": base.get, "metric": "accuracy", "mode": "max", "samples": 12, "stops": STOPS,
            "searcher": "random", "scheduler": "none", "grace": 1, "reduction": 3, "seed": 0,
        }  # fmt: skip
        return Search(**{**settings, **changes})

    return make


@pytest.fixture
def known() -> type[Known]:
    """The function's trials."""
    return Known


@pytest.fixture
def work(search: Callable[..., Search], tmp_path: Any) -> Callable[..., Work]:
    """Makes what the workers of a search are sent, with trials of the known function."""

    def make(**changes: Any) -> Work:
        return Work(search(**changes), Known(), Folder(str(tmp_path)), 1)

    return make
