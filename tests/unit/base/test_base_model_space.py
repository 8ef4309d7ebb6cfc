"""Splits in shards: the bits of one array, while a process holds one shard at a time."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import shutil
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels import space
from rayddl.data.pixels.encoded import Streamed
from rayddl.data.pixels.space import PixelSpace
from rayddl.data.sources import folders, known, picking
from rayddl.methods.training.hard import Protocol
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.settings import TeacherSettings
from rayddl.methods.training.soft import Execution
from rayddl.methods.training.steps import steps_for
from rayddl.methods.training.teacher import TeacherTraining
from rayddl.methods.trajectories.expert import HeldOut, Images, training_steps
from rayddl.methods.trajectories.settings import ExpertSettings
from rayddl.nets.build import build, initial
from rayddl.nets.config import NetConfig
from rayddl.seeds import generator
from rayddl.stages.evaluate import protocol, student_data
from rayddl.stages.evaluate import stage as evaluate
from rayddl.stages.evaluate import worker as students
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.evaluate.student_data import Shared, Student, TrainingData
from rayddl.stages.runtime import listings, mapped, model_space, shards, sources
from rayddl.stages.runtime.shards import Shards
from rayddl.stages.runtime.sources import SharedSource
from rayddl.storage import Folder
from tests.raising import raises

CPU = torch.device("cpu")
NET, CLASSES, SHAPE = NetConfig(depth=1, width=4), 3, (3, 4, 4)
COUNTS = (700, 1, 2299)


@dataclass
class Store:
    """Ray's object store in this process: how often a shard is read, and how many are held at the same time."""

    reads: int = 0
    most: int = 0
    held: set[int] = field(default_factory=set)

    def get(self, ref: Any) -> Any:
        return [self.get(each) for each in ref] if isinstance(ref, list) else ref.value()


@dataclass(eq=False)
class Ref:
    """A reference; a part of a split is copied each time it is read."""

    content: Any
    store: Store | None = None

    def hex(self) -> str:
        return f"{id(self):x}"

    def value(self) -> Any:
        if self.store is None:
            return self.content
        found, held = self.content.copy(), self.store.held
        self.store.reads += 1
        held.add(self.store.reads)
        self.store.most = max(self.store.most, len(held))
        weakref.finalize(found, held.discard, self.store.reads)
        return found


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """A store in which the sums are made without tasks, and files are in a folder of the test."""
    made = Store()
    monkeypatch.setattr(ray, "get", made.get)
    monkeypatch.setattr(ray, "put", Ref)
    monkeypatch.setattr(mapped, "_of_ray", lambda: tmp_path / "splits")
    monkeypatch.setattr(shards, "summed", shards._sums)
    monkeypatch.setattr(mapped, "_last", {})
    monkeypatch.setattr(model_space, "_made", {})
    yield made
    mapped._last.clear()
    model_space._made.clear()


def noise(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, CLASSES, count)
    images = draws.integers(0, 200, (count, *SHAPE)) + 20 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


def published(kind: str, store: Store | None) -> SharedSource:
    """A source of 3,000 training and 3,000 held-out images: in shards of ``store``, or each split in one array."""
    refs: list[Any] = []
    for seed in (0, 1):
        images, labels = noise(sum(COUNTS), seed)
        parts = np.split(images, np.cumsum(COUNTS)[:-1])
        whole = Ref(images) if store is None else Shards(tuple(Ref(p, store) for p in parts), COUNTS, 3)
        refs += [whole, Ref(labels)]
    name = f"{kind} {'whole' if store is None else 'in shards'}"
    counts = (sum(COUNTS), sum(COUNTS))
    return SharedSource(tuple(refs), ("a", "b", "c"), SHAPE, name, (), kind, counts)  # type: ignore[arg-type]


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "splits").iterdir())


def fitted(kind: str) -> PixelSpace:
    return space.fit(kind, torch.from_numpy(noise(sum(COUNTS), 0)[0]))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_process_keeps_apart_the_spaces_that_stages_use(store: Store, split: str) -> None:
    """Ray gives one process students of a matched set, in the source's space, and of RDED's, in its observer's."""
    source, of = published("zca", None), getattr(model_space, split)
    images = torch.from_numpy(noise(sum(COUNTS), 0 if split == "train" else 1)[0])
    for kind in ("zca", "normalise", "zca"):
        fit = fitted(kind)
        assert torch.equal(of(source, Ref(fit), CPU).x[:50], fit.encode(images)[:50])


