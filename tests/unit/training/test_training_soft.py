"""The soft-label protocol against torch's own modules, and soft labels on disk."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from rayddl import sealed
from rayddl.errors import ArtifactError
from rayddl.methods.training import softlabels
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.mixes import shown
from rayddl.methods.training.observer import frozen
from rayddl.methods.training.optimisers import adamw
from rayddl.methods.training.settings import published_batch
from rayddl.methods.training.soft import (
    EpochData,
    Execution,
    Lectures,
    ObserverLogits,
    SoftProtocol,
    SoftTraining,
    divergence,
    labelled,
    mixed,
    published_lr,
    softened,
)
from rayddl.methods.training.softlabels import Index, StoredLabels, has_labels
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.seeds import generator
from rayddl.storage import Folder
from tests.raising import raises

NET, SHAPE, CLASSES = NetConfig(depth=1, width=4, norm="batch"), (1, 8, 8), ("a", "b", "c")
FRAME = InputSpec(SHAPE, (0.3,), (0.4,))
MANNER = Execution(torch.device("cpu"))
PROTOCOL = SoftProtocol(batch=4, factor=2, epochs=3)
SEED = 11


def pixels(count: int = 10) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, *SHAPE), generator=draws).to(torch.uint8)


def network(seed: int) -> nn.Module:
    return build(NET, SHAPE, len(CLASSES), seed=seed)


def observer() -> nn.Module:
    return frozen(network(1))


def drawn(count: int = 10, protocol: SoftProtocol = PROTOCOL) -> Lectures:
    return lambda epoch: EpochData(protocol.draw(epoch, count, SHAPE[1:], FRAME, SEED))


def training(images: Tensor, epoch_data: Lectures, seen: nn.Module | None) -> SoftTraining:
    return SoftTraining(network(2), PROTOCOL, FRAME, images, epoch_data, seen, MANNER, seed=5)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_a_student_equals_a_plain_loop_of_torchs_modules() -> None:
    """KLDivLoss, AdamW in two groups and LambdaLR, written out, give the same student."""
    images, seen = pixels(), observer()
    trained = training(images, drawn(), seen)
    made = trained.run()

    student, T = network(2), 20.0
    weights = [p for n, p in student.named_parameters() if n.endswith("weight") and p.ndim > 1]
    others = [p for n, p in student.named_parameters() if not (n.endswith("weight") and p.ndim > 1)]
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda e: 0.5 * (1.0 + math.cos(math.pi * e / 3 / 2))
    )
    criterion = nn.KLDivLoss(reduction="batchmean")
    student.train()
    for epoch in range(3):
        total = 0.0
        for part in drawn()(epoch).draws.batches(4):
            x = (shown(images[part.picked].float() / 255, part, (8, 8)) - 0.3) / 0.4
            target = torch.softmax(seen(x) / T, 1)
            loss = criterion(torch.log_softmax(student(x) / T, 1), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(x)
        schedule.step()
        assert trained.losses[epoch] == pytest.approx(total / 10, rel=1e-3)
    assert made.state_dict().keys() == student.state_dict().keys()
    for name, value in made.state_dict().items():
        # Batch norm takes the bias out again: its gradient is rounding noise, which AdamW scales up.
        if name not in ("blocks.0.conv.bias", "blocks.0.norm.running_mean"):
            torch.testing.assert_close(value, student.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert not made.training


def test_divergence_is_kullback_leiblers_without_the_square_of_the_temperature() -> None:
    """Sum of p (log p - log q), averaged over the batch; zero for equal outputs."""
    draws = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 4, dtype=torch.float64, generator=draws) * 9 for _ in range(2))
    p, q = (torch.softmax(x / 20, 1) for x in (a, b))
    expected = (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(divergence(b, softened(a, 20.0), 20.0), expected)
    assert float(divergence(a, softened(a, 20.0), 20.0)) == pytest.approx(0, abs=1e-12)


def test_the_learning_rate_is_the_first_half_of_a_cosine() -> None:
    """Full at the start, half of it (to first order) never passed before the end: 0.5 (1 + cos(pi e / 2E))."""
    protocol = SoftProtocol(batch=1, epochs=300)
    rates = [protocol.lr_in(e) for e in range(300)]
    assert rates == [1e-3 * 0.5 * (1 + math.cos(math.pi * e / 600)) for e in range(300)]
    assert rates[0] == 1e-3
    assert 5e-4 < rates[-1] < 5.1e-4


def test_only_weights_of_several_dimensions_decay() -> None:
    """Norms and biases are in a group without decay."""
    module = network(0)
    names = {id(p): n for n, p in module.named_parameters()}
    found = {
        g["weight_decay"]: [names[id(p)] for p in g["params"]]
        for g in adamw(module, PROTOCOL.lr, PROTOCOL.weight_decay).param_groups
    }
    assert found[0.01] == ["blocks.0.conv.weight", "classifier.weight"]
    assert all("norm" in n or "bias" in n for n in found[0.0])
    assert len(found[0.0]) == len(names) - 2


@pytest.mark.parametrize(
    ("ipc", "classes", "count", "batch"),
    [
        (1, 10, 10, 10),
        (10, 10, 100, 50),
        (50, 10, 500, 100),
        (1, 100, 100, 20),
        (10, 1000, 10_000, 100),
        (50, 1000, 50_000, 200),
        (10, 200, 2000, 100),
        (1, 200, 200, 100),
        (1, 5, 5, 5),
        (20, 10, 200, 50),
    ],
)
def test_batches_are_the_published_ones(ipc: int, classes: int, count: int, batch: int) -> None:
    """By IPC and number of classes, never above the set's size."""
    assert published_batch(ipc, classes, count) == batch


