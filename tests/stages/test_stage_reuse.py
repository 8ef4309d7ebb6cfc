"""More experts and more students are trained beside those that are there, and are what one run would make of them."""

from __future__ import annotations

from typing import Any

import pytest

import rayddl
from rayddl.methods.trajectories import files
from rayddl.pipeline.results import RunResult
from rayddl.stages import parquet as tables
from rayddl.stages.evaluate import distribution, protocol
from rayddl.stages.experts import stage as experts
from rayddl.storage import Folder

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("kept_ray")]

NETS = [{"name": "mlp", "width": width} for width in (8, 16)]


def run(
    out: str, count: int = 2, seeds: int = 1, training: dict[str, Any] | None = None, **changes: Any
) -> RunResult:
    """Experts, random images and students of these, with as many experts and students as asked."""
    student: dict[str, Any] = {"epochs": 3, "compile": False, "together": False, "augment": "none"} | changes
    definition = {
        "name": "more",
        "source": {"name": "digits"},
        "stages": {
            "experts": {"kind": "experts", "net": {"name": "mlp", "width": 8}, "count": count, "epochs": 2,
                        "batch": 512, "compile": False, **(training or {})},
            "picked": {"kind": "coreset", "method": "random", "ipc": 1},
            "evaluate": {"kind": "evaluate", "set": "picked", "seeds": seeds, "nets": NETS, **student},
        },
    }  # fmt: skip
    return rayddl.run(definition, out=out, progress=False)


def folder_of(done: RunResult, stage: str) -> Folder:
    return Folder(str(done.artifacts[stage].folder))


def students(done: RunResult) -> dict[tuple[Any, ...], tuple[float, float]]:
    """Accuracy and seconds of each student."""
    rows = tables.read(folder_of(done, "evaluate"), "students.parquet")
    keys = zip(rows["data"], rows["net"], rows["seed"], strict=True)
    return dict(zip(keys, zip(rows["accuracy"], rows["seconds"], strict=True), strict=True))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def few(kept_ray: None, out: str) -> RunResult:
    return run(out)


@pytest.fixture(scope="module")
def more(few: RunResult, out: str) -> RunResult:
    return run(out, count=3, seeds=3)


@pytest.fixture(scope="module")
def afresh(kept_ray: None, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The larger run where nothing is."""
    return run(str(tmp_path_factory.mktemp("afresh")), count=3, seeds=3)


def test_experts_that_are_there_are_used(few: RunResult, more: RunResult, afresh: RunResult) -> None:
    """Byte for byte, with the seconds they took; all are those of one run, but for these seconds."""
    names = [files.file_name(i) for i in range(3)]
    before, now, once = (folder_of(done, "experts") for done in (few, more, afresh))

    assert [now.read(name) == before.read(name) for name in names[:2]] == [True, True]
    for name in names:
        ours, theirs = (files.open_trajectory(place, name, "convex") for place in (now, once))
        assert bool((ours.at(1.5) == theirs.at(1.5)).all())
    assert more.artifacts["experts"].summary["count"] == 3


def test_students_that_are_there_are_used(few: RunResult, more: RunResult, afresh: RunResult) -> None:
    """With the seconds they took; all are those of one run, in tables, means and confusion."""
    before, now, once = students(few), students(more), students(afresh)

    assert len(before) == 4
    assert {key: now[key] for key in before} == before
    assert {key: value[0] for key, value in now.items()} == {key: value[0] for key, value in once.items()}
    assert [key for key in now if now[key][1] == once[key][1]] == []
    assert more.artifacts["evaluate"].summary["rows"] == afresh.artifacts["evaluate"].summary["rows"]
    ours, theirs = (tables.read(folder_of(done, "evaluate"), "confusion.parquet") for done in (more, afresh))
    assert ours == theirs


def test_fewer_are_used_of_more(more: RunResult, out: str) -> None:
    """A smaller number trains nothing."""
    less = run(out, count=1, seeds=2)
    now, before = students(less), students(more)

    assert now == {key: value for key, value in before.items() if key[2] < 2}
    name = files.file_name(0)
    assert folder_of(less, "experts").read(name) == folder_of(more, "experts").read(name)


@pytest.mark.parametrize("changes", [{"together": True}, {"lr_grid": [0.01, 0.1]}, {"compile": None}])
def test_students_that_depend_on_their_number_are_trained_again(
    out: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are trained together, whose rates are searched, or that fewer would not be compiled for."""
    monkeypatch.setattr(distribution, "faster_together", lambda *_, **__: True)
    monkeypatch.setattr(protocol, "_worth_compiling", lambda task: task.config.seeds > 2)
    few, more = (students(run(out, count=3, seeds=seeds, **changes)) for seeds in (2, 3))

    assert set(few) < set(more)
    assert not {value[1] for value in few.values()} & {value[1] for value in more.values()}


def test_experts_that_fewer_would_not_be_compiled_for_are_trained_again(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last digits of compiled ones are others."""
    monkeypatch.setattr(experts, "worth_compiling", lambda *_, steps, **__: steps > 20)
    few, more = (run(out, count=count, training={"compile": None, "epochs": 3}) for count in (2, 3))
    name = files.file_name(0)
    ours, theirs = (files.read_history(folder_of(done, "experts"), name)[:, -1] for done in (few, more))
    assert not bool((ours[1:] == theirs[1:]).any())


def test_what_was_spent_on_them_counts(few: RunResult, more: RunResult) -> None:
    """A stage has cost what its experts and students have, wherever they were trained."""
    for stage in ("experts", "evaluate"):
        before, now = few.artifacts[stage].summary["seconds"], more.artifacts[stage]
        assert now.seconds > before
        assert now.summary["seconds"] > before
