"""The teacher stage on the digits: what it leaves, how it goes on, and which ready weights it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from rayddl.data.config import SourceConfig
from rayddl.data.sources import registry as sources
from rayddl.errors import ArtifactError
from rayddl.methods.training.observer import Observer
from rayddl.methods.training.teacher import predictions, share_right
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context, Result, Silent
from rayddl.stages.runtime.in_process import InProcess
from rayddl.stages.runtime.sources import publish
from rayddl.stages.teacher import stage as teacher
from rayddl.stages.teacher.pretrained import _known
from rayddl.stages.teacher.settings import TeacherConfig
from rayddl.storage import Folder
from tests.raising import raises

pytestmark = pytest.mark.ray

NET = {"name": "convnet", "depth": 1, "width": 8, "norm": "batch"}
SOURCE = SourceConfig(name="digits")


def settings(**changes: Any) -> TeacherConfig:
    base = {"kind": "teacher", "net": NET, "epochs": 3, "compile": False, "augment": "crop"}
    return TeacherConfig.model_validate({**base, **changes})


def context(out: Path, progress: Any = None, **source: Any) -> Context:
    config = SOURCE.model_copy(update=source)
    return Context("teacher", config, 5, Folder(str(out)), {}, {}, progress or Silent())


def run(config: TeacherConfig, where: Context) -> Result:
    """In this process, which spares a worker's start."""
    return teacher.run(config, replace(where, backend=InProcess(torch.get_num_threads())))


def tensors(folder: Folder) -> dict[str, Tensor]:
    return load(folder.child("observer").read("observer.safetensors"))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def trained(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, Result]:
    """A teacher that was trained as a Ray task."""
    where = context(tmp_path_factory.mktemp("teacher"))
    return where.out, teacher.run(settings(resources={"num_cpus": 1}), where)


def test_a_teacher_leaves_an_observer_its_curve_and_nothing_unfinished(
    trained: tuple[Folder, Result],
) -> None:
    """The observer with the source's classes and scaling, an epoch a row, and figures in the summary."""
    out, result = trained
    observer, summary = Observer.load(out.child("observer")), result.summary

    assert out.names() == ["checked.json", "metrics.parquet"]
    assert observer.classes == publish(SOURCE).classes
    assert summary["accuracy"] == observer.accuracy
    assert summary["accuracy"] > 0.6
    assert summary["shape"] == [1, 8, 8]
    assert summary["checked"] == publish(SOURCE).counts[1]
    assert summary["epochs"] == 3
    assert summary["mean"] == list(observer.mean)
    curve = tables.read(out, "metrics.parquet")
    assert curve["epoch"] == [1, 2, 3]
    assert curve["test_accuracy"][-1] == observer.accuracy
    assert curve["train_loss"][-1] < curve["train_loss"][0]


def test_a_teacher_is_the_same_wherever_it_is_trained(trained: tuple[Folder, Result], tmp_path: Path) -> None:
    """As a task of a worker or in this process: the same bits; and a finished one is not trained again."""
    where = context(tmp_path)
    run(settings(), where)
    assert same(tensors(where.out), tensors(trained[0]))
    run(settings(epochs=9), where)
    assert same(tensors(where.out), tensors(trained[0]))


