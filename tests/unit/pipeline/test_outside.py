"""Files that stages read and no stage has made: they count by what is in them, not by their path alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image

from rayddl.jobs.shipping import paths_not_on_cluster
from rayddl.pipeline import artifacts, outside, runner
from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition.load import load
from rayddl.stages.compare.settings import CompareConfig
from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.imported.settings import ImportedConfig
from rayddl.stages.settings import StageConfig
from rayddl.stages.teacher.settings import TeacherConfig
from rayddl.storage import Folder
from tests.raising import raises

DEFINITION = """
name: d
source: {name: digits}
stages:
  theirs: {kind: imported, path: PATH}
  judged: {kind: evaluate, set: theirs, seeds: 1}
  ours: {kind: experts, count: 1, epochs: 1}
"""
SEARCH = """
name: s
source: {name: digits}
stages:
  trained: {kind: teacher, weights: FIRST, classes: source}
  search:
    kind: tune
    of: trained
    searcher: grid
    metric: accuracy
    space: {weights: {grid: [FIRST, SECOND]}}
"""


def saved(place: Path, seed: int, numbers: int = 8) -> None:
    """A tensor of that many random numbers: files of two seeds have the same size."""
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.rand(numbers, generator=torch.Generator().manual_seed(seed)), place)


def picture(place: Path, value: int) -> None:
    """An image of one colour, in a format in which all have the same size."""
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (9, 9), value).save(place)


def of_set(where: Path | str, **more: Any) -> str:
    return outside.identity([ImportedConfig.model_validate({"kind": "imported", "path": str(where), **more})])


@pytest.mark.parametrize("named", ["", "images_best.pt"], ids=["the folder", "the file of images"])
@pytest.mark.parametrize("changed", ["images_best.pt", "labels_best.pt", "lr_best.pt", "set.json"])
def test_a_set_of_the_same_size_is_another(tmp_path: Path, named: str, changed: str) -> None:
    """Training again writes other numbers into files of the same names and sizes."""
    for name in ("images_best.pt", "labels_best.pt"):
        saved(tmp_path / name, 0)
    before = of_set(tmp_path / named)
    assert before == of_set(tmp_path / named) != ""
    saved(tmp_path / changed, 1)
    assert of_set(tmp_path / named) != before


def logs(folder: Path) -> None:
    (folder / "log.txt").write_text("epoch 7")
    saved(folder / "images_700.pt", 5)
    saved(folder / "runs" / "theirs" / "set.pt", 5)
    picture(folder / "runs" / "grid.png", 3)
    picture(folder / "look.png", 3)


def copied(folder: Path) -> None:
    for file in folder.rglob("*"):
        os.utime(file, (1, 1))


@pytest.mark.parametrize("change", [logs, copied])
def test_what_is_no_part_of_a_set_does_not_count(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Logs, other iterations, results of the run itself, times."""
    for name in ("images_best.pt", "labels_best.pt"):
        saved(tmp_path / name, 0)
    before = of_set(tmp_path)
    change(tmp_path)
    assert of_set(tmp_path) == before


@pytest.mark.parametrize("ending", ["png", "bmp", "ppm"])
def test_images_count_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """Not those beside the folders of classes; of very many, only names and sizes."""
    for name in "ab":
        picture(tmp_path / name / f"0.{ending}", 1)
    seen = [of_set(tmp_path)]
    picture(tmp_path / f"0.{ending}", 9)
    assert of_set(tmp_path) == seen[0]
    (tmp_path / "b" / f"0.{ending}").rename(tmp_path / "b" / f"1.{ending}")
    seen.append(of_set(tmp_path))
    picture(tmp_path / "b" / f"1.{ending}", 2)
    seen.append(of_set(tmp_path))
    for names in ("a\nb\n", "b\na\n"):
        (tmp_path / "classes.txt").write_text(names)
        seen.append(of_set(tmp_path))
    assert len(set(seen)) == 5
    monkeypatch.setattr(outside, "MANY", 1)
    few = of_set(tmp_path)
    (tmp_path / "b" / f"1.{ending}").write_bytes(bytes((tmp_path / "b" / f"1.{ending}").stat().st_size))
    assert of_set(tmp_path) == few


@pytest.mark.parametrize(("at", "counts"), [(0, True), (150, False), (250, True), (299, True)])
def test_large_files_are_read_at_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, counts: bool
) -> None:
    """A plan does not read gigabytes of experts."""
    monkeypatch.setattr(outside, "END", 100)
    data, place = bytearray(300), tmp_path / "replay_buffer_0.pt"
    place.write_bytes(data)
    config = ExpertsConfig.model_validate({"kind": "experts", "replay": str(tmp_path)})
    before = outside.identity([config])
    data[at] = 1
    place.write_bytes(data)
    assert (outside.identity([config]) != before) == counts


