"""Where tasks without CPUs run, and what becomes of those of a lost node."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

ray = pytest.importorskip("ray")

from rayddl.stages.runtime import nodes, unreserved  # noqa: E402
from rayddl.stages.runtime.nodes import Node  # noqa: E402
from tests.raising import raises  # noqa: E402

HEAD, SMALL, LARGE, GPUS = (
    Node(name, name, name, resources)
    for name, resources in (
        ("head", {"CPU": 0.0}), ("small", {"CPU": 1.0}), ("large", {"CPU": 3.0}), ("gpus", {"GPU": 2.0}),
    )
)  # fmt: skip


def test_nodes_have_a_seat_for_each_cpu() -> None:
    """The head has none, unless there is nothing else."""
    assert unreserved.seats([HEAD, SMALL, LARGE, GPUS]) == [SMALL, LARGE, LARGE, LARGE]
    assert unreserved.seats([HEAD, GPUS]) == [GPUS]
    assert unreserved.seats([HEAD]) == [HEAD]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for Ray: where each task was sent, and the errors that the next ones raise."""
    found = SimpleNamespace(sent=[], errors=[])

    def remote(function: Any) -> Any:
        def options(num_cpus: float, scheduling_strategy: Any, name: str) -> Any:
            assert num_cpus == 0
            found.sent.append(scheduling_strategy.node_id)
            return SimpleNamespace(remote=lambda *args: (function, args))

        return SimpleNamespace(options=options)

    def get(ref: Any) -> Any:
        if found.errors:
            raise found.errors.pop(0)
        return ref[0](*ref[1])

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(nodes, "alive", lambda: (HEAD, SMALL, LARGE))
    return found


def test_the_task_of_a_lost_node_runs_on_another(
    cluster: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was there or was to be sent there."""
    strategies = pytest.importorskip("ray.util.scheduling_strategies")
    monkeypatch.setattr(
        strategies, "NodeAffinitySchedulingStrategy", lambda node_id, soft: SimpleNamespace(node_id=node_id)
    )
    cluster.errors = [
        ray.exceptions.NodeDiedError("gone"),
        ray.exceptions.TaskUnschedulableError("no such node"),
    ]
    assert unreserved.results(lambda k: 2 * k, [(k,) for k in range(3)], "sum") == [0, 2, 4]
    assert cluster.sent == ["small", "large", "large", "small", "small"]
    cluster.errors = [ray.exceptions.NodeDiedError("gone")] * 6
    with raises("worker-lost"):
        unreserved.results(lambda k: k, [(0,)], "sum")
