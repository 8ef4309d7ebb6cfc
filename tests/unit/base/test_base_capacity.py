"""What fits on a cluster's nodes, and on those that may come."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rayddl.errors import StageError, UserError
from rayddl.stages.runtime import capacity, cluster, sizes, workers
from rayddl.stages.runtime.capacity import HEAD, Capacity, Group
from rayddl.stages.runtime.sizes import Ask, Resources
from tests.raising import raises

SIZES = st.lists(st.integers(0, 64).map(float), min_size=1, max_size=6)
GPUS = Group(4, {"CPU": 8.0, "GPU": 1.0})

# Few sizes, so that present nodes are often alike one another, the head and the groups' nodes.
NODES = st.sampled_from([{"CPU": 2.0}, {"CPU": 8.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0, "GPU": 8.0}])
CAPACITIES = st.builds(
    lambda head, nodes, groups: Capacity(tuple([{**n, HEAD: 1.0} for n in head] + nodes), tuple(groups)),
    st.lists(NODES, max_size=1),
    st.lists(NODES, max_size=6),
    st.lists(st.builds(Group, st.integers(0, 4), NODES), max_size=3),
)


def size(node: Mapping[str, float]) -> tuple[float, float]:
    return node.get("CPU", 0.0), node.get("GPU", 0.0)


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


@given(CAPACITIES)
def test_what_there_can_be_is_what_there_is_and_the_rest_of_the_groups(have: Capacity) -> None:
    """Of each size of node there can be at most the present ones, or the groups' and the head."""
    present = Counter(size(node) for node in have.nodes if HEAD not in node)
    grown = Counter({size(group.resources): 0 for group in have.groups})
    for group in have.groups:
        grown[size(group.resources)] += group.most
    expected = present | grown
    expected += Counter(size(node) for node in have.nodes if HEAD in node)
    assert Counter(map(size, have.most)) == expected
    for name in ("CPU", "GPU"):
        assert have.total(name) == sum(node.get(name, 0) for node in have.most)
        assert have.largest(name) == max((node.get(name, 0) for node in have.most), default=0)


@given(CAPACITIES, st.data())
def test_a_node_that_comes_changes_nothing_of_what_there_can_be(have: Capacity, data: st.DataObject) -> None:
    """Shares and how many run at once stay equal while an autoscaler brings the groups' nodes one by one."""
    left = list(have.most[len(have.nodes) :])
    later = have
    while left:
        came = left.pop(data.draw(st.integers(0, len(left) - 1)))
        # Ray adds these to what the group says.
        node = {**came, "memory": 3e10, "node:10.0.0.7": 1.0, "accelerator_type:L4": 1.0}
        later = Capacity((*later.nodes, node), have.groups)
        assert Counter(map(size, later.most)) == Counter(map(size, have.most))
        assert later.fits({"CPU": 2}) == have.fits({"CPU": 2})
        assert later.part("CPU", 3, 4.0) == have.part("CPU", 3, 4.0)
    assert len(later.nodes) == len(have.most)


def test_large_nodes_to_come_count_on_a_cluster_of_more_small_ones() -> None:
    """Two nodes of 64 CPUs may come to five of 2 CPUs: all seven count, and none of the five is a group's."""
    have = of(2, 2, 2, 2, 2, groups=(Group(2, {"CPU": 64.0}),))
    assert len(have.most) == 7
    assert (have.total("CPU"), have.largest("CPU")) == (138, 64)
    assert have.fits({"CPU": 32}) == 4
    assert have.part("CPU", 2, 64.0) == 64.0


def test_more_nodes_present_than_their_group_allows() -> None:
    """Five nodes of a group of four at most: none is still to come, and none of the five is left out."""
    have = Capacity(tuple({"CPU": 8.0, "GPU": 1.0} for _ in range(5)), (GPUS, Group(2, {"CPU": 16.0})))
    assert have.most[:5] == have.nodes
    assert (have.total("GPU"), have.total("CPU")) == (5, 72)


def test_a_head_with_cpus_is_none_of_the_workers() -> None:
    """A head of the workers' own size adds to the workers that may come; so does one of another size."""
    alike = {"CPU": 8.0, "GPU": 1.0, HEAD: 1.0}
    assert Capacity((alike,), (GPUS,)).total("GPU") == 5
    assert of(4, groups=(GPUS,)).total("CPU") == 36


def test_what_asks_for_nothing_fits_on_any_node() -> None:
    """No number of workers without needs is too many, unless there is no node."""
    assert of(0).fits({}) == of(0, 2).fits({"CPU": 0.0}) == sys.maxsize
    assert of(1).holds({})
    assert of(groups=(GPUS,)).may_hold({})
    assert not of(groups=(GPUS,)).holds({})
    assert of().fits({}) == 0


@given(
    st.integers(0, 9),
    st.dictionaries(st.sampled_from(["CPU", "GPU", "memory"]), st.integers(0, 2**45).map(float), min_size=1),
)
def test_groups_are_written_in_full(most: int, resources: dict[str, float]) -> None:
    """Memory is in bytes, which have to come back as they were."""
    group = Group(most, resources)
    assert capacity.parse(str(group)) == group


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