@pytest.mark.parametrize("kind", ["normalise", "zca"])
def test_splits_have_the_bits_of_one_array(
    kind: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training images in any order from a file, held-out ones in batches as they come; whitened ones in the portions of
    the whole.
    """
    monkeypatch.setattr(space, "PORTION", 512)
    monkeypatch.setattr(mapped, "PORTION", 512)
    monkeypatch.setattr(model_space, "PORTION", 512)
    fit = fitted(kind)
    train, test = (fit.encode(torch.from_numpy(noise(sum(COUNTS), seed)[0])) for seed in (0, 1))
    picked = torch.randperm(3000, generator=torch.Generator().manual_seed(0))[:500]
    whitened, encode = [], space.Zca.encode
    monkeypatch.setattr(
        space.Zca, "encode", lambda self, images: whitened.append(len(images)) or encode(self, images)
    )

    for source in (published(kind, store), published(kind, None)):
        given, held = (of(source, Ref(fit), CPU) for of in (model_space.train, model_space.test))
        assert torch.equal(given.x[picked], train[picked])
        assert torch.equal(given.x[:1], train[:1])
        assert torch.equal(model_space.some_of_train(source, Ref(fit), picked, CPU), train[picked])
        for _ in range(2):
            found = list(held.x.split(256))
            assert all(torch.equal(*pair) for pair in zip(found, test.split(256), strict=True))
        assert given.y.tolist() == noise(3000, 0)[1].tolist()
        assert isinstance(held.x, Streamed) == source.fingerprint.endswith("shards")
    assert store.most == 1
    (path,) = files(tmp_path)
    assert path.stat().st_size == 3000 * 48 * (4 if kind == "zca" else 1) + 1
    # A file, two passes over shards, and both splits in memory.
    assert whitened == ([*[512] * 5, 440] * 3 + [3000] * 2 if kind == "zca" else [])


@pytest.mark.parametrize("kind", ["normalise", "zca"])
def test_a_space_is_fitted_on_one_shard_at_a_time(kind: str, store: Store) -> None:
    """From exact sums, in any order: the same numbers as from one array."""
    source, wanted = published(kind, store), fitted(kind)
    found = sources._fitted(source, kind)

    assert all(torch.equal(tensor, wanted.tensors()[name]) for name, tensor in found.tensors().items())
    parts = sources.train_parts(source)
    sums = [shards._sums(kind, parts.every(k, 2), SHAPE) for k in (1, 0)]
    assert space.of_sums(kind, sums[0].plus(sums[1]), SHAPE).fingerprint == wanted.fingerprint
    assert (store.most, store.reads) == (1, 6)


def expert(train: Images, test: HeldOut | Images) -> list[Tensor]:
    settings = ExpertSettings(epochs=2, batch=500, lr=0.05, momentum=0.9, augment="flip")
    steps = steps_for(NET, SHAPE, CLASSES, "fp32", False)
    lane = training_steps(
        steps,
        settings,
        initial(NET, SHAPE, CLASSES, seed=1),
        train,
        test,
        CLASSES,
        seed=3,  # type: ignore[arg-type]
    )
    ended = []

    def whole() -> Iterator[None]:
        ended.append((yield from lane))

    list(whole())
    return [*ended[0].snapshots, ended[0].table()[:, :4].nan_to_num()]


@pytest.mark.parametrize("kind", ["normalise", "zca"])
def test_an_expert_of_shards_is_that_of_one_array(kind: str, store: Store) -> None:
    """Trained and tested on bytes that are encoded batch by batch, or on float32 copies of both splits."""
    fit, source = fitted(kind), published(kind, store)
    tensors = [
        Images(fit.encode(torch.from_numpy(images)), torch.from_numpy(labels))
        for images, labels in (noise(3000, 0), noise(3000, 1))
    ]
    found = expert(model_space.train(source, Ref(fit), CPU), model_space.test(source, Ref(fit), CPU))

    assert all(torch.equal(*pair) for pair in zip(found, expert(*tensors), strict=True))
    assert store.most == 1


def test_a_teacher_of_shards_is_that_of_one_array(store: Store) -> None:
    """The training images in random order: the same steps."""
    made = []
    for source in (published("normalise", store), published("normalise", None)):
        frame = InputSpec(SHAPE, *sources.moments(source))
        module = build(NET, SHAPE, CLASSES, seed=2)
        settings = TeacherSettings(epochs=1, batch=500, lr=0.1)
        images, labels = sources.train_images(source), sources.train_labels(source)
        training = TeacherTraining(module, settings, frame, images, labels, Execution(CPU), seed=7)
        made.append(training.run(lambda: 0.0).state_dict())

    assert all(torch.equal(a, b) for a, b in zip(made[0].values(), made[1].values(), strict=True))
    assert store.most == 1


@pytest.mark.parametrize("what", ["set", "random", "whole", "trial"])
def test_a_student_of_shards_is_that_of_one_array(what: str, store: Store, tmp_path: Path) -> None:
    """Trained on a set, on some images, on all of them, or on all but those that compare learning rates."""
    fit, found = fitted("normalise"), []
    own = fit.encode(torch.from_numpy(noise(30, 2)[0])), torch.from_numpy(noise(30, 2)[1])
    how = Protocol(epochs=1, lr=0.05, batch=500, augment="flip")
    some = torch.arange(0, 3000, 7)
    data = TrainingData(
        what, *(own if what == "set" else (None, None)), some if what == "random" else None, how
    )
    student = Student(what, NET, 0, "student.json", trial=what == "trial")
    for source in (published("normalise", store), published("normalise", None)):
        shared = Shared(
            source, Ref(fit), Folder(str(tmp_path)), 5, "fp32", False, 1, trials_on=torch.arange(0, 3000, 10)
        )
        images, score = students.train_hard(shared, data, student, 9, CPU)
        found.append((images, score.confusion.tolist()))

    assert found[0] == found[1]
    assert found[0][0] == {"set": 30, "random": 429, "whole": 3000, "trial": 2700}[what]
    assert store.most == 1


def test_rates_are_not_compared_on_no_image(store: Store, tmp_path: Path) -> None:
    """Random images that are all of the held-back part leave none; some of them leave the others."""
    del store
    shared = Shared(None, None, Folder(str(tmp_path)), 5, "fp32", False, 1, trials_on=torch.tensor([3, 5]))  # type: ignore[arg-type]
    how = Protocol(epochs=1, lr=0.05)
    some, whole = (TrainingData("random", None, None, torch.tensor(p), how) for p in ([0, 5], [5, 1, 3]))
    assert student_data.trials_on(shared, some).tolist() == [3]
    with raises("lr-grid-without-images"):
        student_data.trials_on(shared, whole)


def test_a_file_is_written_once_and_deleted_by_its_last_user(store: Store, tmp_path: Path) -> None:
    """A second user, as in another process, reads no shard; what a killed one left is deleted or completed."""
    parts = sources.train_parts(published("normalise", store))
    left = tmp_path / "splits" / "left"
    left.parent.mkdir()
    left.write_bytes(b"of a killed process")
    one = mapped.mapped(parts, SHAPE)
    (path,) = files(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert store.reads == 3
    mapped._last.clear()
    other = mapped.mapped(parts, SHAPE)
    assert (store.reads, files(tmp_path)) == (3, [path])
    assert torch.equal(one, other)

    del one
    gc.collect()
    mapped._delete_unused(path.with_name("another"))
    assert files(tmp_path) == [path]
    assert int(other.sum()) == int(noise(3000, 0)[0].sum())
    mapped._last.clear()
    del other
    gc.collect()
    assert files(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1000, 3000 * 48])
def test_an_incomplete_file_is_written_again(store: Store, tmp_path: Path, size: int) -> None:
    """Its writer was killed: at the start, within a shard, or before the byte that marks the end."""
    parts = sources.train_parts(published("normalise", store))
    path = tmp_path / "splits" / mapped._name(parts, None)
    path.parent.mkdir()
    path.write_bytes(bytes(size))

    assert torch.equal(mapped.mapped(parts, SHAPE), torch.from_numpy(noise(3000, 0)[0]))
    assert store.reads == 3


def test_a_complete_file_of_a_killed_user_is_used(store: Store, tmp_path: Path) -> None:
    """It is not deleted as one that nobody uses: at full size the next process would write for many minutes."""
    parts = sources.train_parts(published("normalise", store))
    path = tmp_path / "splits" / mapped._name(parts, None)
    path.parent.mkdir()
    path.write_bytes(noise(3000, 0)[0].tobytes() + b"\n")

    assert torch.equal(mapped.mapped(parts, SHAPE), torch.from_numpy(noise(3000, 0)[0]))
    assert store.reads == 0


def test_two_that_begin_a_file_at_once_both_get_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen that it is incomplete. The other one writes it, and goes on using it."""
    parts = sources.train_parts(published("normalise", store))
    contents = noise(3000, 0)[0]
    path = tmp_path / "splits" / mapped._name(parts, None)
    path.parent.mkdir()
    path.touch()
    other, flock = os.open(path, os.O_RDWR), fcntl.flock
    asked: list[int] = []

    def after_the_other(descriptor: int, how: int) -> None:
        if how & fcntl.LOCK_EX and not asked:
            asked.append(how)
            flock(descriptor, fcntl.LOCK_UN)  # as flock does before it waits for another lock
            flock(other, fcntl.LOCK_EX)
            os.write(other, contents.tobytes() + b"\n")
            flock(other, fcntl.LOCK_SH)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", after_the_other)
    found: list[Tensor] = []
    mine = threading.Thread(target=lambda: found.append(mapped.mapped(parts, SHAPE)), daemon=True)
    mine.start()
    mine.join(30)
    ended = not mine.is_alive()
    os.close(other)
    assert ended
    assert len(asked) == 1
    assert torch.equal(found[0], torch.from_numpy(contents))
    assert store.reads == 0


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_full_disk_is_named(
    when: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written, or while it is; nothing is left."""
    parts = sources.train_parts(published("normalise", store))
    if when == "before":
        usage = shutil.disk_usage(tmp_path)._replace(free=3000 * 48 - 1)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    else:
        monkeypatch.setattr(mapped, "_contents", full)
    with raises("disk-too-small-for-images"):
        mapped.mapped(parts, SHAPE)
    assert files(tmp_path) == []
    assert store.reads == 0


def full(parts: Shards, fit: PixelSpace | None) -> Iterator[Tensor]:
    raise OSError(errno.ENOSPC, "full")
    yield


def folder(root: Path, count: int) -> SourceConfig:
    """``count`` images of each of two classes, in each split."""
    draws = np.random.default_rng(0)
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (root / name).mkdir(parents=True)
        for k in range(count):
            pixels = draws.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png")
    return SourceConfig(name="imagefolder", root=str(root))


def test_random_images_of_a_large_split_are_read_from_its_files(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Students of hard labels need no more of it: the split is not decoded, and they see the same images."""
    config = folder(tmp_path, 8)
    train = sources.sources.load(config).train
    fit = space.fit("normalise", train.images)
    made = DistilledSet(train.images[::8], train.labels[::8], 0.01, train.classes, fit, {})
    source = replace(published("normalise", None), refs=(None, None, None, None), classes=("a", "b"))
    monkeypatch.setattr(evaluate, "is_large", lambda config, split: split == "train")
    monkeypatch.setattr(evaluate, "publish", None)
    monkeypatch.setattr(evaluate, "publish_held_out", lambda config: source)
    asked = EvaluateConfig(kind="evaluate", set="made", nets=(NET,), epochs=1, compile=False)
    task = evaluate._task(asked, made, config, None, 7)
    (drawn,) = (draw(3) for data, draw in protocol.training_data_of(task) if data.name == "random")
    picked = picking.per_class(train.labels, train.classes, 1, generator(7, "random", 3))

    shared = Shared(task.source, Ref(fit), Folder(str(tmp_path)), 7, "fp32", False, 1)
    seen = student_data.in_model_space(shared, drawn, None, CPU)
    assert torch.equal(seen.x, fit.encode(train.images[picked]))
    assert torch.equal(seen.y, train.labels[picked])

    # A draw may be all grey where the split is not: the set's space has its channels.
    grey = torch.full((2, 1, 4, 4), 9, dtype=torch.uint8)
    with monkeypatch.context() as patched:
        patched.setattr(listings, "drawn", lambda *_: (grey, torch.arange(2)))
        seen = student_data.in_model_space(shared, drawn, None, CPU)
    assert torch.equal(seen.x, fit.encode(grey.expand(-1, 3, -1, -1)))

    # Whitened images are made by the driver: the result may depend on the number of threads.
    whitened = space.fit("zca", train.images)
    task = replace(task, made=replace(made, space=whitened))
    (drawn,) = (draw(3) for data, draw in protocol.training_data_of(task) if data.name == "random")
    assert isinstance(drawn.images, torch.Tensor)
    assert torch.equal(drawn.images, whitened.encode(train.images[picked]))
    assert drawn.labels is not None
    assert torch.equal(drawn.labels, train.labels[picked])


def test_a_process_lists_no_files_that_another_has_listed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial of a search has the listing and the fingerprint with the source."""
    config = folder(tmp_path, 1)
    listed, digest = sources.sources.listing(config), sources.sources.fingerprint(config)
    monkeypatch.setattr(sources, "_key", lambda config, part="": part)
    monkeypatch.setattr(sources, "_published", {})
    monkeypatch.setattr(known, "_received", {})
    monkeypatch.setattr(folders, "survey", None)
    source = replace(published("normalise", None), fingerprint=digest, listed=Ref(listed))
    sources.adopt(config, source)

    assert listings.listing_of(config).names.to_pylist() == ["a/0.png", "b/0.png"]
    assert sources.sources.fingerprint(config) == digest
