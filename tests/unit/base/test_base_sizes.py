"""What stages ask for: GPUs are spread before they are shared, and every worker fits a node that has its GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayddl.pipeline.definition import load as definition
from rayddl.stages.runtime import cluster, groups, sizes, streams
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.sizes import Ask, Resources, Share
from tests.raising import refused
from tests.unit.cluster_shapes import kuberay_shapes, launcher_shapes, small

ROOT = Path(__file__).resolve().parents[3]
PIPELINES = sorted((ROOT / "pipelines").glob("*.yaml"))
LAUNCHED, MANIFEST = cache(launcher_shapes), cache(kuberay_shapes)
SHAPES: dict[str, Callable[[], Capacity]] = {
    **{f"launcher {name}": lambda name=name: LAUNCHED()[name] for name in ("head", "one", "full")},
    **{f"kuberay {name}": lambda name=name: MANIFEST()[name] for name in ("head", "one", "full")},
    "small": small,
    "eight": lambda: Capacity(({"CPU": 64.0, "GPU": 8.0, "memory": 2.0**38},)),
    "laptop": lambda: Capacity(({"CPU": 2.0, "memory": 2.0**34},)),
}
ANY = Resources()
GPU_NODES = st.lists(
    st.tuples(st.integers(0, 32), st.integers(0, 8)).map(lambda n: {"CPU": float(n[0]), "GPU": float(n[1])}),
    min_size=1,
    max_size=6,
).filter(lambda nodes: any(n["GPU"] for n in nodes))


def of(count: int, cpus: float, gpus: float) -> Capacity:
    return Capacity(({"CPU": cpus, "GPU": gpus},) * count)


def room_for(shares: Mapping[str, float] | tuple[Mapping[str, float], ...], have: Capacity) -> bool:
    """Whether things that Ray places each on one node fit on the nodes there can be at most, taken one by one."""
    left = [dict(node) for node in have.most]
    for needs in shares if isinstance(shares, tuple) else (shares,):
        fitting = [n for n in left if all(n.get(k, 0.0) + 1e-6 >= v for k, v in needs.items())]
        if not fitting:
            return False
        tightest = min(fitting, key=lambda n: (n.get("GPU", 0.0), n.get("CPU", 0.0)))
        for name, value in needs.items():
            tightest[name] -= value
    return True


load = cache(definition.load)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_every_shipped_definition_fits(path: Path, shape: str) -> None:
    """All that a stage places at once has room together, alone on a head, beside one GPU node, on the full cluster,
    and on a machine of one CPU and one GPU: no stage is refused, and none waits for a CPU that another part of it has.
    """
    have = SHAPES[shape]()
    for stage in load(str(path)).stages:
        asks = stage.config.asks(have)
        cluster.require({stage.name: lambda _, asks=asks: asks}, have)
        at_once = tuple(needs for ask in asks for needs in ask.placed)
        assert room_for(at_once, have), (stage.name, at_once)
        many = sizes.spread(stage.config.resources, have, units=1000)
        cluster.refuse_unfit(Ask("resources", many), have)
        assert room_for(many.slots or many.needs, have)


def test_cpus_beside_a_gpu_are_those_of_its_node() -> None:
    """GPU nodes have 8 CPUs, CPU nodes 16: matching and teachers ask for a GPU and at most 8."""
    have = LAUNCHED()["full"]
    assert sizes.alone(ANY, have) == Share(8.0, 1.0, None, 1, gpus=1)
    beside = sizes.together(ANY, have, workers=1, beside=True)
    assert (beside.num_cpus, beside.num_gpus, beside.beside) == (7.0, 0.75, 1.0)
    assert beside.slots == ({"GPU": 1.0, "CPU": 8.0},)
    assert sizes.alone(ANY, of(1, 96, 4)).num_cpus == 8.0
    assert sizes.alone(ANY, of(1, 96, 0)).num_cpus == 96.0


def test_cutters_and_judges_have_room_beside_each_other() -> None:
    """On a head without CPUs cutters are sized by what may come, and one CPU is shared by both kinds of workers."""
    judges, cutters = sizes.streamed(ANY, ANY, LAUNCHED()["head"])
    assert judges.at_once == 12
    assert cutters is not None
    assert cutters.num_cpus == 1.0
    assert cutters.at_once > 100
    judges, cutters = sizes.streamed(ANY, ANY, small())
    assert cutters is not None
    assert judges.num_cpus + cutters.num_cpus <= 1.0


@pytest.mark.parametrize(
    ("units", "nodes", "gpus", "at_once", "per_slot"),
    [
        (5, of(2, 8, 2), 4, 5, 2),
        (8, of(3, 16, 4), 8, 8, 1),
        (100, of(8, 64, 8), 64, 100, 2),
        (3, of(1, 8, 4), 3, 3, 1),
        (1000, of(1, 8, 2), 2, 8, 4),
        (1000, of(1, 1, 1), 1, 4, 4),
    ],
)
def test_units_are_spread_before_gpus_are_shared(
    units: int, nodes: Capacity, gpus: int, at_once: int, per_slot: int
) -> None:
    """As many GPUs as there are units, and as many units on one as that takes, up to four."""
    share = sizes.spread(ANY, nodes, units=units)
    assert (share.gpus, share.at_once, share.per_slot) == (gpus, at_once, per_slot)


@pytest.mark.parametrize("asked_for", [None, 0.2, 0.5, 0.9, 1, 2])
@pytest.mark.parametrize("gpus", [1, 2, 4])
def test_short_evaluations_fit_next_to_the_workers(
    asked_for: float | None, gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the first GPU, whatever its workers request; next to workers of several GPUs they have none."""
    if (asked_for or 0) > gpus:
        return
    share = sizes.together(Resources(num_gpus=asked_for), of(1, 12, gpus), workers=1, beside=True)
    monkeypatch.setattr(groups.cluster, "held", lambda needs, what: None)
    group = groups.Group(share, "match")
    monkeypatch.setattr(group, "_strategy", lambda index: index)
    options = group.beside()
    assert options is not None
    slot = share.slots[0]
    assert share.per_slot * share.num_gpus + options["num_gpus"] <= slot["GPU"] + 1e-6
    assert share.per_slot * share.num_cpus + options["num_cpus"] <= slot["CPU"] + 1e-6
    assert (options["num_gpus"] > 0) == (share.num_gpus <= 1)


