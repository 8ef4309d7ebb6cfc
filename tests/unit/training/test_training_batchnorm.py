"""Batch norm in training on flat vectors: the batch's statistics in training, the running ones in tests."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rayddl.methods.training.hard import Protocol, train_student
from rayddl.methods.training.metrics import accuracy
from rayddl.methods.training.steps import make_steps
from rayddl.methods.trajectories.expert import Images, load_training
from rayddl.methods.trajectories.settings import ExpertSettings
from rayddl.nets.build import build, flat, initial
from rayddl.nets.config import NetConfig
from rayddl.seeds import generator
from tests.experts import train_expert

CONFIG, SHAPE, CLASSES = NetConfig(depth=2, width=4, norm="batch"), (1, 8, 8), 3
STEPS = make_steps(flat(CONFIG, SHAPE, CLASSES), compile_=False)


def data(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, *SHAPE, generator=draws) + 1, torch.randint(CLASSES, (count,), generator=draws)


def vector(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def running(net: nn.Module) -> Tensor:
    kept = [b.reshape(-1) for n, b in net.named_buffers() if not n.endswith("num_batches_tracked")]
    return torch.cat(kept)


def test_student_equals_torchs_module() -> None:
    """Parameters and running statistics are those of a module trained by torch.optim.SGD."""
    x, y = data(7)
    protocol = Protocol(epochs=6, lr=0.05, augment="none", batch=4)
    actual = train_student(STEPS, protocol, initial(CONFIG, SHAPE, CLASSES, seed=1), x, y, CLASSES, seed=5)

    net, draws = build(CONFIG, SHAPE, CLASSES, seed=1).train(), generator(5, "student")
    sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(7):
        for picked in torch.randperm(7, generator=draws).split(4):
            sgd.zero_grad()
            nn.functional.cross_entropy(net(x[picked]), y[picked]).backward()
            sgd.step()
        if epoch == 4:
            sgd = torch.optim.SGD(net.parameters(), lr=0.005, momentum=0.9, weight_decay=5e-4)
    torch.testing.assert_close(actual, torch.cat([vector(net), running(net)]), rtol=1e-3, atol=1e-5)

    test_x, test_y = data(600, seed=1)
    expected = (net.eval()(test_x).argmax(1) == test_y).sum().item() / 600
    assert accuracy(STEPS, actual, test_x, test_y) == pytest.approx(expected, abs=0.005)


def test_a_tested_student_does_not_depend_on_its_company() -> None:
    """With running statistics an image's logits are its own; without, they depend on the batch."""
    x, y = data(12)
    theta = train_student(
        STEPS,
        Protocol(epochs=3, lr=0.05, augment="none"),
        initial(CONFIG, SHAPE, CLASSES, seed=1),
        x,
        y,
        CLASSES,
        seed=5,
    )
    parameters = theta[: sum(STEPS.net.sizes)]

    torch.testing.assert_close(STEPS.logits(theta, x)[:3], STEPS.logits(theta, x[:3]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(STEPS.logits(parameters, x)[:3], STEPS.logits(parameters, x[:3]), atol=1e-3)


def test_networks_without_batch_norm_have_no_statistics() -> None:
    """Their vectors are parameters alone, trained or not."""
    config = NetConfig(depth=1, width=4)
    steps = make_steps(flat(config, SHAPE, CLASSES), compile_=False)
    start = initial(config, SHAPE, CLASSES, seed=1)

    assert steps.net.statistics is None
    assert steps.fresh_statistics(torch.device("cpu")) is None
    assert len(
        train_student(steps, Protocol(epochs=1, lr=0.1, augment="none"), start, *data(4), CLASSES, seed=5)
    ) == len(start)


def test_expert_is_tested_by_statistics_that_survive_an_interruption() -> None:
    """An expert resumed from bytes has the accuracies and statistics of one trained at a stretch."""
    train, test = Images(*data(50)), Images(*data(30, seed=1))
    settings = ExpertSettings(epochs=3, lr=0.05, momentum=0.9, weight_decay=1e-4, batch=16, augment="none")
    start = initial(CONFIG, SHAPE, CLASSES, seed=2)
    whole = train_expert(STEPS, settings, start, train, test, CLASSES, seed=9)
    part = train_expert(STEPS, settings.model_copy(update={"epochs": 1}), start, train, test, CLASSES, seed=9)
    for epochs in (2, 3):
        again = load_training(part.dump())
        part = train_expert(
            STEPS, settings.model_copy(update={"epochs": epochs}), again, train, test, CLASSES, seed=9
        )

    assert whole.statistics is not None
    assert part.statistics is not None
    assert torch.equal(whole.statistics, part.statistics)
    assert [e.test_accuracy for e in whole.history] == [e.test_accuracy for e in part.history]
    assert len(whole.snapshots[-1]) == len(start)
    tested = torch.cat([whole.snapshots[-1], whole.statistics])
    assert whole.history[-1].test_accuracy == accuracy(STEPS, tested, test.x, test.y)


DEEP = NetConfig(name="resnet18", norm="batch")
"""Its last features have one pixel."""


def _deep(count: int, batch: int) -> tuple[Tensor, list[int]]:
    """A student after 2 epochs, and the sizes of its batches."""
    steps, sizes = make_steps(flat(DEEP, SHAPE, CLASSES), compile_=False), []

    def noted(theta: Tensor, statistics: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sizes.append(len(x))
        return steps.tracked_eager(theta, statistics, x, y)

    watched = replace(steps, tracked=noted, tracked_eager=noted)
    x, y = data(count)
    protocol = Protocol(epochs=1, lr=0.05, augment="none", batch=batch)
    return train_student(watched, protocol, initial(DEEP, SHAPE, CLASSES, seed=1), x, y, CLASSES, 5), sizes


@pytest.mark.parametrize(("count", "batch", "sizes"), [(9, 4, [4, 5]), (3, 2, [3]), (6, 4, [4, 2])])
def test_a_last_batch_of_one_joins_the_one_before(count: int, batch: int, sizes: list[int]) -> None:
    """Features of one pixel of one image have no variance; no image is left out."""
    theta, found = _deep(count, batch)

    assert found == 2 * sizes
    assert theta.isfinite().all()


def test_an_experts_last_batch_of_one_joins_the_one_before() -> None:
    """The same for experts."""
    x, y = data(9)
    steps = make_steps(flat(DEEP, SHAPE, CLASSES), compile_=False)
    settings = ExpertSettings(epochs=2, batch=4, augment="none")
    images = Images(x, y)

    training = train_expert(
        steps, settings, initial(DEEP, SHAPE, CLASSES, seed=1), images, images, CLASSES, seed=3
    )

    assert all(snapshot.isfinite().all() for snapshot in training.snapshots)


def test_a_last_batch_of_one_that_has_a_variance_is_as_before() -> None:
    """Features of several pixels: the batches are torch's."""
    x, _ = data(9)
    start, protocol = (
        initial(CONFIG, SHAPE, CLASSES, seed=1),
        Protocol(epochs=2, lr=0.05, augment="none", batch=4),
    )
    draws = generator(5, "student")

    assert not STEPS.needs_two(start, x)
    assert [len(part) for part in protocol.order(9, draws)] == [4, 4, 1]
