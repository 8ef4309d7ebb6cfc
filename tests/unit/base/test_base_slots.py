"""Workers on GPUs, with stand-ins for Ray's actors: GPUs on which two units do not fit, and workers that are lost."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ray = pytest.importorskip("ray")

from rayddl.stages.runtime import cluster, slots, workers  # noqa: E402
from rayddl.stages.runtime.capacity import Capacity  # noqa: E402
from rayddl.stages.runtime.sizes import Share  # noqa: E402
from tests.raising import raises  # noqa: E402


class Ref:
    """The result of a call, which is there once it is asked for."""

    def __init__(self, value: Any) -> None:
        self.value, self.done = value, False


class Gpu:
    """Where units run; it has memory for ``room`` of them at once."""

    def __init__(self, room: int) -> None:
        self.room, self.running, self.most = room, set[Ref](), list[int]()
        self.there = True
        self.faults: list[Exception] = []
        """What its next workers fail with before they have started."""

    def begin(self, value: Any) -> Ref:
        ref = Ref(value)
        if len(self.running) >= self.room:
            ref.value = ray.exceptions.RayTaskError(
                "unit", "Traceback", torch.OutOfMemoryError("CUDA out of memory.")
            )
        self.running.add(ref)
        self.most.append(len(self.running))
        return ref


class Actor:
    """A worker on a GPU."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.there = gpu, True
        self.fault = gpu.faults.pop() if gpu.faults else None
        self.place = SimpleNamespace(
            remote=lambda: Ref(self.fault or (("0",) if self.there else ray.exceptions.ActorDiedError()))
        )
        self.run = SimpleNamespace(options=lambda name: SimpleNamespace(remote=self._run))

    def _run(self, function: Any, *args: Any) -> Ref:
        return self.gpu.begin(function(*args)) if self.there else Ref(ray.exceptions.ActorDiedError())


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    """The GPUs of a cluster, in the order in which slots are reserved on them."""
    found: list[Gpu] = []
    free = iter(found)

    def held(bundles: Any, what: str) -> Any:
        gpu = next(free)
        return SimpleNamespace(gpu=gpu, wait=lambda seconds: gpu.there)

    def wait(refs: Sequence[Ref], num_returns: int = 1, timeout: float | None = None) -> Any:
        for ref in refs[:1]:  # the others go on
            ref.done = True
            for gpu in found:
                gpu.running.discard(ref)
        return [ref for ref in refs if ref.done], [ref for ref in refs if not ref.done]

    def get(ref: Ref) -> Any:
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    started = lambda self, slot: slots.Held(actor := Actor(slot.group.gpu), actor.place.remote())  # noqa: E731
    monkeypatch.setattr(cluster, "held", held)
    monkeypatch.setattr(slots.Slots, "_started", started)
    monkeypatch.setattr(slots, "SETTLE_SECONDS", -1.0)
    for name, stand_in in (
        ("wait", wait),
        ("get", get),
        ("kill", lambda actor: None),
        ("cancel", lambda *_, **__: None),
    ):
        monkeypatch.setattr(ray, name, stand_in)
    groups = importlib.import_module("ray.util.placement_group")
    monkeypatch.setattr(groups, "remove_placement_group", lambda group: None)
    return found


def test_units_that_do_not_fit_beside_each_other_run_alone(gpus: list[Gpu]) -> None:
    """Nothing is lost, a sentence says so once, and no two share a GPU from then on."""
    gpus += [Gpu(room=1), Gpu(room=1)]
    notes: list[str] = []
    with workers.opened(Share(1.0, 0.5, None, 4, gpus=2), "unit", note=notes.append) as free:
        found = [unit for unit, _ in free.each(range(20), lambda unit: (int, unit), str)]
    assert sorted(found) == list(range(20))
    assert notes == ["unit: one on a GPU from now on: several do not fit into its memory"]
    assert all(max(gpu.most) == 2 for gpu in gpus)
    assert all(set(gpu.most[-5:]) == {1} for gpu in gpus)


def test_a_unit_that_fits_on_no_gpu_says_what_to_change(gpus: list[Gpu]) -> None:
    """At once where nothing shares the GPU, and after a few tries where something may have."""
    for share, tries in ((Share(1.0, 1.0, None, 1, gpus=1), 1), (Share(1.0, 0.5, None, 2, gpus=1), 4)):
        gpus.append(Gpu(room=0))
        with workers.opened(share, "unit") as free, raises("gpu-out-of-memory"):
            list(free.each([0], lambda unit: (int, unit), lambda unit: "student 1"))
        assert len(gpus[-1].most) == tries


def test_what_shares_a_gpu_ends_before_another_unit_begins_there(gpus: list[Gpu]) -> None:
    """After a unit elsewhere lacked memory: a free worker beside one at work waits for its end."""
    gpus.append(Gpu(room=2))
    made = slots.Slots(Share(1.0, 0.5, None, 2, gpus=1), "unit", None, lambda text: None, lambda: 1)

    def begun(unit: int) -> Any:
        """Its reference, once a worker has started."""
        return next((ref for _ in range(5) if (ref := made.begin((int, unit), str(unit))) is not None), None)

    first, second = begun(0), begun(1)
    made.end(first, lost=False)
    assert made.thin()
    assert begun(2) is None
    made.end(second, lost=False)
    third = begun(2)
    assert third is not None
    assert begun(3) is None
    assert len(made._slots[0].workers) == 1
    made.end(third, lost=False)
    assert begun(3) is not None