def test_stages_of_parts_share_a_single_gpu() -> None:
    """Three matches of a quarter with a quarter for evaluations do not all fit, two do; on two GPUs each has one."""
    quarter, have = Resources(num_gpus=0.25), of(1, 16, 1)
    needs = sizes.together(quarter, have, workers=1, beside=True).needs
    assert have.fits(needs) == 2
    assert sizes.together(quarter, of(1, 16, 2), workers=1, beside=True).needs["GPU"] == 1.0


def test_what_is_asked_for_counts() -> None:
    """A share of a GPU, CPUs and a bound that the settings give are kept, and spread all the same."""
    share = sizes.spread(Resources(num_gpus=0.5, num_cpus=2, at_once=3), of(2, 8, 2), units=9)
    assert share == Share(2, 0.5, None, 3, gpus=3)
    share = sizes.spread(Resources(num_gpus=2), of(2, 8, 2), units=9)
    assert (share.gpus, share.at_once, share.slots[0]["GPU"]) == (2, 2, 2.0)
    assert sizes.spread(Resources(num_gpus=0), of(2, 8, 2), units=9).gpus == 0
    # Two CPUs each on a GPU with four: two share it, and not four.
    assert sizes.spread(Resources(num_cpus=2), of(1, 8, 2), units=99).at_once == 4


def test_trials_fill_whole_gpus() -> None:
    """Tune leaves it to Ray where trials go, and Ray packs: shares are such that none is left over at the start."""
    for samples, expected in ((3, 3), (5, 4), (8, 8), (15, 12), (100, 16)):
        share = sizes.spread(ANY, of(2, 8, 2), units=samples, fill=True)
        assert share.at_once == expected
        assert samples < 4 or share.at_once * share.num_gpus == pytest.approx(4, abs=0.01)


