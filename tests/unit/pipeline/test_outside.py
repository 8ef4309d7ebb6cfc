"""Files that stages read and no stage has made: they count by what is in them, not by their path alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image

from rayddl.errors import ArtifactError
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
ALSO = """
name: s
source: {name: digits}
stages:
  bought: {kind: experts, replay: FIRST}
  made: {kind: match, experts: bought, ipc: 1}
  search:
    kind: tune
    of: made
    also: [bought]
    searcher: grid
    space: {bought.replay: {grid: [FIRST, SECOND]}}
"""


def saved(place: Path, seed: int, numbers: int = 8) -> None:
    """A tensor of that many random numbers: files of two seeds have the same size."""
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.rand(numbers, generator=torch.Generator().manual_seed(seed)), place)


def picture(place: Path, value: int) -> None:
    """An image of one colour, in a format in which all have the same size."""
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (9, 9), value).save(place)


def identity(config: StageConfig) -> str:
    """Of the one place in these settings."""
    (found,) = outside.identities([config]).values()
    assert isinstance(found, str)
    return found


def of_set(where: Path | str) -> str:
    return identity(ImportedConfig.model_validate({"kind": "imported", "path": str(where)}))


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
    """A plan does not read gigabytes of experts, and of their folder only them."""
    monkeypatch.setattr(outside, "END", 100)
    data, place = bytearray(300), tmp_path / "replay_buffer_0.pt"
    place.write_bytes(data)
    for where in (tmp_path, place):
        config = ExpertsConfig.model_validate({"kind": "experts", "replay": str(where)})
        data[at] = 0
        place.write_bytes(data)
        before = identity(config)
        saved(tmp_path / "notes.pt", 3)
        assert identity(config) == before != ""
        data[at] = 1
        place.write_bytes(data)
        assert (identity(config) != before) == counts


@pytest.mark.parametrize("missing", ["nothing", "nothing.pt", "empty", "x.json/y"])
def test_a_place_without_files_has_none(tmp_path: Path, missing: str) -> None:
    """The stage says that they are missing; names of published weights are no places."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.json").touch()
    where = str(tmp_path / missing)
    assert of_set(where) == ""
    assert (
        identity(TeacherConfig.model_validate({"kind": "teacher", "weights": where, "classes": "source"}))
        == ""
    )
    assert not outside.identities([TeacherConfig.model_validate({"kind": "teacher", "weights": "DEFAULT"})])


def link(folder: Path) -> None:
    (folder.parent / "other.png").write_bytes(b"")
    (folder / "a").mkdir()
    (folder / "a" / "0.png").symlink_to(folder.parent / "other.png")


def half(folder: Path) -> None:
    (folder / "train-00000-of-00002.parquet").touch()


def two(folder: Path) -> None:
    for name in ("u.pt", "v.pt"):
        saved(folder / name, 0)


@pytest.mark.parametrize("content", [link, half, two])
def test_what_is_no_set_is_another_than_none(tmp_path: Path, content: Callable[[Path], None]) -> None:
    """The stage reports it, although one that is finished was made from files that were there."""
    folder = tmp_path / "set"
    folder.mkdir()
    content(folder)
    assert of_set(folder) == outside.REFUSED
    assert of_set("ftp://x/y") == outside.REFUSED


def test_a_folder_may_be_called_like_a_file(tmp_path: Path) -> None:
    """The stage reads the set in it."""
    for name in ("images_best.pt", "labels_best.pt"):
        saved(tmp_path / "theirs.pt" / name, 0)
    before = of_set(tmp_path / "theirs.pt")
    saved(tmp_path / "theirs.pt" / "labels_best.pt", 1)
    assert "" != before != of_set(tmp_path / "theirs.pt")


class Odd(Exception):
    """Storage of other kinds has errors of its own."""


@pytest.mark.parametrize("error", [OSError, Odd])
@pytest.mark.parametrize("question", ["exists", "has", "size", "read"])
def test_a_place_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: str, error: type[Exception]
) -> None:
    """Its files may have changed."""

    def fails(*_: object, **__: object) -> bytes:
        raise error("s3://KEY:secret@bucket timed out")

    place = str(tmp_path / "weights.pt")
    saved(Path(place), 0)
    config = TeacherConfig.model_validate({"kind": "teacher", "weights": place, "classes": "source"})
    monkeypatch.setattr(Folder, question, fails)
    (found,) = outside.identities([config]).values()
    assert isinstance(found, ArtifactError)
    assert found.code == "files-unreadable"
    assert str(found).startswith(f"{place} cannot be read: s3://")
    assert "secret" not in str(found)


