"""Training a student, an expert, and judging them, against torch's own optimisers and loops."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from rayddl.data.pixels import augment
from rayddl.methods.training import hard
from rayddl.methods.training.hard import Protocol, train_student, train_together
from rayddl.methods.training.metrics import accuracy
from rayddl.methods.training.steps import make_steps, one_hot
from rayddl.methods.trajectories.expert import Images, Training, load_training
from rayddl.methods.trajectories.settings import ExpertSettings
from rayddl.nets.build import build, flat, initial
from rayddl.nets.config import NetConfig
from rayddl.seeds import derive, generator
from tests.experts import train_expert

CONFIG, SHAPE, CLASSES = NetConfig(depth=1, width=4), (1, 8, 8), 3
STEPS = make_steps(flat(CONFIG, SHAPE, CLASSES), compile_=False)


def data(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, *SHAPE, generator=draws), torch.randint(CLASSES, (count,), generator=draws)


def vector(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def test_student_equals_torchs_sgd() -> None:
    """The hard protocol is torch.optim.SGD with the rate cut and momentum fresh after the middle."""
    x, y = data(6)
    protocol = Protocol(epochs=6, lr=0.1, augment="none", batch=4)
    actual = train_student(STEPS, protocol, initial(CONFIG, SHAPE, CLASSES, seed=1), x, y, CLASSES, seed=5)

    net, draws, lr = build(CONFIG, SHAPE, CLASSES, seed=1), generator(5, "student"), 0.1
    names = [p for n, p in net.named_parameters()]
    sgd = torch.optim.SGD(names, lr=lr, momentum=0.9, weight_decay=5e-4)
    for epoch in range(7):
        for picked in torch.randperm(6, generator=draws).split(4):
            sgd.zero_grad()
            nn.functional.cross_entropy(net(x[picked]), y[picked]).backward()
            for p in names:
                # A bias that instance norm removes has no gradient here, a zero one there.
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            sgd.step()
        if epoch == 4:
            sgd = torch.optim.SGD(names, lr=lr * 0.1, momentum=0.9, weight_decay=5e-4)
    torch.testing.assert_close(actual, vector(net), rtol=1e-4, atol=1e-6)


def test_student_learns_soft_labels() -> None:
    """Probabilities as labels give the gradient of the soft cross-entropy."""
    x, y = data(6)
    protocol = Protocol(epochs=3, lr=0.1, augment="none")
    start = initial(CONFIG, SHAPE, CLASSES, seed=1)

    hard = train_student(STEPS, protocol, start, x, y, CLASSES, seed=5)
    assert torch.equal(hard, train_student(STEPS, protocol, start, x, one_hot(y, CLASSES), CLASSES, seed=5))


def test_labels_are_spread_over_classes_a_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a large train split as a whole are as many numbers as images times classes."""
    spread: list[int] = []

    def watched(labels: Tensor, classes: int) -> Tensor:
        spread.append(len(labels))
        return one_hot(labels, classes)

    monkeypatch.setattr(hard, "one_hot", watched)
    x, y = data(6)
    start = initial(CONFIG, SHAPE, CLASSES, seed=1)
    protocol = Protocol(epochs=1, lr=0.1, augment="none", batch=4)
    train_student(STEPS, protocol, start, x, y, CLASSES, seed=5)
    train_together(STEPS, protocol, start[None], [x], [y], CLASSES, [5])

    assert set(spread) == {4, 2}