def test_workers_of_the_heads_own_type_count(tmp_path: Path) -> None:
    """A head's type with a maximum of its own brings workers too; the head itself is not among them."""
    file = tmp_path / "ray_bootstrap_config.yaml"
    types = {"node": {"max_workers": 3, "resources": {"CPU": 8}}}
    file.write_text(yaml.safe_dump({"head_node_type": "node", "available_node_types": types}))
    assert capacity.launched(str(file)) == (Group(3, {"CPU": 8.0}),)


def test_a_worker_that_fits_nowhere_is_refused_by_its_stage(have) -> None:
    """The message says what was asked, what there is and what to change; nothing is waited for."""
    held = have(of(4, 2))
    with pytest.raises(StageError) as caught:
        cluster.require({"a": asking(), "b": asking(num_cpus=8)})
    assert str(caught.value) == (
        "stage 'b': one worker asks for 8 CPU, and no node has that (nodes: 4 CPU, 0 GPU, 0 memory; 2 CPU, 0 GPU, "
        "0 memory). Lower the stage's resources, or add a node that has them."
    )
    with raises("no-node-fits"):
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
    with raises("no-node-came"):
        cluster.wait_for({"CPU": 1.0, "GPU": 1.0})
    assert held[-1] == "node"


def test_what_others_hold_is_waited_for_without_end(have, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs on one cluster: the second says what it waits for, and goes on waiting."""
    monkeypatch.setattr(cluster, "WAIT_SECONDS", -1.0)
    monkeypatch.setattr(cluster, "_free", lambda needs: "0 of 4 CPU free")
    have(of(4))
    notes: list[str] = []
    cluster.Waiting({"CPU": 2.0}, notes.append).poll()
    assert notes == ["waiting for 2 CPU, 0 min: other work holds it (0 of 4 CPU free)"]


def test_workers_that_run_together_wait_for_all_their_places(have, monkeypatch: pytest.MonkeyPatch) -> None:
    """One node of four is no cluster whose GPUs others hold: the rest is asked for, and the wait ends."""
    monkeypatch.setattr(cluster, "_free", lambda needs: "0 of 2 GPU free")
    gpu, notes = {"CPU": 8.0, "GPU": 1.0}, list[str]()
    one, two = (Capacity((gpu,) * count, (GPUS,)) for count in (1, 2))
    have(one)
    cluster.Waiting(gpu, notes.append, 2).poll()
    have(two)
    cluster.Waiting(gpu, notes.append, 2).poll()
    held = have(*[one] * 4, two)
    cluster.wait_for(gpu, notes.append, 2)
    assert notes == [
        "waiting for nodes with 2 times 8 CPU, 1 GPU, 0 min: the autoscaler is asked for one",
        "waiting for 2 times 8 CPU, 1 GPU, 0 min: other work holds it (0 of 2 GPU free)",
        "waiting for nodes with 2 times 8 CPU, 1 GPU, 0 min: the autoscaler is asked for one",
    ]
    assert held == [[gpu, gpu], "node"]
    monkeypatch.setattr(cluster, "WAIT_SECONDS", -1.0)
    for nodes, largest in ((one, gpu), (two, {"CPU": 9.0, "GPU": 1.0})):
        have(nodes)
        with raises("no-node-came"):
            cluster.Waiting(gpu, notes.append, 2, largest).poll()


def test_tasks_whose_node_was_lost_wait_for_another_one(have, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said what they wait for, and the wait has an end; a node that can hold them ends it, however busy."""
    monkeypatch.setattr(workers, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "NOTE_SECONDS", 0.0)
    monkeypatch.setattr(workers, "_finished", lambda running: [])
    monkeypatch.setattr(workers, "cancel", lambda refs: None)
    monkeypatch.setattr(workers._Tasks, "begin", lambda *_: "a reference")
    notes: list[str] = []

    def noted(text: str) -> None:
        notes.append(text)
        if len(notes) == 2:
            monkeypatch.setattr(cluster, "WAIT_SECONDS", -1.0)

    # A look of its own, and one of what notes.
    have(of(2), of(2), of(1), of(1), of(2), of(1), of(1), of(1))
    share = sizes.Share(2.0, 0.0, None, 1)
    with raises("no-node-came"), workers.opened(share, "units", note=noted) as free:
        free.one((print,), "a unit")
    assert notes == ["waiting for a node with 2 CPU, 0 min: the autoscaler is asked for one"] * 2


def test_short_tasks_end_before_they_are_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends a process that cancels a task which ends just then; what takes longer is cancelled, by force."""
    told: list[Any] = []

    def wait(refs: list[str], *, num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        told.append((num_returns, timeout))
        return refs[:1], refs[1:]

    monkeypatch.setattr("ray.wait", wait)
    monkeypatch.setattr("ray.cancel", lambda ref, force: told.append((ref, force)))
    workers.cancel(["short", "long", "longer"])
    assert told == [(3, workers.SHORT_SECONDS), ("long", True), ("longer", True)]
    workers.cancel([])
    assert len(told) == 3


def test_the_launchers_limit_holds_for_each_group(tmp_path: Path) -> None:
    """Of all groups together no more nodes come than that."""
    file = tmp_path / "ray_bootstrap_config.yaml"
    types = {"head": {"resources": {"CPU": 0}}, "node": {"max_workers": 30, "resources": {"CPU": 8}}}
    file.write_text(yaml.safe_dump({"max_workers": 4, "available_node_types": types}))
    assert capacity.launched(str(file)) == (Group(4, {"CPU": 8.0}),)