def test_the_runs_of_a_comparison_count(tmp_path: Path, written: Callable[..., Path]) -> None:
    """By their manifests, which have the hashes of their other files; relative ones are not on a cluster."""

    def config(*runs: str) -> StageConfig:
        return CompareConfig.model_validate({"kind": "compare", "runs": runs})

    place = tmp_path / "theirs" / "judged-0"
    assert identity(config(str(place))) == ""
    place.mkdir(parents=True)
    (place / "manifest.json").write_text("{}")
    before = identity(config(str(place)))
    (place / "manifest.json").write_text("[]")
    assert "" != before != identity(config(str(place)))
    text = "name: d\nsource: {name: digits}\nstages: {page: {kind: compare, runs: [theirs/judged]}}\n"
    assert list(paths_not_on_cluster(load(written(text)))) == [("page.runs", "theirs/judged")]


@pytest.mark.parametrize("text", [SEARCH, ALSO], ids=["its template", "a stage beside it"])
def test_every_value_of_a_search_counts(tmp_path: Path, written: Callable[..., Path], text: str) -> None:
    """Its trials read them all."""
    places = [tmp_path / f"{name}.pth" for name in ("first", "second")]
    text = text.replace("FIRST", str(places[0])).replace("SECOND", str(places[1]))
    seen = set()
    for step in range(3):
        for place, seed in zip(places, (step == 1, step == 2), strict=True):
            saved(place, int(seed))
        made = plans.make(load(written(text)), str(tmp_path / "runs"), lambda _: "digits")
        seen.add(next(stage.fingerprint for stage in made.stages if stage.name == "search"))
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


def sealed(planned: plans.PlannedStage, moment: int) -> None:
    """Finish the stage without running it, at this second."""
    described: dict[str, Any] = {
        "stage": planned.name, "kind": "imported", "fingerprint": planned.fingerprint, "config": {}, "inputs": {},
        "source": {"config": {"name": "digits"}, "fingerprint": "digits"}, "seed": 0, "summary": {}, "table": [],
        "read_files": dict(planned.files),
    }  # fmt: skip
    planned.folder.write("x.txt", b"x")
    artifacts.seal(planned.folder, described)
    assert planned.folder.local is not None
    os.utime(planned.folder.local / "manifest.json", (moment, moment))


def test_a_finished_import_whose_files_are_gone_is_still_finished(
    tmp_path: Path, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was imported is kept with the run, and was read from them as they were last; so if their storage does not
    answer. What is no set in their place is refused.
    """
    place = tmp_path / "mtt" / "images_best.pt"
    both = [place.parent / name for name in ("images_best.pt", "labels_best.pt")]

    def planned(seed: int | None = None) -> plans.PlannedStage:
        for each in both if seed is not None else ():
            saved(each, cast(int, seed))
        return prints_of(place, tmp_path, written)["theirs"]

    for seed, moment in ((0, 1000), (1, 3000), (2, 2000)):
        sealed(planned(seed), moment)
    last = planned(1)
    for each in both:
        each.unlink()
    assert (planned().fingerprint, planned().state) == (last.fingerprint, "done")
    for name in ("u.pt", "v.pt"):
        saved(place.parent / name, 0)
    assert planned().state == "new"
    assert planned(3).state == "new"

    def fails(config: ImportedConfig, where: str) -> Any:
        raise OSError("timed out")

    monkeypatch.setattr(ImportedConfig, "files_at", fails)
    assert (planned().fingerprint, planned().state) == (last.fingerprint, "done")
    shutil.rmtree(tmp_path / "runs")
    with raises("files-unreadable"):
        planned()


def test_one_of_several_files_may_be_gone(tmp_path: Path, written: Callable[..., Path]) -> None:
    """Large weights, say, while their class names are still there and must be as they were."""
    weights, classes = tmp_path / "w.pt", tmp_path / "classes.txt"
    stage = f"{{kind: teacher, weights: {weights}, classes: {classes}}}"
    text = f"name: d\nsource: {{name: digits}}\nstages:\n  t: {stage}\n"

    def planned() -> plans.PlannedStage:
        return plans.make(load(written(text)), str(tmp_path / "runs"), lambda _: "digits").stages[0]

    saved(weights, 0)
    classes.write_text("a")
    sealed(planned(), 1000)
    weights.unlink()
    assert planned().state == "done"
    classes.write_text("b")
    assert planned().state == "new"


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
