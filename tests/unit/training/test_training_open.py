"""The open soft-label protocol: each choice against its formula or torch, and the recipes' numbers."""

from __future__ import annotations

import math
import warnings
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayddl import plugins
from rayddl.methods.training import checkpoint, losses, mixes, optimisers, soft
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.observer import frozen
from rayddl.methods.training.optimisers import Muon, sgd
from rayddl.methods.training.soft import (
    OWN,
    EpochData,
    Execution,
    OwnLabels,
    SoftProtocol,
    SoftTraining,
    criterion,
    inputs,
    mixed,
    targets_of,
)
from rayddl.methods.training.soft_settings import recipe
from rayddl.methods.training.steps import one_hot
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.stages.evaluate.settings import EvaluateConfig
from tests.raising import raises

NET, SHAPE, K = NetConfig(depth=1, width=4, norm="batch"), (1, 8, 8), 3
FRAME = InputSpec(SHAPE, (0.3,), (0.4,))
MANNER = Execution(torch.device("cpu"))
OWN_LABELS = one_hot(torch.arange(10) % K, K)


def pixels() -> Tensor:
    return torch.randint(256, (10, *SHAPE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def network(seed: int) -> nn.Module:
    return build(NET, SHAPE, K, seed=seed)


def training(**changes: Any) -> SoftTraining:
    protocol = SoftProtocol(**{"batch": 4, "factor": 2, "epochs": 3, **changes})
    epoch_data = lambda epoch: EpochData(protocol.draw(epoch, 10, SHAPE[1:], FRAME, 11))  # noqa: E731
    seen = None if protocol.loss == OWN else frozen(network(1))
    return SoftTraining(
        network(2), protocol, FRAME, pixels(), epoch_data, seen, MANNER, 5, OwnLabels(OWN_LABELS, K)
    )


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_losses_of_own_labels_are_their_formulas() -> None:
    """Mean squares and a cross-entropy; the cosine with two unit vectors added; smoothing over the other classes."""
    draws = torch.Generator().manual_seed(0)
    logits, said = (torch.randn(5, 4, dtype=torch.float64, generator=draws) for _ in range(2))
    labels = torch.tensor([0, 3, 1, 1, 2])
    own = one_hot(labels, 4).double()

    mse = SoftProtocol(batch=1, loss="mse_gt")
    expected = ((logits - said) ** 2).mean() + 0.025 * F.cross_entropy(logits, labels)
    torch.testing.assert_close(criterion(mse)(logits, targets_of(said, mse, own)), expected)

    gift = SoftProtocol(batch=1, loss="gift")
    smooth = torch.where(own > 0, 0.9, 0.1 / 3)
    target = said / said.norm(dim=1, keepdim=True) + 0.1 * smooth / smooth.norm(dim=1, keepdim=True)
    cosine = (logits * target).sum(1) / (logits.norm(dim=1) * target.norm(dim=1))
    torch.testing.assert_close(criterion(gift)(logits, targets_of(said, gift, own)), 1 - cosine.mean())
    torch.testing.assert_close(losses.smoothed(own, 0.3), torch.where(own > 0, 0.7, 0.1).double())


@pytest.mark.parametrize(("loss", "needed"), [(OWN, True), ("mse_gt", True), ("gift", True), ("kl", False)])
def test_losses_of_own_labels_need_them(loss: str, needed: bool) -> None:
    """Before anything is trained; the published loss does without."""
    protocol = SoftProtocol(batch=4, loss=loss)
    lectures = lambda epoch: EpochData(protocol.draw(epoch, 10, SHAPE[1:], FRAME, 11))  # noqa: E731

    def made(labels: OwnLabels | None) -> SoftTraining:
        return SoftTraining(network(2), protocol, FRAME, pixels(), lectures, None, MANNER, 5, labels)

    made(OwnLabels(OWN_LABELS, K))
    with pytest.raises(ValueError, match="needs the images' own labels") if needed else nullcontext():
        made(None)


def test_a_loss_of_a_plugin_gets_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the observer gave them, whether the images have own labels or not."""
    protocol, said = SoftProtocol(batch=1, loss="mine"), torch.randn(4, K)
    monkeypatch.setattr(soft.plugins, "find", lambda *named: {("losses", "mine"): F.l1_loss}[named])

    assert criterion(protocol) is F.l1_loss
    assert targets_of(said, protocol) is said
    assert targets_of(said, protocol, torch.eye(K)[[0, 1, 2, 0]]) is said


@pytest.mark.parametrize(
    ("loss", "code"),
    [
        (lambda mine, theirs: mine @ theirs, "plugin-failed"),
        (lambda mine, theirs: (mine - theirs).square().mean(1), "plugin-loss-output"),
        (lambda mine, theirs: (mine - theirs).square().mean().item(), "plugin-loss-output"),
        (lambda _, theirs: theirs.square().mean(), "plugin-loss-output"),
        (F.l1_loss, None),
    ],
)
def test_a_loss_of_a_plugin_is_tried_before_the_first_step(loss: Any, code: str | None) -> None:
    """One that raises, or returns anything but a scalar of the student's logits, is refused with its name."""
    try:
        plugins.activate([plugins.Plugin("toy", "1", losses={"mine": loss})])
        student = training(loss="mine", epochs=1)
        with raises(code) if code else nullcontext() as caught:
            student.run()
    finally:
        plugins.activate(())
    assert caught is None or "'mine' of plugin toy 1" in str(caught.value)


def test_accuracies_of_late_epochs_are_part_of_the_state() -> None:
    """Of a state without them, as older ones are, there are none."""
    one, other, older = training(), training(), training()
    one.losses, one.looks, one.epoch = [0.3, 0.2], [0.5, 0.25], 2
    other.resume(one.dump())
    assert (other.losses, other.looks, other.epoch) == ([0.3, 0.2], [0.5, 0.25], 2)
    numbers = {"losses": torch.tensor([0.3], dtype=torch.float64)}
    older.resume(checkpoint.dump(one.student, one._optimiser, numbers))
    assert (older.losses, older.looks, older.epoch) == ([0.3], [], 1)


def test_own_labels_are_mixed_as_cutmix_mixes_the_pixels() -> None:
    """The share of a partner's label is the share of its pixels."""
    draws = mixes.draw(
        6, (8, 8), (8, 8), batch=6, factor=1, cutmix=True, generator=torch.Generator().manual_seed(4)
    )
    own = one_hot(torch.arange(6), 6)
    flat = own[:, :, None, None].expand(-1, -1, 8, 8)[draws.picked]
    plain = replace(
        draws, boxes=torch.tensor([0, 0, 8, 8]).expand(6, -1), flipped=torch.zeros(6, dtype=torch.bool)
    )
    found = mixed(own[draws.picked], draws, (8, 8))
    torch.testing.assert_close(found, mixes.shown(flat, plain, (8, 8)).mean((2, 3)))
    assert float(found[0].max()) < 1


def test_students_of_own_labels_need_no_observer() -> None:
    """A plain loop with torch's cross-entropy and mixed labels gives the same first losses."""
    ours = training(loss=OWN, epochs=1)
    student = network(2)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0)
    protocol = SoftProtocol(batch=4, factor=2, epochs=1)
    total = 0.0
    student.train()
    for part in protocol.draw(0, 10, SHAPE[1:], FRAME, 11).batches(4):
        x = inputs(pixels(), part, FRAME, torch.device("cpu"))
        loss = F.cross_entropy(student(x), mixed(OWN_LABELS[part.picked], part, (8, 8)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += float(loss.detach()) * len(x)
    ours.run()
    assert ours.losses[0] == pytest.approx(total / 10, rel=1e-3)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("half_cosine", lambda e: 0.5 * (1 + math.cos(math.pi * e / 20))),
        ("cosine", lambda e: 0.5 * (1 + math.cos(math.pi * e / 10))),
        ("linear", lambda e: 1 - e / 10),
        ("constant", lambda e: 1.0),
    ],
)
def test_schedules(schedule: str, expected: Any) -> None:
    """The rate of every epoch."""
    protocol = SoftProtocol(batch=1, epochs=10, lr=0.2, schedule=schedule)  # type: ignore[arg-type]
    assert [protocol.lr_in(e) for e in range(10)] == pytest.approx([0.2 * expected(e) for e in range(10)])


def test_the_tested_network_is_an_average_of_the_students_weights() -> None:
    """``d * average + (1 - d) * student`` after every step, from the start on; running statistics are the student's."""
    path: list[dict[str, Tensor]] = []
    ours = training(ema=0.8, epochs=2)
    expected = {n: v.clone() for n, v in ours.student.named_parameters()}
    step = ours._optimiser.step

    def recorded(*args: Any) -> Any:
        found = step(*args)
        path.append({n: v.detach().clone() for n, v in ours.student.named_parameters()})
        return found

    ours._optimiser.step = recorded  # type: ignore[method-assign]
    tested = ours.run()
    for point in path:
        expected = {n: 0.8 * v + 0.2 * point[n] for n, v in expected.items()}
    assert len(path) == 6
    for name, value in tested.named_parameters():
        torch.testing.assert_close(value.detach(), expected[name].detach())
        # A bias before batch norm has gradient zero, and without weight decay stays as it was.
        assert torch.equal(value, path[-1][name]) == name.endswith("conv.bias")
    for name, value in tested.named_buffers():
        assert torch.equal(value, dict(ours.student.named_buffers())[name])


def test_statistics_are_updated_twice_as_published() -> None:
    """The student also sees the batch before CutMix, without a gradient."""
    ours, once = training(statistics="twice", epochs=1), training(epochs=1)
    ours.run(), once.run()
    tracked = [int(weights(t.student)["blocks.0.norm.num_batches_tracked"]) for t in (once, ours)]
    assert tracked == [3, 6]
    assert not torch.equal(*(weights(t.student)["blocks.0.norm.running_mean"] for t in (once, ours)))
    # The extra run has no gradient: the weights move alike up to batch norm's use of batch statistics.
    torch.testing.assert_close(
        weights(ours.student)["classifier.weight"], weights(once.student)["classifier.weight"]
    )


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_hidden_weights_as_torchs_muon(memory: torch.memory_format) -> None:
    """Convolutions as matrices of a row for each output; the last layer, biases and norms as AdamW."""
    module = build(NetConfig(depth=2, width=4, norm="batch"), SHAPE, K, seed=0).to(memory_format=memory)
    start = weights(module)
    optimiser = Muon(module, 0.01, 0.02)
    hidden = {n: v for n, v in start.items() if n.endswith("conv.weight")}
    assert {n for n, p in module.named_parameters() if "momentum_buffer" in optimiser.state[p]} == set()
    matrices = {n: nn.Parameter(v.flatten(1).clone()) for n, v in hidden.items()}
    muon = torch.optim.Muon(matrices.values(), lr=0.01, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    last = nn.Parameter(start["classifier.weight"].clone())
    adamw = torch.optim.AdamW([last], lr=0.01, weight_decay=0.02)
    for seed in range(2):
        x = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(seed))
        optimiser.zero_grad()
        module(x).square().sum().backward()
        grads = {n: p.grad for n, p in module.named_parameters()}
        for name, matrix in matrices.items():
            matrix.grad = grads[name].flatten(1).clone()  # type: ignore[union-attr]
        last.grad = grads["classifier.weight"].clone()  # type: ignore[union-attr]
        optimiser.step(), muon.step(), adamw.step()  # type: ignore[no-untyped-call]
        for name, matrix in matrices.items():
            # Newton-Schulz iterates in bfloat16.
            step = (module.state_dict()[name].flatten(1) - start[name].flatten(1)).norm()
            apart = (module.state_dict()[name].flatten(1) - matrix.detach()).norm()
            assert float(apart) < 0.05 * float(step)
        torch.testing.assert_close(module.state_dict()["classifier.weight"], last.detach())
    assert sum("momentum_buffer" in optimiser.state[p] for p in module.parameters()) == 2


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_any_training_resumes_bit_for_bit(optimizer: str, ema: float) -> None:
    """Cut after an epoch and resumed, the tested network is that of an uninterrupted training."""
    changes = {"optimizer": optimizer, "ema": ema, "loss": "mse_gt"}
    whole = weights(training(**changes).run())
    first, kept = training(**changes), []
    first.run(lambda now: kept.append(now.dump()))
    second = training(**changes)
    second.resume(kept[0])
    assert second.epoch == 1
    found = weights(second.run())
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_sgd_has_momentum_and_decays_weights_only() -> None:
    """The groups of the published AdamW."""
    found = {g["weight_decay"]: g["momentum"] for g in sgd(network(0), 0.1, 0.01).param_groups}
    assert found == {0.01: 0.9, 0.0: 0.9}


def test_the_smallest_crop_can_be_set() -> None:
    """Areas from ``least`` on, also for images of one patch; the default is 1/factor, with the same draws as before."""

    def areas(least: float | None, factor: int) -> Tensor:
        draws = mixes.draw(
            2000, (64, 64), (64, 64), batch=10, factor=factor, cutmix=True, least=least,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        return draws.boxes[:, 2] * draws.boxes[:, 3] / 64**2

    assert float(areas(0.1, 1).min()) == pytest.approx(0.1, abs=0.02)
    assert float(areas(None, 2).min()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(areas(0.5, 2), areas(None, 2))


@pytest.mark.parametrize("sides", [(64, 64), (65, 65), (32, 97), (97, 32)])
def test_crops_within_a_patch_join_no_two_patches(sides: tuple[int, int]) -> None:
    """An image whose patches have four colours: every view has one of them alone, and all occur."""
    image = torch.zeros(1, 1, *sides)
    image[..., sides[1] // 2 :] += 1
    image[:, :, sides[0] // 2 :] += 2
    draws = mixes.draw(
        200, sides, (8, 8), batch=200, factor=2, cutmix=False, within_patch=True, least=0.3,
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    seen = mixes.shown(image.expand(200, -1, -1, -1), draws, (8, 8)).flatten(1)
    assert float((seen.max(1).values - seen.min(1).values).max()) < 1e-5
    assert sorted(set(seen.mean(1).round().int().tolist())) == [0, 1, 2, 3]
    areas = draws.boxes[:, 2] * draws.boxes[:, 3] / ((sides[0] // 2) * (sides[1] // 2))
    assert float(areas.max()) > 0.25


def test_recipes_are_the_published_numbers() -> None:
    """RDED's, EDC's, RD3's and BPS's, for CIFAR-10 and ImageNet-1K."""
    small, large = ({"ipc": i, "classes": c, "count": i * c} for i, c in ((10, 10), (10, 1000)))
    plain = recipe("rded", **small)
    assert (plain["epochs"], plain["batch"], plain["loss"], plain["schedule"]) == (
        300,
        50,
        "kl",
        "half_cosine",
    )
    assert "crop_min" not in plain
    edc = recipe("edc", **small)
    assert (edc["epochs"], edc["loss"], edc["crop_min"], edc["ema"]) == (1000, "mse_gt", 0.08, 0.99)
    assert recipe("edc", **large)["epochs"] == 300
    by_classes = [recipe("edc", ipc=10, classes=c, count=10 * c) for c in (20, 100, 200, 1000)]
    assert [(r["crop_min"], r["epochs"], r["batch"]) for r in by_classes] == [
        (0.08, 1000, 50), (0.5, 1000, 50), (0.5, 300, 100), (0.5, 300, 100),
    ]  # fmt: skip
    assert recipe("edc", ipc=1, classes=100, count=30)["batch"] == 30
    rd3 = recipe("rd3", **large)
    assert (rd3["epochs"], rd3["batch"], rd3["schedule"], rd3["loss"]) == (400, 50, "cosine", "kl")
    assert [recipe("bps", ipc=i, classes=10, count=9999)["crop_min"] for i in (1, 10, 50, 70)] == [
        0.1,
        0.1,
        0.2,
        0.2,
    ]
    assert (recipe("bps", **large)["batch"], recipe("bps", **large)["epochs"]) == (128, 500)


# BPS's smallest crop and batch by classes and images per class, as its published code has them; sizes and numbers of
# classes that it lacks have those of the next smaller one, or of the smallest.
BPS = {
    (10, 1): (0.1, 16), (10, 10): (0.1, 16), (10, 49): (0.1, 16), (10, 50): (0.2, 16), (10, 100): (0.2, 32),
    (10, 250): (0.4, 32), (10, 500): (0.6, 64), (10, 1000): (0.9, 128), (10, 5000): (0.9, 128), (2, 10): (0.1, 16),
    (20, 50): (0.2, 16), (100, 1): (0.2, 32), (100, 24): (0.2, 32), (100, 25): (0.4, 32), (100, 50): (0.6, 64),
    (100, 100): (0.9, 128), (100, 150): (1.0, 128), (199, 150): (1.0, 128), (200, 10): (0.2, 32), (200, 50): (0.6, 64),
    (200, 100): (0.9, 128), (200, 150): (0.9, 128), (1000, 10): (0.2, 128), (1000, 50): (0.2, 256),
    (1000, 100): (0.2, 512), (2000, 49): (0.2, 128),
}  # fmt: skip


@pytest.mark.parametrize(("size", "expected"), BPS.items(), ids=str)
def test_bps_crops_and_batches_follow_its_table(size: tuple[int, int], expected: tuple[float, int]) -> None:
    """Whatever the data set; a batch is at most the set."""
    classes, ipc = size
    made, small = (recipe("bps", ipc=ipc, classes=classes, count=count) for count in (10**6, 7))

    assert (made["crop_min"], made["batch"]) == expected
    assert (small["crop_min"], small["batch"]) == (expected[0], 7)


def test_the_default_protocol_is_rdeds() -> None:
    """An evaluation without any of the settings has the fingerprint that it had without them."""
    config = EvaluateConfig(kind="evaluate", set="s", observer="t")
    assert config.model_dump(exclude_defaults=True) == {"kind": "evaluate", "set": "s", "observer": "t"}
    spelt = EvaluateConfig(kind="evaluate", set="s", observer="t", loss="kl")
    assert spelt.model_dump(exclude_defaults=True) == config.model_dump(exclude_defaults=True)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_a_resumed_optimiser_is_where_its_parameters_are(name: str) -> None:
    """Muon's momentum of a convolution has a shape of its own. Counts of steps stay on the CPU, as torch has them."""

    def made() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, K))

    one, other = made(), made().to("meta")
    first, second = (optimisers.MAKERS[name](each, 0.1, 0.01) for each in (one, other))
    one(torch.ones(2, 1, 8, 8)).sum().backward()
    first.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parameters of this stand-in for a GPU have no values
        checkpoint.restore(checkpoint.dump(one, first, {}), other, second)

    places = [
        (value.dim() > 0, value.device.type)
        for parameter in other.parameters()
        for value in second.state[parameter].values()
        if isinstance(value, Tensor)
    ]
    assert places
    assert all(place == ("meta" if large else "cpu") for large, place in places)