def test_learning_rates_are_the_published_ones() -> None:
    """A few students have rates of their own, torchvision's under its prefix, too."""
    assert published_lr("convnet") == published_lr("resnet18") == 1e-3
    assert published_lr("tv_mobilenet_v2") == 2.5e-3
    assert published_lr("vgg11") == 5e-4


@pytest.mark.parametrize("stop", [1, 2])
def test_a_student_goes_on_from_bytes(stop: int) -> None:
    """A student resumed after any epoch equals one trained at a stretch, bit for bit, losses included."""
    images, seen, kept = pixels(), observer(), {}
    whole = training(images, drawn(), seen)

    def keep(now: SoftTraining) -> None:
        kept[now.epoch] = now.dump()

    made = whole.run(keep)
    part = training(images, drawn(), seen)
    part.resume(kept[stop])
    assert part.epoch == stop
    assert same(part.run(), made)
    assert part.losses == whole.losses


def test_training_leaves_the_global_generators_alone() -> None:
    """What dropout would draw comes from the student's seed, and nothing is left behind."""
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    training(pixels(), drawn(), observer()).run()
    assert torch.equal(torch.rand(3), expected)


class Counting(nn.Module):
    """An observer that writes down how many images it is shown at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.counts = observer(), []

    def forward(self, x: Tensor) -> Tensor:
        self.counts.append(len(x))
        logits: Tensor = self.seen(x)
        return logits


@pytest.mark.parametrize(("count", "batches"), [(10, [4, 4, 2]), (9, [4, 4]), (3, [3]), (1, [1])])
def test_a_single_image_left_over_is_passed_by(count: int, batches: list[int]) -> None:
    """Batch norm has no variance of it; a set of one image is shown all the same."""
    seen = Counting()
    training(pixels(count), drawn(count), seen).run()
    assert seen.counts == batches * 3


def test_noise_follows_from_seed_and_epoch() -> None:
    """With dropout, too, a student that is resumed has the bits of one trained at a stretch."""

    def made() -> SoftTraining:
        student = nn.Sequential(nn.Dropout(0.5), network(2))
        return SoftTraining(student, PROTOCOL, FRAME, pixels(), drawn(), observer(), MANNER, seed=5)

    kept: list[bytes] = []
    whole = made().run(lambda now: kept.append(now.dump()))
    part = made()
    part.resume(kept[0])
    assert same(part.run(), whole)


def test_every_epoch_is_drawn_anew_by_its_number() -> None:
    """The seed and the epoch decide; a plain protocol shows images as they are, in the same way."""
    for protocol in (PROTOCOL, PROTOCOL.model_copy(update={"plain": True})):
        one, again, other = (protocol.draw(e, 10, SHAPE[1:], FRAME, SEED) for e in (0, 0, 1))
        assert torch.equal(one.picked, again.picked)
        assert not torch.equal(one.picked, other.picked)
        first = torch.randperm(10, generator=generator(SEED, "soft", 1))
        assert torch.equal(other.picked, first)
        assert torch.equal(one.boxes, torch.tensor([[0, 0, 8, 8]]).expand(10, -1)) == protocol.plain
        assert bool(one.cuts.any()) != protocol.plain
    assert not PROTOCOL.model_copy(update={"cutmix": False}).draw(0, 10, SHAPE[1:], FRAME, SEED).cuts.any()


def test_numbers_of_the_published_protocol() -> None:
    """What a definition leaves out is what the published code uses."""
    found = SoftProtocol(batch=10)
    assert (found.epochs, found.lr, found.weight_decay, found.temperature) == (300, 1e-3, 0.01, 20.0)
    assert (found.factor, found.cutmix, found.plain) == (1, True, False)
    assert {name: published_lr(name) for name in ("efficientnet_b0", "alexnet", "vit_b_16", "swin_v2_t")} == {
        "efficientnet_b0": 2e-3, "alexnet": 1e-4, "vit_b_16": 1e-4, "swin_v2_t": 1e-4,
    }  # fmt: skip


def stored(folder: Folder, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> StoredLabels:
    """Labels in several files, as the stage writes them."""
    monkeypatch.setattr(softlabels, "PART_BYTES", 600)
    index, answers = Index.of(images, CLASSES, FRAME, PROTOCOL), ObserverLogits(observer(), MANNER)
    for name, epochs in index.parts():
        epoch_data = []
        for epoch in epochs:
            draws = drawn()(epoch).draws
            logits = labelled(answers, images, draws, PROTOCOL, FRAME, MANNER.device)
            epoch_data.append(EpochData(draws, logits))
        folder.write(name, softlabels.pack(epoch_data))
    softlabels.finish(folder, index)
    return StoredLabels(folder)


def test_stored_labels_are_the_live_ones_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was shown comes back exactly, with the observer's logits of it in float16."""
    images, folder, seen = pixels(), Folder(str(tmp_path)), observer()
    labels = stored(folder, images, monkeypatch)

    assert len(folder.names()) > 2
    for epoch in (2, 0, 1):
        read, live = labels(epoch), drawn()(epoch)
        assert read.logits is not None
        done = 0
        for mine, theirs in zip(read.draws.batches(4), live.draws.batches(4), strict=True):
            for name in ("picked", "rows", "columns", "boxes", "flipped", "partners", "cuts"):
                assert torch.equal(getattr(mine, name), getattr(theirs, name))
            x = FRAME.normalised(shown(images[mine.picked].float() / 255, mine, (8, 8)))
            said = read.logits[done : done + len(x)]
            assert said.dtype == torch.float16
            torch.testing.assert_close(said.float(), seen(x), rtol=1e-3, atol=1e-4)
            done += len(x)