@pytest.mark.parametrize(
    "net",
    [NetConfig(depth=1, width=4), NetConfig(name="mlp", depth=2, width=8), NetConfig(name="lenet")],
    ids=lambda n: n.name,
)
def test_students_side_by_side_are_the_ones_trained_alone(net: NetConfig) -> None:
    """Each of three, on images of its own, with augmentation and an odd last batch, within rounding."""
    shape = (1, 8, 8) if net.name != "lenet" else (1, 28, 28)
    steps = make_steps(flat(net, shape, CLASSES), compile_=False)
    draws = torch.Generator().manual_seed(0)
    images = [torch.randn(7, *shape, generator=draws) for _ in range(3)]
    labels = [torch.randint(CLASSES, (7,), generator=draws) for _ in range(3)]
    starts = torch.stack([initial(net, shape, CLASSES, seed=s) for s in range(3)])
    protocol = Protocol(epochs=5, lr=0.05, augment="flip_crop_color", batch=4)
    seeds = [11, 12, 13]

    found = train_together(steps, protocol, starts, images, labels, CLASSES, seeds)

    alone = [
        train_student(steps, protocol, start, x, y, CLASSES, seed)
        for start, x, y, seed in zip(starts, images, labels, seeds, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, starts)


def test_accuracy_counts_hits_over_any_batches() -> None:
    """600 images, not a multiple of the batch: the share of right answers is exact."""
    x, y = data(600)
    theta = initial(CONFIG, SHAPE, CLASSES, seed=1)
    expected = (STEPS.net(theta, x).argmax(1) == y).sum().item() / 600

    assert accuracy(STEPS, theta, x, y) == expected


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_expert_is_the_same_however_it_is_interrupted(momentum: float) -> None:
    """An expert resumed from bytes after every epoch equals one trained at a stretch, bit for bit."""
    train, test = Images(*data(50)), Images(*data(20, seed=1))
    settings = ExpertSettings(
        epochs=4, lr=0.05, momentum=momentum, weight_decay=1e-4, batch=16, augment="flip_crop"
    )
    start = initial(CONFIG, SHAPE, CLASSES, seed=2)
    whole = train_expert(STEPS, settings, start, train, test, CLASSES, seed=9)
    part = train_expert(STEPS, settings.model_copy(update={"epochs": 1}), start, train, test, CLASSES, seed=9)
    for epochs in (2, 3, 4):
        part = train_expert(
            STEPS,
            settings.model_copy(update={"epochs": epochs}),
            load_training(part.dump()),
            train,
            test,
            CLASSES,
            seed=9,
        )

    assert len(whole.snapshots) == 5
    for a, b in zip(whole.snapshots, part.snapshots, strict=True):
        assert torch.equal(a, b)
    assert [e.test_accuracy for e in whole.history] == [e.test_accuracy for e in part.history]


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.01)])
def test_an_experts_epochs_are_those_of_torchs_sgd(momentum: float, decay: float) -> None:
    """Plain SGD over permutations of the images, odd last batches included, and what is recorded of each epoch."""
    x, y = data(20)
    start, test = initial(CONFIG, SHAPE, CLASSES, seed=2), Images(*data(30, seed=1))
    settings = ExpertSettings(
        epochs=2, lr=0.1, momentum=momentum, weight_decay=decay, batch=8, augment="none"
    )
    told: list[tuple[int, bytes, Training]] = []
    expert = train_expert(
        STEPS, settings, start, Images(x, y), test, CLASSES, 3,
        lambda now: told.append((len(now.snapshots), now.dump(), now)),
    )  # fmt: skip

    net = build(CONFIG, SHAPE, CLASSES, seed=2)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum, weight_decay=decay)
    before = vector(net)
    first = expert.history[0]
    assert (first.epoch, first.step_norm, first.seconds) == (0, 0.0, 0.0)
    assert math.isnan(first.train_loss)
    assert first.test_accuracy == accuracy(STEPS, start, test.x, test.y)
    for epoch in (1, 2):
        total = 0.0
        for picked in torch.randperm(20, generator=generator(3, "epoch", epoch)).split(8):
            sgd.zero_grad()
            loss = nn.functional.cross_entropy(net(x[picked]), y[picked])
            loss.backward()
            for p in net.parameters():
                # A bias that instance norm removes has no gradient here, a zero one there.
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            sgd.step()
            total += float(loss.detach()) * len(picked)
        record, after = expert.history[epoch], expert.snapshots[epoch]
        torch.testing.assert_close(after, vector(net), rtol=1e-4, atol=1e-5)
        assert (record.epoch, record.train_loss) == (epoch, pytest.approx(total / 20, rel=1e-4))
        assert record.test_accuracy == accuracy(STEPS, after, test.x, test.y)
        assert record.step_norm == pytest.approx(float((vector(net) - before).norm()), rel=1e-3)
        assert 0 < record.seconds < 3600
        before = vector(net)
    assert [count for count, _, _ in told] == [2, 3]
    # What was seen after the first epoch is not changed by the second.
    assert told[0][1] == told[0][2].dump()
    assert expert.table()[:, 0].tolist() == [0, 1, 2]
    assert load_training(expert.dump()).history[1:] == expert.history[1:]


