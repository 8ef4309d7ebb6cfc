"""How the cluster is divided among stages that run at the same time."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rayddl.pipeline.definition import load as definition
from rayddl.stages.coreset.settings import CoresetConfig
from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.match.settings import MatchConfig
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.refine.settings import RefineConfig
from rayddl.stages.runtime import room, sizes
from rayddl.stages.runtime.capacity import Capacity, Group
from rayddl.stages.runtime.room import Room
from rayddl.stages.runtime.sizes import Ask, Resources
from rayddl.stages.teacher.settings import TeacherConfig

TWICE_TWO = Capacity(({"CPU": 1.0}, {"CPU": 2.0, "GPU": 2.0}, {"CPU": 2.0, "GPU": 2.0}))
NET = "{name: convnet, depth: 1, width: 8}"


def many(have: Capacity, units: int | None = None) -> Sequence[Ask]:
    """Independent units of work."""
    return (Ask("resources", sizes.spread(Resources(), have, units=units or sizes.MANY), units=units),)


def gang(workers: int):  # type: ignore[no-untyped-def]
    """Workers that run together."""
    return lambda have: (Ask("resources", sizes.together(Resources(), have, workers=workers), together=True),)


def alone(have: Capacity) -> Sequence[Ask]:
    """One worker with all that it can use."""
    return (Ask("resources", sizes.alone(Resources(), have), units=1),)


def test_a_teacher_and_experts_share_the_gpus() -> None:
    """The teacher has a GPU, the experts the other three, and all four when the teacher has ended."""
    shared = Room(lambda: TWICE_TWO)
    experts = shared.begin("experts", lambda have: many(have, 20))
    teacher = shared.begin("teacher", alone)
    assert experts is not None
    assert teacher is not None
    shared.hand_out()
    assert experts.most("resources") == 3
    assert teacher.most("resources") == sys.maxsize
    shared.end("teacher")
    shared.hand_out()
    assert experts.most("resources") == sys.maxsize


def test_matches_fill_the_gpus_and_the_next_one_waits() -> None:
    """Gangs start only as a whole: two of two workers, then a third when one has ended."""
    shared = Room(lambda: TWICE_TWO)
    assert shared.begin("a", gang(2))
    assert shared.begin("b", gang(2))
    assert shared.begin("c", gang(1)) is None
    shared.end("a")
    assert shared.begin("c", gang(1))


def test_a_laptop_runs_trainings_in_turn() -> None:
    """A stage whose worker takes all CPUs leaves no room; independent units of two stages have a CPU each."""
    shared = Room(lambda: Capacity(({"CPU": 2.0},)))
    assert shared.begin("teacher", alone)
    assert shared.begin("experts", many) is None
    shared.end("teacher")
    assert shared.begin("experts", many)
    assert shared.begin("teacher", alone) is None
    more = shared.begin("random", many)
    shared.hand_out()
    assert more is not None
    assert more.most("resources") == 1


def test_memory_is_room_too() -> None:
    """Workers that ask for memory fit only as far as the node has it."""
    shared = Room(lambda: Capacity(({"CPU": 8.0, "memory": 10.0},)))

    def hungry(have: Capacity) -> Sequence[Ask]:
        return (Ask("resources", sizes.spread(Resources(memory=4), have, units=1), units=8),)

    first, second = shared.begin("a", hungry), shared.begin("b", hungry)
    shared.hand_out()
    assert first is not None
    assert second is not None
    assert [first.most("resources"), second.most("resources")] == [1, 1]
    assert shared.begin("c", hungry) is None


def test_work_that_can_be_left_out_needs_no_room() -> None:
    """Short evaluations get the CPUs that are free, also none."""
    (match,) = definition.load(
        {
            "name": "one", "source": {"name": "digits"},
            "stages": {
                "experts": {"kind": "experts"},
                "distill": {"kind": "match", "experts": "experts", "ipc": 1, "evaluate_every": 5,
                            "expert_epochs": 1, "max_start_epoch": 3, "syn_steps": 2},
            },
        }
    ).stages[1:]  # fmt: skip
    for cpus, free in ((4.0, 1), (1.0, 0)):
        shared = Room(lambda cpus=cpus: Capacity(({"CPU": cpus},)))  # type: ignore[misc]
        lease = shared.begin("distill", match.config.asks)
        shared.hand_out()
        assert lease is not None
        assert lease.most("short evaluations") == free


def test_short_evaluations_leave_room_for_other_stages() -> None:
    """They get as many CPUs as two of them have students, and not all that are free."""
    asked = {"experts": "experts", "ipc": 1, "evaluate_every": 5, "evaluate_seeds": 3}
    match = MatchConfig.model_validate({"kind": "match", **asked})
    shared = Room(lambda: Capacity(({"CPU": 8.0},) * 4))
    lease = shared.begin("distill", match.asks)
    shared.hand_out()
    assert lease is not None
    assert lease.parts[1] == 6
    assert shared.begin("other", lambda have: many(have, 18))


def test_a_stage_that_no_longer_fits_starts_when_it_is_alone() -> None:
    """After the loss of a node the work waits in Ray, which says what is missing, not in the schedule."""
    shared = Room(lambda: Capacity(({"CPU": 1.0},)))
    assert shared.begin("four", lambda have: gang(4)(Capacity(({"CPU": 4.0},))))
    assert shared.begin("other", many) is None


def test_nodes_that_an_autoscaler_adds_are_room() -> None:
    """Stages start whose nodes are still to come: their demand is what brings the nodes."""
    shared = Room(lambda: Capacity(({"CPU": 2.0},), (Group(2, {"CPU": 8.0, "GPU": 1.0}),)))
    assert shared.begin("a", alone)
    assert shared.begin("b", alone)
    assert shared.begin("c", alone) is None


def test_limits_of_this_thread() -> None:
    """Without a lease, a stage may take all; with one, its limit is read anew every time."""
    assert room.limit()() == sys.maxsize
    shared = Room(lambda: TWICE_TWO)
    lease = shared.begin("experts", lambda have: many(have, 20))
    with room.of_stage(lease):
        limit = room.limit()
        assert limit() == 1
        shared.hand_out()
        assert limit() == sys.maxsize


NODES = st.lists(
    st.tuples(st.integers(1, 8), st.integers(0, 4)).map(lambda n: {"CPU": float(n[0]), "GPU": float(n[1])}),
    min_size=1,
    max_size=4,
)
STAGES = st.lists(st.sampled_from(["alone", "gang", "few", "many"]), min_size=1, max_size=6)


@given(NODES, STAGES)
def test_what_is_handed_out_fits(nodes: list[Mapping[str, float]], stages: list[str]) -> None:
    """All leases together fit on the nodes, each part on one of them; the first stage always starts."""
    shared = Room(lambda: Capacity(tuple(nodes)))
    asks = {"alone": alone, "gang": gang(2), "few": lambda have: many(have, 3), "many": many}
    leases = [shared.begin(f"{k}", asks[stage]) for k, stage in enumerate(stages)]
    shared.hand_out()
    assert leases[0] is not None
    if not all(Capacity(tuple(nodes)).fits(part) for part in leases[0].taken):
        return  # it does not fit on this cluster at all
    left = [dict(node) for node in nodes]
    parts = [part for lease in leases if lease for part in lease.taken]
    placed = [room._take(left, part) for part in room._by_size(parts)]
    totals = {name: sum(part.get(name, 0.0) for part in parts) for name in ("CPU", "GPU")}
    assert all(totals[name] <= sum(node[name] for node in nodes) + 1e-6 for name in totals)
    assert len(placed) == len(parts)


@given(NODES, st.integers(1, 40), st.sampled_from([None, 1.0, 2.0]))
def test_a_part_holds_the_workers_of_its_slot(
    nodes: list[Mapping[str, float]], units: int, cpus: float | None
) -> None:
    """However many units are left, no slot asks Ray for more than the stage was given: it would wait for stages that
    were given the rest.
    """
    have = Capacity(tuple(nodes))
    asked = Resources(num_cpus=cpus)
    fixed = ExpertsConfig(kind="experts", count=units, resources=asked)
    unknown = RefineConfig(kind="refine", set="s", anchors="a", observer="t", resources=asked)
    features = CoresetConfig(kind="coreset", ipc=1, method="herding", features="t", resources=asked)
    for config in (fixed, unknown, features):
        (ask,) = config.asks(have)
        for left in range(1, units + 1):
            for slot in sizes.spread(asked, have, units=left).slots:
                # Equal parts of CPUs are rounded down to thousandths.
                assert all(slot[name] <= ask.share.needs[name] + 0.01 for name in slot)


def test_work_of_another_request_keeps_to_the_room_of_the_first() -> None:
    """On CPUs, RDED's scoring workers decode, too; its stitching asks by the decoders' settings."""
    shared = Room(lambda: Capacity(({"CPU": 4.0},)))
    rded = RdedConfig(kind="rded", teacher="t", ipc=1, decoders=Resources(num_cpus=1))
    lease, other = shared.begin("rded", rded.asks), shared.begin("other", many)
    shared.hand_out()
    assert lease is not None
    assert other is not None
    assert lease.most("decoders") == lease.most("resources") == 2
    with_gpus = Room(lambda: TWICE_TWO)
    lease = with_gpus.begin("rded", rded.asks)
    with_gpus.begin("other", many)
    assert lease is not None
    assert (lease.most("resources"), lease.most("decoders")) == (1, 1)
    with_gpus.hand_out()
    assert (lease.most("resources"), lease.most("decoders")) == (2, 1)


def test_every_kind_says_what_it_can_use() -> None:
    """Experts, students and trials are counted from the settings, so that small stages leave room for others."""
    stages = definition.load(Path(__file__).parents[3] / "pipelines" / "quickstart.yaml").stages
    have = Capacity(({"CPU": 64.0},))
    asked = {stage.name: stage.config.asks(have)[0] for stage in stages}
    assert asked["experts"].units == stages[0].config.count  # type: ignore[attr-defined]
    assert asked["evaluate"].units == 2 * stages[2].config.seeds  # type: ignore[attr-defined]
    assert asked["distill"].together
    (teacher,) = TeacherConfig(kind="teacher").asks(have)
    assert teacher.units == 1