@pytest.mark.parametrize("missing", ["nothing", "nothing.pt", "empty", "ftp://x/y", "x.json/y"])
def test_a_place_without_files_has_none(tmp_path: Path, missing: str) -> None:
    """The stage says that they are missing, or that such a place is not read."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.json").touch()
    where = missing if "://" in missing else str(tmp_path / missing)
    teacher = TeacherConfig.model_validate({"kind": "teacher", "weights": where, "classes": "source"})
    for config in (ImportedConfig.model_validate({"kind": "imported", "path": where}), teacher):
        assert outside.names_files([config])
        assert outside.identity([config]) == ""
    named = TeacherConfig.model_validate({"kind": "teacher", "weights": "DEFAULT", "net": "resnet18"})
    assert not outside.names_files([named])


@pytest.mark.parametrize("question", ["exists", "has", "size", "read"])
def test_a_place_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    """Its files may have changed: what was made of them counts for nothing, but is not made again either."""

    def fails(*_: object, **__: object) -> bytes:
        raise OSError("timed out")

    saved(tmp_path / "weights.pt", 0)
    config = TeacherConfig.model_validate(
        {"kind": "teacher", "weights": str(tmp_path / "weights.pt"), "classes": "source"}
    )
    monkeypatch.setattr(Folder, question, fails)
    with raises("files-unreadable") as caught:
        outside.identity([config])
    assert "weights.pt cannot be read: timed out" in str(caught.value)


def test_the_runs_of_a_comparison_count(tmp_path: Path, written: Callable[..., Path]) -> None:
    """By their manifests, which have the hashes of their other files; relative ones are not on a cluster."""

    def config(*runs: str) -> StageConfig:
        return CompareConfig.model_validate({"kind": "compare", "runs": runs})

    place = tmp_path / "theirs" / "judged-0"
    assert outside.identity([config(str(place))]) == ""
    place.mkdir(parents=True)
    (place / "manifest.json").write_text("{}")
    before = outside.identity([config(str(place))])
    (place / "manifest.json").write_text("[]")
    assert "" != before != outside.identity([config(str(place))])
    text = "name: d\nsource: {name: digits}\nstages: {page: {kind: compare, runs: [theirs/judged]}}\n"
    assert list(paths_not_on_cluster(load(written(text)))) == [("page.runs", "theirs/judged")]


def test_every_value_of_a_search_counts(tmp_path: Path, written: Callable[..., Path]) -> None:
    """Its trials read them all."""
    places = [tmp_path / f"{name}.pth" for name in ("first", "second")]
    text = SEARCH.replace("FIRST", str(places[0])).replace("SECOND", str(places[1]))
    seen = set()
    for step in range(3):
        for place, seed in zip(places, (step == 1, step == 2), strict=True):
            saved(place, int(seed))
        made = plans.make(load(written(text)), str(tmp_path / "runs"), lambda _: "digits")
        seen.add(made.stages[-1].fingerprint)
    assert len(seen) == 3


def prints_of(place: Path, tmp_path: Path, written: Callable[..., Path]) -> dict[str, plans.PlannedStage]:
    definition = load(written(DEFINITION.replace("PATH", str(place.parent))))
    made = plans.make(definition, str(tmp_path / "runs"), lambda _: "digits")
    return {stage.name: stage for stage in made.stages}


def test_a_changed_set_is_imported_and_evaluated_again(
    tmp_path: Path, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages that read neither keep their results. Each file is read once for a plan."""
    place = tmp_path / "mtt" / "images_best.pt"
    reads: list[str] = []
    found = outside._digest

    def counted(file: Any) -> str:
        reads.append(file.name)
        return found(file)

    monkeypatch.setattr(outside, "_digest", counted)

    def prints() -> dict[str, str]:
        return {name: stage.fingerprint for name, stage in prints_of(place, tmp_path, written).items()}

    without = prints()
    for name in ("images_best.pt", "labels_best.pt"):
        saved(place.parent / name, 0)
    first = prints()
    assert sorted(reads) == ["images_best.pt", "labels_best.pt"]
    assert first == prints()
    saved(place, 1)
    second = prints()
    assert len({without["theirs"], first["theirs"], second["theirs"]}) == 3
    assert len({without["judged"], first["judged"], second["judged"]}) == 3
    assert without["ours"] == first["ours"] == second["ours"]


def test_a_finished_import_whose_files_are_gone_is_still_finished(
    tmp_path: Path, written: Callable[..., Path]
) -> None:
    """What was imported is kept with the run, and was read from them as they were last."""
    place = tmp_path / "mtt" / "images_best.pt"
    both = [place.parent / name for name in ("images_best.pt", "labels_best.pt")]

    def imported(seed: int, moment: int) -> plans.PlannedStage:
        for each in both:
            saved(each, seed)
        planned = prints_of(place, tmp_path, written)["theirs"]
        described: dict[str, Any] = {
            "stage": "theirs", "kind": "imported", "fingerprint": planned.fingerprint, "config": {}, "inputs": {},
            "source": {"config": {"name": "digits"}, "fingerprint": "digits"}, "seed": 0, "summary": {}, "table": [],
            "read_files": planned.files,
        }  # fmt: skip
        planned.folder.write("x.txt", b"x")
        artifacts.seal(planned.folder, described)
        assert planned.folder.local is not None
        os.utime(planned.folder.local / "manifest.json", (moment, moment))
        return planned

    imported(0, 1000)
    last = imported(1, 3000)
    imported(2, 2000)
    for each in both:
        each.unlink()
    again = prints_of(place, tmp_path, written)["theirs"]
    assert (again.fingerprint, again.state) == (last.fingerprint, "done")
    for each in both:
        saved(each, 3)
    assert prints_of(place, tmp_path, written)["theirs"].state == "new"


def test_files_that_change_while_they_are_read_are_no_result(
    tmp_path: Path, written: Callable[..., Path]
) -> None:
    """Of a set that is being copied, or of a training that goes on, some files are old and some new."""
    place = tmp_path / "mtt" / "images_best.pt"
    for name in ("images_best.pt", "labels_best.pt"):
        saved(place.parent / name, 0)
    definition = load(written(DEFINITION.replace("PATH", str(place.parent))))
    plan = plans.make(definition, str(tmp_path / "runs"), lambda _: "digits")
    run = cast(Any, SimpleNamespace(plan=plan))
    with plan.known.used():
        for planned in plan.stages:
            runner._Run._refuse_changed(run, planned)
        saved(place, 1)
        with raises("files-changed"):
            runner._Run._refuse_changed(run, plan.stages[0])
