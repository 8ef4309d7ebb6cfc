"""Processes that train together: their result is that of one, however batches are split. Threads stand for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from rayddl.methods.training import team as teams
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.observer import frozen
from rayddl.methods.training.settings import TeacherSettings
from rayddl.methods.training.soft import EpochData, Execution, Lectures, OwnLabels, SoftProtocol, SoftTraining
from rayddl.methods.training.teacher import TeacherTraining
from rayddl.methods.training.team import ALONE, PeerLost, Team, TeamNorm, joined, summed
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.nets.layers import BatchNorm
from tests.raising import raises

SHAPE, CLASSES = (1, 8, 8), 3
FRAME = InputSpec(SHAPE, (0.3,), (0.4,))
SETTINGS = TeacherSettings(epochs=2, lr=0.1, batch=4, label_smoothing=0.1)
SOFT = {"batch": 4, "factor": 2, "epochs": 2, "optimizer": "sgd", "lr": 0.05}
COUNT = 11
"""Images: batches of 4, 4 and 3. In a team of four every process has all of the last one."""
CPU = torch.device("cpu")
Trained = TypeVar("Trained")


@contextmanager
def wired(
    size: int,
) -> Iterator[Callable[[Callable[[Team], Trained], Callable[[Trained], Any]], list[Trained]]]:
    """Makes something for every member of a team and works with it, each in a thread; sums go from thread to thread.

    What draws parameters is made before: threads share torch's generator.
    """
    meeting, slots, me = threading.Barrier(size, timeout=60), [torch.zeros(0)] * size, threading.local()

    def all_reduce(tensor: Tensor) -> None:
        slots[me.rank] = tensor.clone()
        meeting.wait()
        total = torch.stack(slots).sum(0)
        meeting.wait()
        tensor.copy_(total)

    def broadcast(box: list[Any]) -> None:
        if me.rank == 0:
            sent[:] = box
        meeting.wait()
        box[:] = sent
        meeting.wait()

    sent: list[Any] = []

    def everywhere(make: Callable[[Team], Trained], work: Callable[[Trained], Any]) -> list[Trained]:
        made = [make(Team(rank, size)) for rank in range(size)]

        def member(rank: int) -> None:
            me.rank = rank
            try:
                work(made[rank])
            except BaseException:
                meeting.abort()
                raise

        with pytest.MonkeyPatch.context() as alike, ThreadPoolExecutor(size) as pool:
            # Threads share torch's generator, and may wait for ever, one with its lock for another with Python's. These
            # networks draw nothing while they train.
            alike.setattr(torch, "manual_seed", lambda seed: None)
            alike.setattr(torch.random, "fork_rng", lambda **_: nullcontext())
            list(pool.map(member, range(size)))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teams.dist, "all_reduce", all_reduce)
        patch.setattr(teams.dist, "broadcast_object_list", broadcast)
        patch.setattr(teams.dist, "get_backend", lambda: "gloo")
        yield everywhere


def network(norm: str, seed: int = 2) -> nn.Module:
    return build(NetConfig(depth=1, width=4, norm=norm), SHAPE, CLASSES, seed=seed)


def pixels() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    x = torch.randint(256, (COUNT, *SHAPE), generator=draws).to(torch.uint8)
    return x, torch.randint(CLASSES, (COUNT,), generator=draws)


def close(one: nn.Module, other: nn.Module) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def run(training: TeacherTraining | SoftTraining) -> None:
    if isinstance(training, TeacherTraining):
        training.run(lambda: 0.5)
    else:
        training.run()


def teacher(norm: str, team: Team) -> TeacherTraining:
    return TeacherTraining(network(norm), SETTINGS, FRAME, *pixels(), Execution(CPU, team=team), seed=7)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_teacher_of_a_team_is_that_of_one(norm: str, size: int) -> None:
    """The same parameters, running statistics and losses, but for rounding; within the team the same bits."""
    alone = teacher(norm, ALONE)
    run(alone)
    with wired(size) as everywhere:
        first, *others = everywhere(partial(teacher, norm), run)
    close(first.module, alone.module)
    assert all(same(first.module, other.module) for other in others)
    for one, other in zip(first.history, alone.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)
        assert (one.epoch, one.lr) == (other.epoch, other.lr)
    assert not same(first.module, network(norm))


SOFT_CASES: dict[str, dict[str, Any]] = {
    "observer": {},
    "without cutmix": {"cutmix": False},
    "own labels": {"loss": "own"},
    "both": {"loss": "mse_gt", "label_smoothing": 0.1},
    "shown twice, averaged": {"statistics": "twice", "ema": 0.5},
}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", SOFT_CASES)
def test_a_student_of_a_team_is_that_of_one(case: str, size: int) -> None:
    """With an observer, the images' own labels, or both; CutMix copies from images of other processes."""
    protocol = SoftProtocol.model_validate({**SOFT, **SOFT_CASES[case]})
    epoch_data: Lectures = lambda epoch: EpochData(protocol.draw(epoch, COUNT, SHAPE[1:], FRAME, seed=11))  # noqa: E731
    labels = OwnLabels(pixels()[1], CLASSES)
    seen = frozen(network("instance", seed=1))

    def student(team: Team) -> SoftTraining:
        execution, images = Execution(CPU, team=team), pixels()[0]
        return SoftTraining(network("batch"), protocol, FRAME, images, epoch_data, seen, execution, 5, labels)

    alone = student(ALONE)
    run(alone)
    with wired(size) as everywhere:
        first, *others = everywhere(student, run)
    # At the published temperature the divergence is small next to the numbers that it is the difference of.
    assert first.losses == pytest.approx(alone.losses, rel=1e-5, abs=1e-7)
    close(first.tested, alone.tested)
    assert all(same(first.tested, other.tested) for other in others)