@settings(deadline=None)
@given(GPU_NODES, st.integers(1, 200), st.booleans())
def test_all_slots_have_room_at_once(nodes: list[dict[str, float]], units: int, beside: bool) -> None:
    """However nodes are made up: slots fit all together, no GPU is shared while another is idle, and a meta-batch's
    workers are dealt out as evenly.
    """
    have = Capacity(tuple(nodes))
    total = int(sum(node["GPU"] for node in nodes))
    share = sizes.spread(ANY, have, units=units)
    assert share.gpus == min(units, total)
    assert room_for(share.slots, have)
    assert share.per_slot <= sizes.SHARED
    assert share.at_once <= units
    workers = min(units, 12)
    group = sizes.together(ANY, have, workers=workers, beside=beside)
    assert group.gpus == min(workers, total)
    assert room_for(tuple(Ask("resources", group, together=True).placed), have)
    assert group.per_slot * group.num_gpus + (sizes.BESIDE if beside else 0) <= 1.0001


def asked(**settings: float) -> Resources:
    return Resources.model_validate(settings)


def nodes(*each: tuple[float, float]) -> Capacity:
    """Nodes of so many CPUs and GPUs."""
    return Capacity(tuple({"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in each))


MIXED = nodes((4, 1), (16, 2))
MEMORY = Capacity(({"CPU": 8.0, "memory": 20.0},))


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        # Without GPUs a CPU each, as many at once as the nodes hold, one at least.
        (sizes.spread(ANY, of(1, 4, 0), units=9), Share(1.0, 0.0, None, 4)),
        (sizes.spread(ANY, of(1, 4, 0), units=0), Share(1.0, 0.0, None, 1)),
        (sizes.spread(asked(at_once=2), of(1, 4, 0), units=9), Share(1.0, 0.0, None, 2)),
        (sizes.spread(asked(num_cpus=3, memory=5), MEMORY, units=9), Share(3.0, 0.0, 5, 2)),
        (sizes.spread(asked(memory=15), MEMORY, units=9), Share(1.0, 0.0, 15, 1)),
        (sizes.spread(ANY, of(2, 8, 2), units=9, gpu=False), Share(1.0, 0.0, None, 9)),
        # Shares of a GPU as asked for: three of 0.3 on each, one of a whole.
        (sizes.spread(asked(num_gpus=0.3), of(1, 8, 2), units=99), Share(1.0, 0.3, None, 6, gpus=2)),
        (sizes.spread(asked(num_gpus=1), of(1, 8, 2), units=99), Share(1.0, 1.0, None, 2, gpus=2)),
        (sizes.spread(asked(memory=7), of(1, 8, 2), units=4), Share(1.0, 0.5, 7, 4, gpus=2)),
        # No more on a GPU than its CPUs allow, and one at least.
        (sizes.spread(asked(num_cpus=0.5), of(1, 1, 1), units=99), Share(0.5, 0.5, None, 2, gpus=1)),
        (sizes.spread(asked(num_cpus=4), of(1, 2, 1), units=99), Share(4.0, 1.0, None, 1, gpus=1)),
        (sizes.spread(ANY, of(1, 2, 1), units=3), Share(0.666, 0.333, None, 3, gpus=1)),
        (sizes.spread(ANY, of(1, 2, 1), units=7, fill=True), Share(0.5, 0.25, None, 4, gpus=1)),
        (sizes.spread(ANY, of(2, 8, 2), units=7, fill=True), Share(1.0, 1.0, None, 4, gpus=4)),
        (sizes.spread(ANY, MIXED, units=7), Share(1.0, 0.333, None, 7, gpus=3)),
        # Without GPUs one worker takes a node, but for a CPU kept; several take one CPU each, or less.
        (sizes.together(ANY, of(1, 4, 0), workers=1), Share(4, 0.0, None, 1)),
        (sizes.together(ANY, of(1, 4, 0), workers=1, beside=True), Share(3, 0.0, None, 1)),
        (sizes.together(ANY, of(1, 1, 0), workers=1, beside=True), Share(1, 0.0, None, 1)),
        (sizes.together(ANY, of(1, 1.5, 0), workers=1), Share(1, 0.0, None, 1)),
        (sizes.together(ANY, of(1, 2, 0), workers=3), Share(0.666, 0.0, None, 3)),
        (sizes.together(ANY, of(1, 9, 0), workers=3), Share(1.0, 0.0, None, 3)),
        (sizes.together(asked(num_cpus=2, memory=7), of(1, 9, 0), workers=3), Share(2, 0.0, 7, 3)),
        # On GPUs whole CPUs of the slot, eight at most; beside them one, and a quarter of the GPU.
        (sizes.together(ANY, of(1, 12, 2), workers=3), Share(3.0, 0.5, None, 3, gpus=2)),
        (
            sizes.together(ANY, of(1, 12, 2), workers=3, beside=True),
            Share(2.0, 0.375, None, 3, gpus=2, beside=1.0),
        ),
        (
            sizes.together(ANY, of(1, 1, 1), workers=1, beside=True),
            Share(0.5, 0.75, None, 1, gpus=1, beside=0.5),
        ),
        (sizes.together(asked(num_gpus=0.5), of(1, 12, 2), workers=5), Share(3.0, 0.5, None, 5, gpus=3)),
        (
            sizes.together(asked(num_gpus=0.3), of(1, 12, 1), workers=5),
            Share(2.0, 0.3, None, 5, gpus=2, part=0.9),
        ),
        (
            sizes.together(asked(num_gpus=1, memory=5), of(1, 12, 2), workers=2, beside=True),
            Share(5.0, 0.75, 5, 2, gpus=2, beside=1.0),
        ),
        (
            sizes.together(asked(num_gpus=2), of(1, 12, 4), workers=2, beside=True),
            Share(5.0, 2.0, None, 2, gpus=2, beside=1.0),
        ),
        (
            sizes.together(asked(num_gpus=0.25), of(1, 16, 1), workers=1, beside=True),
            Share(3.0, 0.25, None, 1, gpus=1, beside=1.0, part=0.5),
        ),
        (
            sizes.spread(asked(num_gpus=0.25), of(1, 16, 1), units=2),
            Share(1.0, 0.25, None, 2, gpus=1, part=0.5),
        ),
        (sizes.together(asked(num_gpus=2), of(1, 12, 4), workers=5), Share(6.0, 2.0, None, 5, gpus=5)),
        (sizes.together(ANY, MIXED, workers=3), Share(4.0, 1.0, None, 3, gpus=3)),
        (sizes.together(ANY, MIXED, workers=2), Share(8.0, 1.0, None, 2, gpus=2)),
        (sizes.together(ANY, nodes((64, 1), (64, 1)), workers=2), Share(8.0, 1.0, None, 2, gpus=2)),
        (sizes.alone(asked(num_cpus=2), nodes((64, 1))), Share(2, 1.0, None, 1, gpus=1)),
        # Thirds that are rounded up take the whole GPU, and no more.
        (
            sizes.spread(asked(num_gpus=0.3333334), of(1, 8, 1), units=3),
            Share(1.0, 0.3333334, None, 3, gpus=1),
        ),
        # What no node has is sized for one worker, or one GPU, with a CPU: the request is refused as it is.
        (sizes.spread(asked(num_gpus=4), of(1, 8, 2), units=3), Share(1.0, 4.0, None, 1, gpus=1)),
        (
            sizes.spread(asked(num_gpus=0.5, num_cpus=1), of(1, 8, 0), units=9),
            Share(1, 0.5, None, 1, gpus=1),
        ),
        (sizes.together(asked(num_gpus=0.5), of(1, 8, 0), workers=2), Share(0.5, 0.5, None, 2, gpus=1)),
    ],
)
def test_shares_worked_out_by_hand(share: Share, expected: Share) -> None:
    """What one worker gets, and how many run at once, case by case."""
    assert share == expected


@pytest.mark.parametrize(
    ("found", "judges", "cutters"),
    [
        (sizes.streamed(ANY, ANY, of(1, 8, 0)), Share(1.0, 0.0, None, 8), None),
        (sizes.streamed(asked(at_once=3, memory=5), ANY, MEMORY), Share(1.0, 0.0, 5, 3), None),
        (sizes.streamed(ANY, ANY, nodes((8, 2), (16, 0))), Share(1.0, 1.0, None, 2), Share(1.0, 0.0, None, 23)),
        (
            sizes.streamed(
                asked(num_gpus=0.5, num_cpus=2, memory=4, at_once=3), asked(num_cpus=2, memory=5, at_once=2),
                nodes((8, 2), (16, 0)),
            ),
            Share(2, 0.5, 4, 3),
            Share(2, 0.0, 5, 2),
        ),
        (
            sizes.streamed(asked(num_gpus=0.5), asked(num_cpus=3), nodes((8, 2), (16, 0))),
            Share(1.0, 0.5, None, 4),
            Share(3, 0.0, None, 7),
        ),
        (
            sizes.streamed(asked(num_gpus=2), ANY, nodes((8, 2), (16, 1))),
            Share(1.0, 2.0, None, 1),
            Share(1.0, 0.0, None, 23),
        ),
        (sizes.streamed(asked(num_gpus=2), ANY, of(1, 8, 1)), Share(0.5, 2.0, None, 1), Share(1.0, 0.0, None, 8)),
        (sizes.streamed(ANY, ANY, nodes((1, 1))), Share(0.5, 1.0, None, 1), Share(0.5, 0.0, None, 1)),
        (sizes.streamed(ANY, ANY, nodes((0, 1))), Share(0.0, 1.0, None, 1), Share(0.0, 0.0, None, 1)),
        # A node may leave out what it has none of, or have less than is asked for.
        (
            sizes.streamed(ANY, ANY, Capacity(({"GPU": 2.0, "CPU": 8.0}, {"CPU": 16.0}))),
            Share(1.0, 1.0, None, 2),
            Share(1.0, 0.0, None, 23),
        ),
        (
            sizes.streamed(ANY, ANY, Capacity(({"GPU": 1.0},))),
            Share(0.0, 1.0, None, 1),
            Share(0.0, 0.0, None, 1),
        ),
        (
            sizes.streamed(asked(num_cpus=2), ANY, nodes((1, 1), (4, 0))),
            Share(2, 1.0, None, 1),
            Share(1.0, 0.0, None, 4),
        ),
    ],
)  # fmt: skip
def test_streams_worked_out_by_hand(
    found: tuple[Share, Share | None], judges: Share, cutters: Share | None
) -> None:
    """A scoring worker for every GPU or share of one, and as many decoding ones as have a CPU where one scores."""
    assert found == (judges, cutters)


def test_what_a_share_asks_of_ray() -> None:
    """Options of a worker, its threads, and the slots of GPUs with the memory of all that share them."""
    plain, shared = Share(0.5, 0.0, None, 3), Share(2.5, 0.25, 100, 5, gpus=2, beside=1.0)

    assert plain.options == {"num_cpus": 0.5, "num_gpus": 0.0}
    assert shared.options == {"num_cpus": 2.5, "num_gpus": 0.25, "memory": 100}
    assert (plain.threads, shared.threads) == (1, 2)
    assert (plain.per_slot, shared.per_slot) == (1, 3)
    assert (plain.slots, plain.needs) == ((), {"CPU": 0.5})
    assert shared.slots == (
        {"GPU": 1.0, "CPU": 8.5, "memory": 300.0}, {"GPU": 1.0, "CPU": 7.5, "memory": 300.0},
    )  # fmt: skip
    assert shared.needs == shared.slots[0]
    assert Share(1.0, 2.0, 9, 1).needs == {"CPU": 1.0, "GPU": 2.0, "memory": 9.0}
    assert Ask("resources", shared).least == 1
    assert (sizes.STUDENT.needs, sizes.STUDENT.at_once) == ({"CPU": 1.0}, 1)
    assert list(Ask("resources", shared).placed) == [shared.slots[0]]
    assert list(Ask("resources", shared, together=True).placed) == list(shared.slots)
    assert list(Ask("resources", plain, together=True).placed) == [{"CPU": 0.5}] * 3


@pytest.mark.parametrize(
    ("setting", "least", "below"),
    [("num_cpus", 0.001, 0), ("num_gpus", 0, -0.1), ("memory", 1, 0), ("at_once", 1, 0)],
)
def test_resources_have_least_values(setting: str, least: float, below: float) -> None:
    """What no worker could run with is refused."""
    assert getattr(asked(**{setting: least}), setting) == least
    assert refused(Resources, **{setting: below}) == {("value-out-of-range", setting)}


def test_a_judge_on_a_node_without_cpus_asks_for_none() -> None:
    """Ray Data asks for one CPU where nothing is said, which no node with that GPU would have."""
    assert streams._asked(Share(0.0, 1.0, None, 1)) == {"num_cpus": 0.0, "num_gpus": 1.0}
    assert streams._asked(Share(1.0, 0.0, 5, 1)) == {"num_cpus": 1.0, "memory": 5}
