"""Teams of workers: what they ask for, what is refused, which images they read, and which error is reported."""

from __future__ import annotations

import pickle
import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from pydantic import ValidationError

from rayddl.errors import StageError
from rayddl.methods.training.team import PeerLost
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.runtime import cluster, devices, teams
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.room import Room
from rayddl.stages.runtime.sizes import Ask, Share
from rayddl.stages.settings import without_resources
from rayddl.stages.teacher.settings import TeacherConfig
from tests.raising import raises

LAPTOP = Capacity(({"CPU": 2.0},))
EIGHT = Capacity(({"CPU": 64.0, "GPU": 8.0},))
TWO_NODES = Capacity(({"CPU": 16.0, "GPU": 1.0},) * 2)


def settings(**changes: Any) -> TeacherConfig:
    return TeacherConfig.model_validate({"kind": "teacher", **changes})


def asked(have: Capacity, **changes: Any) -> Ask:
    (ask,) = settings(**changes).asks(have)
    return ask


@pytest.mark.parametrize(
    ("have", "workers", "cpus", "gpus"),
    [
        (LAPTOP, 2, 1.0, 0.0),
        (Capacity(({"CPU": 9.0},)), 2, 4.0, 0.0),
        (Capacity(({"CPU": 8.0},) * 2), 2, 8.0, 0.0),
        (EIGHT, 4, 8.0, 1.0),
        (TWO_NODES, 2, 8.0, 1.0),
    ],
)
def test_each_worker_has_a_gpu_or_its_part_of_the_cpus(
    have: Capacity, workers: int, cpus: float, gpus: float
) -> None:
    """All of them at once: so much is taken from the room that other stages have."""
    ask = asked(have, workers=workers)
    assert (ask.share.num_cpus, ask.share.num_gpus, ask.share.at_once) == (cpus, gpus, workers)
    assert ask.share.team
    needs = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
    assert list(ask.placed) == [needs] * workers
    lease = Room(lambda: have).begin("teacher", settings(workers=workers).asks)
    assert lease is not None
    assert lease.taken == [needs] * workers


def test_a_part_of_a_gpu_is_a_whole_one() -> None:
    """Two processes that exchange gradients cannot share a GPU."""
    assert asked(EIGHT, workers=2, resources={"num_gpus": 0.5}).share.num_gpus == 1
    assert asked(EIGHT, workers=2, resources={"num_gpus": 2, "num_cpus": 3}).share == Share(
        3.0, 2.0, None, 2, team=True
    )


@pytest.mark.parametrize(("have", "workers"), [(LAPTOP, 3), (TWO_NODES, 3)])
def test_a_cluster_without_room_for_all_is_refused(have: Capacity, workers: int) -> None:
    """Before the first stage, with the sentence of every stage whose workers run together."""
    with raises("cluster-too-small"):
        cluster.require({"teacher": settings(workers=workers).asks}, have)
    cluster.require({"teacher": settings(workers=2).asks}, have)


@pytest.mark.parametrize(("nodes", "now"), [(1, 2), (2, 2), (3, 3), (9, 4)])
def test_a_team_may_be_smaller_than_it_wants_to_be(nodes: int, now: int) -> None:
    """With a least number it begins with as many as there is room for, and Ray Train keeps it within both."""
    have = Capacity(({"CPU": 8.0, "GPU": 1.0},) * nodes)
    ask = asked(have, workers=4, min_workers=2)
    assert (ask.share.at_once, ask.share.range) == (now, (2, 4))
    assert len(list(ask.placed)) == now
    asks = settings(workers=4, min_workers=2).asks
    with raises("cluster-too-small") if nodes < 2 else nullcontext():
        cluster.require({"teacher": asks}, have)
    assert asked(have, workers=4).share.range is None


def test_the_least_of_a_team_is_no_more_than_all_and_changes_no_result() -> None:
    """It is like the resources of a worker, which enter no fingerprint."""
    with pytest.raises(ValidationError, match=r"min_workers \(3\) is above workers \(2\)"):
        settings(workers=2, min_workers=3)
    assert without_resources(settings(workers=2, min_workers=1)) == without_resources(settings(workers=2))


def test_workers_enter_the_fingerprint_only_if_there_are_several() -> None:
    """One gives the bits that it gave before."""
    plain = without_resources(settings())
    assert without_resources(settings(workers=1)) == plain
    assert without_resources(settings(workers=2)) == {**plain, "workers": 2}


def test_workers_where_they_mean_nothing_are_refused() -> None:
    """For weights that are trained already, and for hard labels."""
    with pytest.raises(ValidationError, match="trained already"):
        settings(workers=2, weights="DEFAULT")
    base = {"kind": "evaluate", "set": "distill", "workers": 2}
    assert "soft labels" in EvaluateConfig.model_validate(base).check({})[0]
    assert EvaluateConfig.model_validate({**base, "observer": "teacher"}).check({}) == []


