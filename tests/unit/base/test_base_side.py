"""What is global to the driver's process, while stages run in several of its threads."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from rayddl.data.config import SourceConfig
from rayddl.data.pixels.decode import pil_warnings
from rayddl.nets import build
from rayddl.nets.config import NetConfig
from rayddl.stages.runtime import cluster, metrics, room, slots, sources, workers
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.room import Lease
from rayddl.stages.runtime.sizes import Ask, Share

PATIENCE = 20.0


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    """A thread that has started ``work``."""
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def limited(share: Share, parts: int, wanted: int) -> Lease:
    """A lease of some parts."""
    return Lease([Ask("resources", share)], [parts], [wanted])


def test_metrics_are_tagged_with_the_stage_of_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage's units in flight are not those of the stage that reported last."""
    sent: list[tuple[str, str, float]] = []

    class Gauge:
        def __init__(self, name: str, **_: Any) -> None:
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            sent.append((tags["stage"], self.name, value))

    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    monkeypatch.setattr(metrics, "_gauges", metrics._Gauges())
    progress = {"done": 1, "total": 2, "rate": None}
    cluster.observe("run", "experts", progress)
    in_thread(lambda: cluster.observe("run", "teacher", progress)).join(PATIENCE)
    metrics.depth(3, 4)
    assert sent[-2:] == [("experts", "rayddl_units_in_flight", 3.0), ("experts", "rayddl_units_queued", 4.0)]


def test_networks_are_drawn_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's generator is global: two threads that draw from it at once would draw other parameters."""
    config, real = NetConfig(name="mlp", depth=1), build.BUILDERS["mlp"]
    alone = [build.initial(config, (1, 4, 4), 2, seed=seed) for seed in (1, 2)]
    found: dict[int, torch.Tensor] = {}
    began = threading.Event()

    def slow(*given: Any) -> Any:
        began.set()
        time.sleep(0.2)
        return real(*given)

    monkeypatch.setitem(build.BUILDERS, "mlp", slow)

    def draw(seed: int) -> None:
        found[seed] = build.initial(config, (1, 4, 4), 2, seed=seed)

    first = in_thread(lambda: draw(1))
    assert began.wait(PATIENCE)
    second = in_thread(lambda: draw(2))
    for thread in (first, second):
        thread.join(PATIENCE)
    assert all(found[seed].equal(alone[seed - 1]) for seed in (1, 2))


def test_a_source_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that start together share one copy of the images."""
    loaded: list[str] = []
    split = SimpleNamespace(classes=("a",), shape=(1, 4, 4), labels=[0])

    def load(config: SourceConfig) -> Any:
        loaded.append(config.name)
        time.sleep(0.2)
        return SimpleNamespace(train=split, test=split, fingerprint="f", bad=(), notes=())

    monkeypatch.setattr(sources, "_published", {})
    monkeypatch.setattr(sources, "_key", lambda config, **_: "key")
    monkeypatch.setattr(sources, "_put", lambda split: (None, None))
    monkeypatch.setattr(sources.sources, "load", load)
    config = SourceConfig(name="digits")
    for thread in [in_thread(lambda: sources.publish(config)) for _ in range(3)]:
        thread.join(PATIENCE)
    assert loaded == ["digits"]


def test_warning_filters_of_two_threads() -> None:
    """Filters hold until the last of two blocks that overlap, and then are what they were."""
    before = list(warnings.filters)
    one, other = pil_warnings(), pil_warnings()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    warnings.warn("large", Image.DecompressionBombWarning, stacklevel=1)
    other.__exit__(None, None, None)
    with pytest.raises(Image.DecompressionBombWarning):
        warnings.warn("large", Image.DecompressionBombWarning, stacklevel=1)
    assert list(warnings.filters) == before


def test_slots_grow_with_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage reserves as many slots as its lease has, and further ones when the lease grows."""
    reserved: list[Any] = []
    monkeypatch.setattr(cluster, "held", lambda bundles, what: reserved.append(bundles) or SimpleNamespace())
    share = Share(1.0, 1.0, None, 4, gpus=4)
    lease = limited(share, 2, 4)
    with room.of_stage(lease):
        made = slots.Slots(share, "experts", None, lambda text: None, room.limit())
    assert len(reserved) == 2
    lease.parts[0] = 3
    made._reserve()
    made._reserve()
    assert len(reserved) == 3
    lease.parts[0] = 4
    made._reserve()
    assert reserved == [[needs] for needs in share.slots]


def test_tasks_in_flight_follow_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more units run at once than the lease has workers, whatever the stage alone could have."""
    share, depths = Share(1.0, 0.0, None, 8), list[int]()
    lease = limited(share, 2, 8)
    monkeypatch.setattr(cluster, "wait_for", lambda needs: None)
    monkeypatch.setattr(metrics, "depth", lambda running, waiting: depths.append(running))
    monkeypatch.setattr(workers, "_finished", lambda running: list(running)[:1])
    monkeypatch.setattr("ray.get", lambda ref: ref)

    class Tasks:
        def __init__(self, share: Share) -> None:
            self.count = 0

        def begin(self, work: Any, name: str) -> int:
            self.count += 1
            return self.count

        def end(self, ref: Any, *, lost: bool) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr(workers, "_Tasks", Tasks)
    with room.of_stage(lease), workers.opened(share, "students") as free:
        for done, _ in enumerate(free.each(range(10), lambda unit: (print,), str), 1):
            if done == 5:
                lease.parts[0] = 4
    assert max(depths[:5]) == 2
    assert max(depths) == 4


def test_work_that_can_be_left_out_is_never_refused() -> None:
    """A cluster without a CPU for short evaluations can run the match."""
    have = Capacity(({"CPU": 1.0},))
    spare = Ask("short evaluations", Share(4.0, 0.0, None, 1), least=0)
    cluster.require({"match": lambda _: (spare,)}, have)