def test_stored_labels_teach_what_the_rounded_live_ones_teach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an observer, a student of the files equals one whose live labels are rounded alike."""
    images = pixels()
    labels = stored(Folder(str(tmp_path)), images, monkeypatch)

    class Rounding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen = observer()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.seen(x)
            return logits.half().float()

    assert same(training(images, labels, None).run(), training(images, drawn(), Rounding()).run())


@pytest.mark.parametrize("count", [1, 2])
def test_labels_of_whole_images_are_read_back(tmp_path: Path, count: int) -> None:
    """Of a single image and a single patch all indices are 0."""
    protocol, folder = PROTOCOL.model_copy(update={"factor": 1, "epochs": 1}), Folder(str(tmp_path))
    lecture = replace(drawn(count, protocol)(0), logits=torch.ones(count, 3))
    index = Index.of(pixels(count), CLASSES, FRAME, protocol)
    folder.write("labels-0000.safetensors", softlabels.pack([lecture]))
    softlabels.finish(folder, index)
    read = StoredLabels(folder)(0)

    assert torch.equal(read.draws.picked, lecture.draws.picked)
    assert torch.equal(read.draws.flipped, lecture.draws.flipped)
    assert isinstance(read.logits, Tensor)
    assert torch.equal(read.logits, torch.ones(count, 3).half())


def test_labels_are_stored_in_files_of_some_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """270 bytes an epoch: two in a file of 600, one where not even one fits; a file that is open is not read again."""
    folder = Folder(str(tmp_path))
    labels = stored(folder, pixels(), monkeypatch)

    assert list(labels.index.parts()) == [
        ("labels-0000.safetensors", range(2)), ("labels-0001.safetensors", range(2, 3)),
    ]  # fmt: skip
    assert has_labels(folder)
    first = labels(0)
    folder.delete("labels-0000.safetensors")
    assert labels(0) is first
    assert torch.equal(labels(1).draws.picked, drawn()(1).draws.picked)
    labels(2)
    with raises("sealed-file-missing"):
        labels(0)
    with pytest.raises(IndexError, match="epoch 3 of 3"):
        labels(3)
    for size, epochs in ((540, 2), (539, 1), (1, 1)):
        monkeypatch.setattr(softlabels, "PART_BYTES", size)
        assert Index.of(pixels(), CLASSES, FRAME, PROTOCOL).epochs_a_part == epochs
    assert not has_labels(Folder(str(tmp_path / "none")))


def test_labels_are_copied_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy is complete and equal; of an altered file there is none."""
    folder, copy = Folder(str(tmp_path / "a")), Folder(str(tmp_path / "b"))
    labels = stored(folder, pixels(), monkeypatch)
    contents = labels.contents()
    for name, content in contents.items():
        copy.write(name, content())

    assert sorted(contents) == sorted(copy.names()) == sorted(folder.names())
    assert StoredLabels(copy).index == labels.index
    for epoch in range(3):
        assert torch.equal(StoredLabels(copy)(epoch).draws.picked, labels(epoch).draws.picked)
    data = folder.read("labels-0000.safetensors")
    folder.write("labels-0000.safetensors", data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtifactError):
        contents["labels-0000.safetensors"]()