def test_an_evaluation_asks_for_its_team() -> None:
    """Its single workers, which come first, fit in the same room."""
    base = {"kind": "evaluate", "set": "distill", "observer": "teacher"}
    (ask,) = EvaluateConfig.model_validate({**base, "workers": 2}).asks(EIGHT)
    assert (ask.key, ask.together, ask.share.at_once) == ("workers", True, 2)
    (ask,) = EvaluateConfig.model_validate(base).asks(EIGHT)
    assert (ask.key, ask.together) == ("resources", False)


class Lost(Exception):
    """As Ray Train reports a lost worker."""

    def __init__(self, failure: Exception) -> None:
        super().__init__("a health check failed")
        self.health_check_failure = failure


DIED = ray.exceptions.WorkerCrashedError()
OURS = StageError("diverged", code="for-a-test")
BUG = ValueError("a bug")


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ({0: PeerLost("closed"), 1: Lost(DIED)}, DIED),
        ({0: PeerLost("closed"), 1: OURS}, OURS),
        ({0: BUG, 1: OURS}, OURS),
        ({0: PeerLost("closed"), 2: BUG}, BUG),
        ({0: Lost(DIED), 1: Lost(ray.exceptions.OutOfMemoryError("full"))}, ray.exceptions.OutOfMemoryError),
        ({0: PeerLost("closed"), 1: PeerLost("closed")}, ray.exceptions.WorkerCrashedError),
    ],
)
def test_the_cause_is_the_failure_that_others_follow(
    failures: dict[int, Exception], expected: Exception | type[Exception]
) -> None:
    """An error of the work is its cause, rayddl's before others; without one, a worker was lost."""
    found = teams.cause(failures)
    assert isinstance(found, expected) if isinstance(expected, type) else found is expected
    assert isinstance(pickle.loads(pickle.dumps(PeerLost("closed"))), PeerLost)


@pytest.mark.parametrize(
    ("raised", "reported"),
    [(None, [None]), (OURS, [OURS]), (BUG, [BUG]), (PeerLost("closed"), []), (DIED, [])],
)
def test_a_worker_says_how_its_work_ended_unless_another_one_was_lost(
    raised: Exception | None, reported: list[Exception | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train begins again after every error; the stage ends at once by one of the work."""
    said: list[Exception | None] = []
    held: list[str] = []

    def work() -> None:
        if raised is not None:
            raise raised

    coach = SimpleNamespace(
        begin=SimpleNamespace(remote=held.append),
        end=SimpleNamespace(remote=lambda error=None: said.append(error)),
    )
    monkeypatch.setattr(ray, "get", lambda ref: ref)
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: "group")
    with pytest.raises(type(raised)) if raised is not None else nullcontext():
        teams.member({"work": (work,), "coach": coach})
    assert (said, held) == (reported, ["group"])


def test_a_coach_is_done_when_the_first_worker_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray Train still does then is not waited for; an error of the work, or of Ray Train, is raised."""
    never, coaches = threading.Event(), [teams.TeamLauncher("unit") for _ in range(3)]
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(current_actor=None))
    monkeypatch.setattr(teams, "_fit", lambda *_: never.wait(60))
    coaches[0].end()
    coaches[0].end(BUG)
    coaches[0].train(Share(1.0, 0.0, None, 2, team=True), (print,), 60.0)
    coaches[1].end(OURS)
    with raises("for-a-test"):
        coaches[1].train(Share(1.0, 0.0, None, 2, team=True), (print,), 60.0)
    never.set()

    def failing(*_: Any) -> None:
        raise BUG

    monkeypatch.setattr(teams, "_fit", failing)
    with pytest.raises(ValueError, match="a bug"):
        coaches[2].train(Share(1.0, 0.0, None, 2, team=True), (print,), 60.0)


@pytest.mark.parametrize(
    ("gpus", "logical", "backend"), [(1.0, False, None), (1.0, True, "gloo"), (0.0, False, None)]
)
def test_a_team_sums_by_what_its_devices_need(
    monkeypatch: pytest.MonkeyPatch, gpus: float, logical: bool, backend: str | None
) -> None:
    """Ray Train takes nccl on GPUs and gloo on CPUs where no backend is given; logical GPUs are CPUs."""
    import ray.train.torch

    made: dict[str, Any] = {}

    class Trainer:
        def __init__(self, work: Any, **given: Any) -> None:
            made.update(given, work=work)

        def fit(self) -> None:
            made["fitted"] = True

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    monkeypatch.delenv(devices.LOGICAL, raising=False)
    if logical:
        monkeypatch.setenv(devices.LOGICAL, "file")
    share = Share(2.0, gpus, None, at_once=3, team=True)
    teams._fit(share, {"work": None}, "teacher", 7.0)

    assert made["fitted"]
    assert made["work"] is teams.member
    assert made["torch_config"].backend == backend
    scaling = made["scaling_config"]
    assert (scaling.num_workers, scaling.use_gpu) == (3, gpus > 0)
    assert scaling.resources_per_worker["CPU"] == 2.0
    assert scaling.elastic_resize_monitor_interval_s == 7.0
