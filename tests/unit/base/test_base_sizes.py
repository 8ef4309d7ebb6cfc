"""What stages ask for: GPUs are spread before they are shared, and every worker fits a node that has its GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayddl.pipeline.definition import load as definition
from rayddl.stages.runtime import cluster, sizes
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.sizes import Ask, Resources, Share
from tests.unit.cluster_shapes import kuberay_shapes, launcher_shapes, small

ROOT = Path(__file__).resolve().parents[3]
PIPELINES = sorted((ROOT / "pipelines").glob("*.yaml"))
SHAPES = {
    **{f"launcher {name}": shape for name, shape in launcher_shapes().items()},
    **{f"kuberay {name}": shape for name, shape in kuberay_shapes().items()},
    "small": small(),
    "eight": Capacity(({"CPU": 64.0, "GPU": 8.0, "memory": 2.0**38},)),
    "laptop": Capacity(({"CPU": 2.0, "memory": 2.0**34},)),
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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_every_shipped_definition_fits(path: Path, shape: str) -> None:
    """All that a stage places at once has room together, alone on a head, beside one GPU node, on the full cluster,
    and on a machine of one CPU and one GPU: no stage is refused, and none waits for a CPU that another part of it has.
    """
    have = SHAPES[shape]
    for stage in definition.load(str(path)).stages:
        asks = stage.config.asks(have)
        cluster.require({stage.name: lambda _, asks=asks: asks}, have)
        at_once = tuple(needs for ask in asks for needs in ask.placed)
        assert room_for(at_once, have), (stage.name, at_once)
        many = sizes.spread(stage.config.resources, have, units=1000)
        cluster.refuse_unfit(Ask("resources", many), have)
        assert room_for(many.slots or many.needs, have)


def test_cpus_beside_a_gpu_are_those_of_its_node() -> None:
    """GPU nodes have 8 CPUs, CPU nodes 16: matching and teachers ask for a GPU and at most 8."""
    have = launcher_shapes()["full"]
    assert sizes.alone(ANY, have) == Share(8.0, 1.0, None, 1, gpus=1)
    beside = sizes.together(ANY, have, workers=1, beside=True)
    assert (beside.num_cpus, beside.num_gpus, beside.beside) == (7.0, 0.75, 1.0)
    assert beside.slots == ({"GPU": 1.0, "CPU": 8.0},)
    assert sizes.alone(ANY, of(1, 96, 4)).num_cpus == 8.0
    assert sizes.alone(ANY, of(1, 96, 0)).num_cpus == 96.0


def test_cutters_and_judges_have_room_beside_each_other() -> None:
    """On a head without CPUs cutters are sized by what may come, and one CPU is shared by both kinds of workers."""
    judges, cutters = sizes.streamed(ANY, ANY, launcher_shapes()["head"])
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