def test_stored_logits_are_those_of_the_process_s_images() -> None:
    """Without an observer each process reads its rows of an epoch's logits."""
    protocol = SoftProtocol.model_validate(SOFT)
    logits = torch.randn(COUNT, CLASSES, generator=torch.Generator().manual_seed(3)).half()

    def epoch_data(epoch: int) -> EpochData:
        return EpochData(protocol.draw(epoch, COUNT, SHAPE[1:], FRAME, seed=11), logits)

    def student(team: Team) -> SoftTraining:
        execution = Execution(CPU, team=team)
        return SoftTraining(network("instance"), protocol, FRAME, pixels()[0], epoch_data, None, execution, 5)

    alone = student(ALONE)
    run(alone)
    with wired(3) as everywhere:
        first, *_ = everywhere(student, run)
    close(first.student, alone.student)


def test_a_team_goes_on_from_what_its_first_process_stored() -> None:
    """Cut in the middle of an epoch, a new team ends with the bits of one that was not."""

    class Cut(Exception):
        pass

    def on_step(now: TeacherTraining) -> None:
        if now.done > 1.3:
            raise Cut

    def cut(training: TeacherTraining) -> None:
        with pytest.raises(Cut):
            training.run(lambda: 0.5, on_step)

    make = partial(teacher, "batch")
    with wired(2) as everywhere:
        expected, state = everywhere(make, run)[0], everywhere(make, cut)[0].dump()

        def resumed(team: Team) -> TeacherTraining:
            made = make(team)
            made.resume(state)
            return made

        found = everywhere(resumed, run)[0]
    assert same(found.module, expected.module)
    assert [row.train_loss for row in found.history] == [row.train_loss for row in expected.history]


@pytest.mark.parametrize("size", range(1, 6))
@pytest.mark.parametrize("count", [1, 2, 5, 12, 13])
def test_every_image_of_a_batch_has_one_process(size: int, count: int) -> None:
    """In order, in parts of at most one image difference; a batch too small for all is everyone's."""
    parts = [Team(rank, size).rows(count) for rank in range(size)]
    if count < size:
        assert parts == [slice(0, count)] * size
        return
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    lengths = {part.stop - part.start for part in parts}
    assert max(lengths) - min(lengths) <= 1
    assert Team(0, size).even(count) == (len(lengths) == 1)