@pytest.mark.parametrize("cut_at", [0.5, 1.3, 2.0])
def test_a_killed_teacher_goes_on_bit_for_bit(
    trained: tuple[Folder, Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cut: type[Exception],
    cut_at: float,
) -> None:
    """Cut in the middle of an epoch or at its end, the same command ends with the same bits."""
    monkeypatch.setattr(teacher, "PARTIAL_SECONDS", 0.0)
    where, write = context(tmp_path), Folder.write
    resumed: list[bool] = []

    def cutting(folder: Folder, name: str, data: bytes) -> None:
        write(folder, name, data)
        if name == teacher.PARTIAL and float(len(steps)) >= cut_at * steps_an_epoch and not resumed:
            raise cut
        if name == teacher.PARTIAL:
            steps.append(1)

    steps: list[int] = []
    steps_an_epoch = -(-publish(SOURCE).counts[0] // 128)
    monkeypatch.setattr(Folder, "write", cutting)
    with pytest.raises(cut):
        run(settings(), where)
    assert where.out.names() == [teacher.PARTIAL]
    resumed.append(True)
    before = len(steps)
    run(settings(), where)

    assert len(steps) - before < 3 * steps_an_epoch
    assert same(tensors(where.out), tensors(trained[0]))
    assert where.out.names() == ["checked.json", "metrics.parquet"]


def test_a_source_of_zca_has_a_teacher_of_plain_pixels(
    trained: tuple[Folder, Result], tmp_path: Path
) -> None:
    """Whitening is no affair of the observer's: it is the same as without."""
    where = context(tmp_path, space="zca")
    run(settings(), where)
    assert same(tensors(where.out), tensors(trained[0]))


def test_the_accuracy_may_be_that_of_zoomed_images(local_ray: None, tmp_path: Path) -> None:
    """The same teacher, tested on the images as they are or as RDED's published code shows them."""
    wheres = [context(tmp_path / name, size=14) for name in ("whole", "zoomed")]
    results = [run(settings(zoom=zoom), where) for zoom, where in zip((None, True), wheres, strict=True)]
    assert same(*(tensors(where.out) for where in wheres))
    observer = Observer.load(wheres[0].out.child("observer"))
    test = sources.load(SOURCE.model_copy(update={"size": 14})).test
    labels = test.labels
    for zoom, result in zip((False, True), results, strict=True):
        found = predictions(observer.module, observer.input_spec, test.images, torch.device("cpu"), zoom=zoom)
        assert result.summary["accuracy"] == share_right(found, labels)
    assert results[0].summary["accuracy"] != results[1].summary["accuracy"]


def test_the_check_may_take_a_sample(local_ray: None, tmp_path: Path) -> None:
    """``check_sample`` images of the held-out split, drawn by the seed."""
    result = run(settings(check_sample=50, epochs=1), context(tmp_path))
    assert result.summary["checked"] == 50


def test_a_teacher_that_learned_nothing_is_refused(local_ray: None, tmp_path: Path) -> None:
    """A rate too small to learn: told with the accuracy, chance and what to change; kept on demand."""
    config = settings(epochs=1, lr=1e-9, allow_weak=False)
    with raises("teacher-training-failed"):
        run(config, context(tmp_path / "a"))
    assert (
        run(settings(epochs=1, lr=1e-9, allow_weak=True), context(tmp_path / "b")).summary["accuracy"] < 0.3
    )


@pytest.fixture
def file(trained: tuple[Folder, Result], tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    """Writes weights as a published file has them; gives its path."""

    def write(state: dict[str, Any]) -> str:
        path = tmp_path / "weights.pth"
        torch.save({"model": state}, path)
        return str(path)

    return write


def test_ready_weights_are_checked_like_trained_ones(
    trained: tuple[Folder, Result], tmp_path: Path, file: Callable[[dict[str, Any]], str]
) -> None:
    """A state dict with the source's order of classes gives the same accuracy, by a task as here."""
    given = settings(weights=file(tensors(trained[0])), classes="source")
    here = run(given, context(tmp_path / "a"))
    task = teacher.run(given, context(tmp_path / "b"))
    assert here.summary["accuracy"] == task.summary["accuracy"] == trained[1].summary["accuracy"]
    assert here.summary["epochs"] is None


def test_the_outputs_of_ready_weights_are_matched_by_name(
    trained: tuple[Folder, Result], tmp_path: Path, file: Callable[[dict[str, Any]], str]
) -> None:
    """Outputs in another order, one more among them: named rightly they are put in order."""
    state, classes = tensors(trained[0]), list(publish(SOURCE).classes)
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = torch.cat([state[name][order], state[name][:1] * 0 - 1])
    (tmp_path / "names.txt").write_text("\n".join([classes[i] for i in order] + ["none of them"]))
    given = settings(weights=file(state), classes=str(tmp_path / "names.txt"))
    result = run(given, context(tmp_path / "out"))

    assert result.summary["accuracy"] == trained[1].summary["accuracy"]
    assert result.summary["classes"] == classes


def test_a_wrong_order_of_classes_is_refused_and_named(
    trained: tuple[Folder, Result], tmp_path: Path, file: Callable[[dict[str, Any]], str]
) -> None:
    """The commonest failure: the outputs tell the classes apart, under other names."""
    classes = list(publish(SOURCE).classes)
    given = settings(weights=file(tensors(trained[0])), classes=[*classes[1:], classes[0]])
    with pytest.raises(ArtifactError) as caught:
        run(given, context(tmp_path / "out"))
    assert "Its outputs do separate the classes (" in str(caught.value)
    assert "so the order of the classes is wrong: check classes, which must name the outputs of" in str(
        caught.value
    )


def test_ready_weights_need_a_name_for_every_output(
    trained: tuple[Folder, Result], tmp_path: Path, file: Callable[[dict[str, Any]], str]
) -> None:
    """Too few names, and numbers for other channels than the network's, are refused."""
    path = file(tensors(trained[0]))
    with raises("classes-miscounted"):
        run(settings(weights=path, classes=["0", "1"]), context(tmp_path / "a"))
    given = settings(weights=path, classes="source", mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 1.0])
    with raises("mean-of-other-channels"):
        run(given, context(tmp_path / "b"))


def test_word_names_of_torchvision_do_not_fit_wordnet_ids(local_ray: None) -> None:
    """A subset of ImageNet by WordNet id needs a file of names; all of ImageNet is sorted by id."""
    names, source = ("tench", "shark", "ray"), publish(SOURCE)
    some = replace(source, classes=("n01440764", "n01484850"))
    with raises("classes-are-wordnet-ids"):
        _known(names, some)
    every = replace(source, classes=("n03000000", "n01440764", "n01484850"))
    assert _known(names, every) == ("n01440764", "n01484850", "n03000000")
    assert _known(names, source) == names