def test_an_experts_augmentation_is_drawn_batch_by_batch() -> None:
    """The permutation and every batch's augmentation come from one generator of the epoch."""
    x, y = data(6)
    start = initial(CONFIG, SHAPE, CLASSES, seed=2)
    made = train_expert(
        STEPS,
        ExpertSettings(epochs=1, lr=0.1, batch=4, augment="scale_crop"),
        start,
        Images(x, y),
        Images(x, y),
        CLASSES,
        3,
    )
    draws, theta = generator(3, "epoch", 1), start.clone()
    for picked in torch.randperm(6, generator=draws).split(4):
        shown = augment.apply(x[picked], augment.draw(("scale", "crop"), tuple(x[picked].shape), draws))
        theta -= 0.1 * STEPS.gradient(theta, shown, one_hot(y[picked], CLASSES))[0]

    torch.testing.assert_close(made.snapshots[1], theta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_uncompiled_steps_have_the_bits_of_the_functional_interface(norm: str) -> None:
    """Gradient, loss and running statistics, under ``no_grad`` too."""
    net = NetConfig(depth=2, width=8, norm=norm)
    steps = make_steps(flat(net, SHAPE, CLASSES), compile_=False)
    x, y = data(7)
    labels, theta = one_hot(y, CLASSES), initial(net, SHAPE, CLASSES, seed=4)
    before = steps.fresh_statistics(torch.device("cpu"))

    def objective(theta_P: Tensor) -> tuple[Tensor, Tensor]:
        tracked = (steps.net(theta_P, x), x) if before is None else steps.net.track(theta_P, before, x)
        out, after = tracked
        return nn.functional.cross_entropy(out, labels), after

    gradient, (value, after) = torch.func.grad_and_value(objective, has_aux=True)(theta)
    with torch.no_grad():
        found = steps.training(theta, before, x, labels, usual=True)

    assert torch.equal(found[0], gradient)
    assert torch.equal(found[1], value)
    assert (found[2] is None) == (norm == "instance")
    assert found[2] is None or torch.equal(found[2], after)
    assert not any(part is not None and part.requires_grad for part in found)


def test_uncompiled_work_does_not_load_the_compiler() -> None:
    """A worker whose steps are not compiled, and a driver that estimates a network's cost, start without torch's
    compiler; the digits are read without scikit-learn. Each takes three seconds of processor time to import.
    """
    code = """
import sys, torch
from rayddl.data.config import SourceConfig
from rayddl.data.sources import registry
from rayddl.methods.training.steps import steps_for
from rayddl.nets import cost
from rayddl.nets.build import initial
from rayddl.nets.config import NetConfig
net = NetConfig(depth=1, width=4)
steps, theta = steps_for(net, (1, 8, 8), 2, "fp32", False), initial(net, (1, 8, 8), 2, seed=0)
x, y = torch.zeros(3, 1, 8, 8), torch.ones(3, 2) / 2
steps.gradient(theta, x, y)
cost.forward_flops(net, (1, 8, 8), 2)
assert len(registry.load(SourceConfig(name="digits")).train) > 1400
print([name for name in ("torch._dynamo", "sklearn") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_derived_seeds_are_stable_and_distinct() -> None:
    """A purpose's seed never changes between versions, and names do not run into each other."""
    assert derive(0, "experts", 3) == derive(0, "experts", 3)
    purposes = [(0, "a", 1), (0, "a", "1"), (0, "a1"), (1, "a", 1), (0, "a", 1, 0), (0, "b", 1)]
    assert len({derive(*p) for p in purposes}) == len(purposes)
    assert derive(0, "experts", 3) == 8552806044242020746
    assert all(0 <= derive(seed, "x") < 2**63 for seed in range(100))
    assert max(derive(seed, "x") for seed in range(100)) > 2**62
    drawn = torch.rand(3, generator=generator(0, "experts", 3))
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(8552806044242020746)))
