"""What fits on a cluster's nodes, and on those that may come."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayddl.errors import StageError, UserError
from rayddl.stages.runtime import capacity, cluster, sizes
from rayddl.stages.runtime.capacity import Capacity, Group
from rayddl.stages.runtime.sizes import Ask, Resources

SIZES = st.lists(st.integers(0, 64).map(float), min_size=1, max_size=6)
GPUS = Group(4, {"CPU": 8.0, "GPU": 1.0})


def of(*cpus: float, groups: tuple[Group, ...] = ()) -> Capacity:
    return Capacity(tuple({"CPU": value} for value in cpus), groups)


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch):
    """Lets a test say what the cluster has, now and at each later look; what is held is written down."""

    def say(*looks: Capacity) -> list[Any]:
        left, held = list(looks), []
        monkeypatch.setattr(cluster, "capacity_now", lambda: left.pop(0) if len(left) > 1 else left[0])
        monkeypatch.setattr(cluster, "held", lambda bundles, what: held.append(list(bundles)) or what)
        groups = importlib.import_module("ray.util.placement_group")
        monkeypatch.setattr(groups, "remove_placement_group", held.append)
        monkeypatch.setattr(cluster, "POLL_SECONDS", 0.0)
        monkeypatch.setattr(cluster, "QUIET_SECONDS", 0.0)
        return held

    yield say
    cluster.configure()


def asking(key: str = "resources", together: int = 1, **resources: Any) -> Any:
    """What a stage of these resources asks for."""

    def asks(have: Capacity) -> list[Ask]:
        share = sizes.together(Resources(**resources), have, workers=together)
        return [Ask(key, share, together=together > 1)]

    return asks


@given(SIZES, st.integers(1, 9), st.sampled_from([0.5, 1.0, 4.0, 100.0]))
def test_a_part_fits_as_often_as_it_is_asked_for(sizes: list[float], units: int, most: float) -> None:
    """So many shares fit on the nodes, none is above the most, and none is split over nodes."""
    have = of(*sizes)
    part = have.part("CPU", units, most)
    assert 0 <= part <= most
    assert (part > 0) == (max(sizes) > 0)
    if part:
        assert sum(int(size / part + 1e-9) for size in sizes) >= units


def test_a_part_uses_nodes_as_well_as_may_be() -> None:
    """Three workers on nodes of one CPU each: two fit on one of them only at half a CPU."""
    assert of(1, 1).part("CPU", 3, 1.0) == 0.5
    assert of(2).part("CPU", 3, 1.0) == 0.666
    assert of(4, 4).part("CPU", 2, 9.0) == 4.0


def test_what_is_split_over_nodes_does_not_fit() -> None:
    """Eight CPUs on two nodes are not eight CPUs for one worker."""
    have = of(4, 4)
    assert have.total("CPU") == 8
    assert not have.may_hold({"CPU": 8})
    assert have.fits({"CPU": 3}) == 2


def test_nodes_to_come_count() -> None:
    """A head without CPUs and groups that may come: they hold what it does not, and set how much runs at once."""
    have = of(0, groups=(GPUS, Group(2, {"CPU": 16.0})))
    assert not have.holds({"CPU": 8, "GPU": 1})
    assert have.may_hold({"CPU": 8, "GPU": 1})
    assert not have.may_hold({"CPU": 9, "GPU": 1})
    assert have.fits({"CPU": 1, "GPU": 0.25}) == 16
    assert (have.total("CPU"), have.largest("CPU")) == (64, 16)
    assert str(have) == "nodes: 0 CPU, 0 GPU, 0 memory; to come at most: 4xCPU:8,GPU:1, 2xCPU:16"


def test_groups_are_read_back_as_written() -> None:
    """What a group is written as means that group; anything else is refused with an example."""
    assert capacity.parse(str(GPUS)) == GPUS
    for text in ("", "CPU:8", "4xCPU", "4xCPU:8;GPU:1", "-1xCPU:8"):
        with pytest.raises(UserError) as caught:
            capacity.parse(text)
        assert str(caught.value) == (
            f"--grows {text!r} is not a group of nodes; expected how many at most and what each has, as in "
            "4xCPU:8,GPU:1"
        )


def test_the_launchers_head_knows_what_may_come(tmp_path: Path) -> None:
    """On a head that Ray's launcher made its groups count, without the head; elsewhere there are none."""
    root = Path(__file__).resolve().parents[3]
    found = capacity.launched(str(root / "cluster.yaml"))
    assert Group(8, {"CPU": 8.0, "GPU": 1.0}) in found
    assert all(group.resources != {"CPU": 0.0} for group in found)
    assert capacity.launched(str(tmp_path / "none.yaml")) == ()