def test_altered_or_foreign_labels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, changed and newer files, other images, classes and lengths are told apart."""
    images, folder = pixels(), Folder(str(tmp_path))
    with raises("document-missing"):
        StoredLabels(folder)
    labels = stored(folder, images, monkeypatch)
    labels.refuse_other_images(images)
    labels.refuse_fewer(3, CLASSES)
    with raises("soft-labels-of-other-images"):
        labels.refuse_other_images(images.flip(0))
    with raises("soft-labels-of-other-classes"):
        labels.refuse_fewer(3, CLASSES[::-1])
    with raises("soft-labels-too-short"):
        labels.refuse_fewer(4, CLASSES)
    data = folder.read("labels-0000.safetensors")
    folder.write("labels-0000.safetensors", data[:-1] + bytes([data[-1] ^ 1]))
    with raises("sealed-file-altered"):
        StoredLabels(folder)(0)
    folder.delete("labels-0000.safetensors")
    with raises("sealed-file-missing"):
        StoredLabels(folder)(0)
    meta = folder.read_json("labels.json")
    folder.write_json("labels.json", {**meta, "version": 7})
    with raises("document-too-new"):
        StoredLabels(folder)
    folder.write_json("labels.json", {k: v for k, v in meta.items() if k != "count"})
    with raises("document-malformed"):
        StoredLabels(folder)
    folder.write_json("labels.json", {**meta, "protocol": {**meta["protocol"], "batch": -1}})
    with raises("document-malformed"):
        StoredLabels(folder)
    folder.write_json("labels.json", {**meta, "protocol": {**meta["protocol"], "lr": "fast"}})
    with raises("soft-labels-incomplete"):
        StoredLabels(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("epochs_a_part", 0), ("epochs", 10**15), ("top", -1), ("epochs_a_part", 10**15)]
)
def test_the_index_names_as_many_files_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: int
) -> None:
    """Files are counted before they are gone through: 10**15 of them would take years."""
    folder = Folder(str(tmp_path))
    stored(folder, pixels(), monkeypatch)
    meta = folder.read_json("labels.json")
    changed = {"protocol": {**meta["protocol"], key: value}} if key == "epochs" else {key: value}
    folder.write_json("labels.json", {**meta, **changed})
    with raises("document-malformed"):
        StoredLabels(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("picked", lambda t: t + 1),
        ("partners", lambda t: t - 1),
        ("boxes", lambda t: t[..., :3]),
        ("logits", lambda t: t[:, :, :1]),
        ("logits", lambda t: t * float("nan")),
        ("flipped", lambda t: torch.full_like(t, 2, dtype=torch.uint8)),
        ("rows", None),
    ],
)
def test_labels_that_do_not_fit_their_index_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Any
) -> None:
    """Indices beyond the images, other shapes, numbers that are not finite: before a student is trained on them."""
    folder = Folder(str(tmp_path))
    stored(folder, pixels(), monkeypatch)
    meta, file = folder.read_json("labels.json"), "labels-0000.safetensors"
    tensors = safetensors.load(folder.read(file))
    found = tensors.pop(name)
    data = safetensors.save(tensors if change is None else {**tensors, name: change(found).contiguous()})
    folder.write(file, data)
    folder.write_json("labels.json", {**meta, "files": {**meta["files"], file: sealed.entry(data)}})
    with raises("soft-labels-misfit"):
        StoredLabels(folder)(0)


def test_own_labels_are_mixed_by_the_area_of_the_box() -> None:
    """Each label's share is that of the pixels that its image has in the mixed one."""
    one = drawn()(0).draws
    part = replace(
        one,
        partners=torch.tensor([1, 2, 0]),
        cuts=torch.tensor([[2, 1, 7, 4]]),
    )
    own = torch.eye(3)
    kept = torch.ones(8, 10)
    kept[2:7, 1:4] = 0

    torch.testing.assert_close(
        mixed(own, part, (8, 10)), kept.mean() * own + (1 - kept.mean()) * own[[1, 2, 0]]
    )


def test_the_index_says_everything_again(tmp_path: Path) -> None:
    """What describes the labels comes back equal from JSON."""
    folder = Folder(str(tmp_path))
    for crops in ({}, {"crop_min": 0.25, "crop_within_patch": True}):
        changes = {"cutmix": False, "lr": 0.5, **crops}
        index = Index.of(pixels(), CLASSES, FRAME, PROTOCOL.model_copy(update=changes))
        folder.write_json("x.json", index.to_json())
        stored = folder.read_json("x.json")
        assert Index.from_json(stored) == index
        # What students decide is not there, and crops only if they are not the usual ones.
        assert set(stored["protocol"]) == {
            "epochs", "lr", "batch", "factor", "weight_decay", "temperature", "cutmix", *crops,
        }  # fmt: skip
