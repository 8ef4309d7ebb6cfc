"""Training an observer: torch's own SGD and schedule, interruptions, and the verdict on it."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from rayddl.data.pixels import augment
from rayddl.methods.training import teacher
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.settings import TeacherSettings
from rayddl.methods.training.soft import Execution
from rayddl.methods.training.teacher import ObserverCheck, TeacherTraining, outputs, predictions, share_right
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.seeds import generator
from tests.raising import raises

NET, SHAPE, CLASSES = NetConfig(depth=1, width=4, norm="batch"), (1, 8, 8), 3
FRAME = InputSpec(SHAPE, (0.3,), (0.4,))
MANNER = Execution(torch.device("cpu"))
SETTINGS = TeacherSettings(epochs=3, lr=0.1, batch=4, warmup=1.0, label_smoothing=0.1)


def data(count: int = 10) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, *SHAPE), generator=draws).to(torch.uint8)
    return x, torch.randint(CLASSES, (count,), generator=draws)


def network() -> nn.Module:
    """Frozen, as a loaded one may be."""
    return build(NET, SHAPE, CLASSES, seed=2).requires_grad_(False)


def training(count: int = 10) -> TeacherTraining:
    return TeacherTraining(network(), SETTINGS, FRAME, *data(count), MANNER, seed=7)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_teacher_equals_torchs_sgd() -> None:
    """SGD with momentum and decay on smoothed labels, shifted and flipped, in a plain loop."""
    trained, (images, labels) = training(), data()

    def test() -> float:
        trained.module.eval()
        return 0.5

    made = trained.run(test)

    assert not made.training
    net = network().train().requires_grad_(True)
    sgd = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    criterion, at = nn.CrossEntropyLoss(label_smoothing=0.1), 0
    for epoch in range(3):
        total = 0.0
        order = torch.randperm(10, generator=generator(7, "order", epoch))
        for step, picked in enumerate(order.split(4)):
            draws = generator(7, "augment", epoch, step)
            x = (images[picked].float() / 255 - 0.3) / 0.4
            for name in ("crop", "flip"):
                x = augment.apply(x, augment.draw((name,), tuple(x.shape), draws))
            for group in sgd.param_groups:
                group["lr"] = SETTINGS.lr_at(at, 3)
            sgd.zero_grad()
            loss = criterion(net(x), labels[picked])
            loss.backward()
            sgd.step()
            at += 1
            total += float(loss.detach()) * len(picked)
        record = trained.history[epoch]
        assert (record.epoch, record.test_accuracy, record.lr) == (epoch + 1, 0.5, SETTINGS.lr_at(at - 1, 3))
        assert record.train_loss == pytest.approx(total / 10, rel=1e-4)
        assert 0 < record.seconds < 3600
    for a, b in zip(made.state_dict().values(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    """Warm-up to the highest rate, then torch's cosine over what is left, to almost nothing."""
    settings = TeacherSettings(epochs=20, lr=0.2, warmup=2.0)
    rates = [settings.lr_at(step, 10) for step in range(200)]
    assert rates[:20] == pytest.approx([0.2 * (s + 1) / 21 for s in range(20)])
    assert rates[20] == 0.2
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=180)
    for rate in rates[20:]:
        assert rate == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        optimiser.step()
        schedule.step()
    assert TeacherSettings(epochs=5, lr=1.0, warmup=9.0).lr_at(10, 10) == 1.0
    # A fifth of three epochs of three steps is 1.8 steps: up in two, and down from there.
    short = TeacherSettings(epochs=3, lr=1.0)
    assert [short.lr_at(step, 3) for step in range(3)] == pytest.approx(
        [0.5, 1.0, 0.5 * (1 + math.cos(math.pi * 0.2 / 7.2))]
    )
    assert TeacherSettings(epochs=3, lr=0.3, warmup=0.0).lr_at(0, 3) == 0.3


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_teacher_goes_on_from_any_step(stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after any step, in an epoch or at its end, and resumed from bytes: the same bits.

    By a clock that is a second later at each look, an epoch takes one for each of three steps and one for the test,
    the pause not counted.
    """
    monkeypatch.setattr(teacher, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    whole, dumps = training(), []
    made = whole.run(lambda: 0.25, lambda now: dumps.append(now.dump()))
    assert len(dumps) == 9

    part = training()
    part.resume(dumps[stop - 1])
    assert part.done == pytest.approx(stop / 3)
    assert same(part.run(lambda: 0.25), made)
    assert [(e.epoch, e.train_loss, e.lr, e.test_accuracy) for e in part.history] == [
        (e.epoch, e.train_loss, e.lr, e.test_accuracy) for e in whole.history
    ]
    assert [e.seconds for e in part.history] == [e.seconds for e in whole.history] == [4.0] * 3


def test_a_training_that_diverges_ends() -> None:
    """With the epoch and what to lower, at its end or before a state that is of no use is kept."""
    steep = SETTINGS.model_copy(update={"lr": 1e30, "warmup": 0.0})
    trained = TeacherTraining(network(), steep, FRAME, *data(), MANNER, seed=7)
    with raises("teacher-diverged"):
        trained.run(lambda: 0.5)
    assert len(trained.history) < 3
    with raises("teacher-diverged"):
        trained.dump()


def test_a_single_image_left_over_is_passed_by() -> None:
    """9 images in batches of 4: two steps an epoch, as batch norm cannot take the ninth alone."""
    told: list[float] = []
    training(9).run(lambda: 0.0, lambda now: told.append(now.done))
    assert told == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]


def test_a_set_of_one_image_is_learned() -> None:
    """A single image that is the whole set is a batch, one an epoch."""
    told: list[float] = []
    training(1).run(lambda: 0.0, lambda now: told.append(now.done))
    assert told == [1.0, 2.0, 3.0]


def test_noise_follows_from_seed_epoch_and_step() -> None:
    """With dropout, too, a teacher that is resumed has the bits of one trained at a stretch."""

    def made() -> TeacherTraining:
        module = nn.Sequential(nn.Dropout(0.5), network())
        return TeacherTraining(module, SETTINGS, FRAME, *data(), MANNER, seed=7)

    dumps: list[bytes] = []
    whole = made().run(lambda: 0.25, lambda now: dumps.append(now.dump()))
    for stop in (1, 3):
        part = made()
        part.resume(dumps[stop - 1])
        assert same(part.run(lambda: 0.25), whole)


def test_what_is_shown_to_a_network_fits_its_frame() -> None:
    """Images of another size are brought to the frame first, and a network at rest stays so."""
    net, large = network().eval(), torch.randint(256, (3, 1, 16, 16), dtype=torch.uint8)
    (found,) = outputs(net, FRAME, large, MANNER.device)
    torch.testing.assert_close(found, net(FRAME.normalised(FRAME.fitted(large))))
    assert not found.requires_grad
    assert not net.training


def test_predictions_are_made_in_eval_mode_over_any_batches() -> None:
    """600 images: the likeliest outputs by running statistics; a network in training stays so."""
    images, labels = data(600)
    net = network().train()
    predicted = predictions(net, FRAME, images, MANNER.device)
    assert net.training
    expected = net.eval()((images.float() / 255 - 0.3) / 0.4).argmax(1)
    assert torch.equal(predicted, expected)
    assert share_right(predicted, labels) == int((expected == labels).sum()) / 600


def verdict(classes: int, count: int, order: list[int] | None = None, right: float = 0.9) -> ObserverCheck:
    """Of predictions that are ``right`` to a share, under the names that ``order`` gives."""
    rng = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % classes
    guesses = torch.randint(classes, (count,), generator=rng)
    predicted = torch.where(torch.rand(count, generator=rng) < right, labels, guesses)
    if order is not None:
        predicted = torch.tensor(order)[predicted]
    return ObserverCheck.of(predicted, labels, classes)


def test_a_good_teacher_passes() -> None:
    """Far above chance, for two classes as for a hundred."""
    for classes in (2, 3, 10, 100):
        good = verdict(classes, 1000)
        assert not good.weak
        assert good.reordered == pytest.approx(good.accuracy)
        assert good.bar < 1


def test_a_guessing_teacher_is_weak_where_enough_images_say_so() -> None:
    """Chance is refused on a thousand images, not on eight."""
    guess = verdict(10, 1000, right=0.0)
    assert guess.weak
    assert not guess.shuffled
    assert not verdict(10, 8, right=0.0).weak
    assert verdict(2, 2000, right=0.0).weak


def test_a_teacher_with_its_classes_in_another_order_is_known_for_it() -> None:
    """Good under other names: weak, and the order is at fault."""
    turned = verdict(10, 1000, [*range(1, 10), 0])
    assert turned.weak
    assert turned.shuffled
    assert turned.reordered > 0.85
    assert turned.accuracy < 0.05


def test_the_bar_is_three_times_chance_for_many_classes() -> None:
    """Three times chance from ten classes on (nearly), never out of reach for few."""
    assert ObserverCheck(0, 0, 1, 1000).bar == pytest.approx(0.003)
    assert ObserverCheck(0, 0, 1, 100).bar == pytest.approx(0.03)
    assert ObserverCheck(0, 0, 1, 2).bar == pytest.approx(0.6)
    assert math.isclose(ObserverCheck(0, 0, 1, 10).bar, 0.28)


def test_weak_and_shuffled_at_the_edge() -> None:
    """Two deviations below the bar is weak; an order at fault has to do twice as well as the bar, and thrice itself."""
    # Ten classes: a bar of 0.28, whose deviation over 2016 images is 0.01.
    assert ObserverCheck(0.2599, 0, 2016, 10).weak
    assert not ObserverCheck(0.2601, 0, 2016, 10).weak
    assert ObserverCheck(0.1, 0.57, 2016, 10).shuffled
    assert not ObserverCheck(0.1, 0.55, 2016, 10).shuffled
    assert not ObserverCheck(0.2, 0.59, 2016, 10).shuffled
    assert ObserverCheck(0.2, 0.61, 2016, 10).shuffled
    assert not ObserverCheck(0.3, 0.95, 2016, 10).shuffled
    assert not ObserverCheck(0.0, 2 * ObserverCheck(0, 0, 1, 10).bar, 2016, 10).shuffled


def test_a_verdict_counts_predictions() -> None:
    """Shares of right answers, as they are and with every class by its most frequent output."""
    verdict = ObserverCheck.of(torch.tensor([0, 2, 2, 2]), torch.tensor([0, 1, 1, 2]), 3)
    assert verdict == ObserverCheck(0.5, 1.0, 4, 3)
    assert ObserverCheck.of(torch.tensor([0, 2, 1, 2]), torch.tensor([0, 1, 1, 2]), 3) == ObserverCheck(
        0.75, 0.75, 4, 3
    )