def test_a_worker_that_fits_nowhere_is_refused_by_its_stage(have) -> None:
    """The message says what was asked, what there is and what to change; nothing is waited for."""
    held = have(of(4, 2))
    with pytest.raises(StageError) as caught:
        cluster.require({"a": asking(), "b": asking(num_cpus=8)})
    assert str(caught.value) == (
        "stage 'b': one worker asks for 8 CPU, and no node has that (nodes: 4 CPU, 0 GPU, 0 memory; 2 CPU, 0 GPU, "
        "0 memory). Lower the stage's resources, or add a node that has them."
    )
    with pytest.raises(StageError, match="stage 'c': one of its decoders asks for 1 CPU, 1e\\+12 memory"):
        cluster.require({"c": asking("decoders", num_cpus=1, memory=10**12)})
    with pytest.raises(StageError) as caught:
        cluster.require({"d": asking(together=4, num_cpus=2)})
    assert str(caught.value) == (
        "stage 'd': 4 workers run together at 2 CPU and 0 GPU each. That takes 2 CPU in 4 places, and the cluster has "
        "3 of them (nodes: 4 CPU, 0 GPU, 0 memory; 2 CPU, 0 GPU, 0 memory). Lower the stage's workers or its "
        "resources, or add nodes."
    )
    assert held == []


def test_a_node_that_may_come_is_waited_for(have) -> None:
    """Autoscalers see a group of the run's own, the person reads why, and the group ends when the node is there."""
    notes: list[str] = []
    empty = of(0, groups=(GPUS,))
    held = have(*[empty] * 4, Capacity(({"CPU": 8.0, "GPU": 1.0},), (GPUS,)))
    cluster.wait_for({"CPU": 1.0, "GPU": 1.0}, notes.append)
    assert held == [[{"CPU": 1.0, "GPU": 1.0}], "node"]
    assert notes == ["waiting for a node with 1 CPU, 1 GPU, 0 min: the autoscaler is asked for one"]


def test_a_node_that_is_there_is_not_waited_for(have) -> None:
    """However busy it is: what work on it waits for is said by whoever has the work."""
    held = have(of(4))
    cluster.wait_for({"CPU": 4.0})
    assert held == []


def test_waiting_has_an_end(have, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that never comes ends the run, with what keeps the autoscaler to be looked up."""
    monkeypatch.setattr(cluster, "WAIT_SECONDS", -1.0)
    held = have(of(0, groups=(GPUS,)))
    with pytest.raises(
        StageError, match=r"no node with 1 CPU, 1 GPU came within .*; to come at most: 4xCPU:8,GPU:1"
    ):
        cluster.wait_for({"CPU": 1.0, "GPU": 1.0})
    assert held[-1] == "node"


def test_what_others_hold_is_waited_for_without_end(have, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs on one cluster: the second says what it waits for, and goes on waiting."""
    monkeypatch.setattr(cluster, "WAIT_SECONDS", -1.0)
    monkeypatch.setattr(cluster, "_free", lambda needs: "0 of 4 CPU free")
    have(of(4))
    notes: list[str] = []
    cluster.Waiting({"CPU": 2.0}, notes.append).look()
    assert notes == ["waiting for 2 CPU, 0 min: other work holds it (0 of 4 CPU free)"]