def test_the_worker_that_tries_memory_ends_with_the_sharing(
    gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is the only one left of its GPU, which would be reserved for nothing."""
    gpus.append(Gpu(room=2))
    monkeypatch.setattr(slots.devices, "taken", lambda *need: (1, 1))
    made = slots.Slots(Share(1.0, 0.5, None, 2, gpus=1), "unit", (int, 0), lambda text: None, lambda: 1)
    (slot,) = made._slots
    while len(slot.workers) < 2:
        made._poll()
    first, trial = slot.workers
    assert trial.work is not None
    slot.workers.remove(first)
    made.thin()
    assert slot.workers == []


def test_one_worker_on_a_gpu_stays_one(gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
    """The measured memory allows no second one: none is started at a later look either."""
    gpus.append(Gpu(room=2))
    monkeypatch.setattr(slots.devices, "taken", lambda *need: (2, 1))
    notes: list[str] = []
    made = slots.Slots(Share(1.0, 0.5, None, 2, gpus=1), "unit", (int, 0), notes.append, lambda: 1)
    for _ in range(20):
        made._poll()
    assert ["unit: 1 on a GPU, not 2" in note for note in notes] == [True]
    assert len(made._slots[0].workers) == 1


def test_a_lost_worker_was_not_waited_for(gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
    """However long its unit ran, the time limit for a node to come begins with its loss."""
    gpus.append(Gpu(room=1))
    monkeypatch.setattr(cluster, "capacity_now", lambda: Capacity(()))
    notes: list[str] = []
    made = slots.Slots(Share(1.0, 1.0, None, 1, gpus=1), "unit", None, notes.append, lambda: 1)
    unit = next(ref for _ in range(5) if (ref := made.begin((int, 0), "0")) is not None)
    gpus[0].there = False
    made._waiting._began = made._waiting._next = time.monotonic() - 2 * cluster.WAIT_SECONDS
    made.end(unit, lost=True)
    assert made.begin((int, 0), "0") is None
    assert notes == []


@pytest.mark.parametrize(("count", "part"), [(7, 1.0), (1, 0.125)], ids=["own GPUs", "one GPU"])
def test_idle_workers_of_a_lost_node_are_given_no_unit(
    gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch, count: int, part: float
) -> None:
    """A unit is tried again five times; six lost workers beside its own would use them up before a node comes. They had
    started: those of one GPU are no failed starts of its slot.
    """
    gpus += [Gpu(room=7) for _ in range(count)]
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.0)
    looks = 0

    def come() -> None:
        nonlocal looks
        looks += 1
        gpus[0].there = looks > 20

    with workers.opened(Share(1.0, part, None, 7, gpus=count), "unit") as free:
        list(free.each(range(20), lambda unit: (int, unit), str))
        held = free._places._slots  # type: ignore[attr-defined]
        assert sum(len(slot.ready) for slot in held) == 7
        for slot in held:
            slot.group.gpu.there = False
            for worker in slot.workers:
                worker.actor.there = False
        assert list(free.each([7], lambda unit: (int, unit), str, come)) == [(7, 7)]


LOST = ray.exceptions.ActorDiedError()
NO_MODULE = ray.exceptions.RayTaskError(
    "Worker.__init__", "Traceback\nModuleNotFoundError: No module named 'numpy'", ModuleNotFoundError()
)


@pytest.mark.parametrize(
    ("fault", "code", "starts"),
    [
        (ray.exceptions.RuntimeEnvSetupError("no such wheel"), "environment-not-set-up", 1),
        (ray.exceptions.ActorDiedError.from_task_error(NO_MODULE), "worker-not-started", 1),
        (ray.exceptions.OutOfMemoryError("the node is full"), "out-of-memory", 4),
        (LOST, "worker-lost", 6),
    ],
    ids=["environment", "module", "memory", "lost"],
)
def test_a_worker_that_never_starts_ends_the_work(
    gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch, fault: Exception, code: str, starts: int
) -> None:
    """No unit is handed out, whose failure would say why: it would be started again for ever."""
    gpus.append(Gpu(room=1))
    gpus[0].faults = [fault] * 20
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.0)
    with workers.opened(Share(1.0, 1.0, None, 1, gpus=1), "students") as free, raises(code):
        list(free.each([0], lambda unit: (int, unit), str))
    assert len(gpus[0].faults) == 20 - starts


def test_only_lost_starts_in_a_row_in_one_slot_end_the_work(
    gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost node fails those of all its GPUs at once, and takes workers that had started."""
    gpus += [Gpu(room=1) for _ in range(7)]
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.0)
    with workers.opened(Share(1.0, 1.0, None, 7, gpus=7), "unit") as free:
        for _ in range(2):
            for slot in free._places._slots:  # type: ignore[attr-defined]
                slot.group.gpu.faults = [LOST] * 5
                for worker in slot.workers:
                    worker.actor.there = False
            assert len(list(free.each(range(7), lambda unit: (int, unit), str))) == 7