@pytest.mark.parametrize("last", [False, True])
def test_a_step_with_batch_norm_can_be_compiled_as_a_whole(
    last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a break at the sums; result, gradients and running statistics are those of torch's batch norm."""
    monkeypatch.setattr(teams.dist, "all_reduce", lambda tensor: None)
    own = BatchNorm(3) if last else nn.BatchNorm2d(3)
    other = nn.Sequential(BatchNorm(3) if last else nn.BatchNorm2d(3))
    joined(other, Team(0, 2))
    assert isinstance(other[0], TeamNorm)
    x = torch.randn(4, 5, 5, 3, generator=torch.Generator().manual_seed(0)) * 9 + 5
    x = x if last else x.permute(0, 3, 1, 2)
    compiled = torch.compile(lambda x: other(x).square().sum(), fullgraph=True, backend="aot_eager")

    for _ in range(2):
        one, two = (x.clone().requires_grad_() for _ in range(2))
        loss, expected = compiled(one), own(two).square().sum()
        loss.backward()
        expected.backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(one.grad, two.grad, atol=1e-4, rtol=1e-4)
    for name, value in own.state_dict().items():
        torch.testing.assert_close(other[0].state_dict()[name], value)
    other.eval()
    own.eval()
    torch.testing.assert_close(other(x), own(x))


def test_a_process_alone_keeps_its_batch_norm() -> None:
    """Its bits are those of a training without teams."""
    net = network("batch")
    assert joined(net, ALONE) == []
    assert not any(isinstance(module, TeamNorm) for module in net.modules())


def test_a_failed_sum_means_a_lost_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says then has no type of its own."""

    def closed(tensor: Tensor) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(teams.dist, "all_reduce", closed)
    with pytest.raises(PeerLost, match="closed by peer"):
        summed(torch.ones(2))


def test_a_failed_broadcast_means_a_lost_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node can go while a team begins, as well as later."""

    def closed(box: list[object]) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(teams.dist, "broadcast_object_list", closed)
    with pytest.raises(PeerLost, match="closed by peer"):
        Team(1, 2).beginning(None, bytes)


def test_a_full_gpu_is_no_lost_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new team would lack the same memory."""

    def full(total: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.distributed, "all_reduce", full)
    with pytest.raises(torch.OutOfMemoryError):
        summed(torch.ones(2))


@pytest.mark.parametrize("kept", [False, True])
def test_a_team_begins_from_its_first_process(kept: bool) -> None:
    """Whatever the others were built with: from its state, or from what it has stored."""
    stored = teacher("batch", ALONE).dump() if kept else None

    def made(team: Team) -> TeacherTraining:
        execution = Execution(CPU, team=team)
        return TeacherTraining(
            network("batch", seed=team.rank), SETTINGS, FRAME, *pixels(), execution, seed=7
        )

    def begin(training: TeacherTraining) -> None:
        team = training._manner.team
        state = team.beginning(stored if team.first else None, training.dump)
        assert state is not None
        training.resume(state)

    with wired(2) as everywhere:
        found = everywhere(made, begin)
    assert all(same(each.module, network("batch", seed=2 if kept else 0)) for each in found)
    assert ALONE.beginning(stored, lambda: b"own") == stored


@pytest.mark.parametrize("apart", [False, True])
def test_processes_that_end_apart_are_refused(apart: bool) -> None:
    """Equal steps from an equal beginning give equal parameters; anything else is no result, in any process."""

    def check(one: tuple[nn.Module, Team]) -> None:
        module, team = one
        with raises("team-apart") if apart else nullcontext():
            team.refuse_unlike(module)

    with wired(2) as everywhere:
        everywhere(lambda team: (network("batch", seed=team.rank * apart), team), check)
    ALONE.refuse_unlike(network("batch"))
