"""Files that stages read and no stage has made: they count by what is in them, not by their path alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from rayddl.pipeline import outside
from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition.load import load
from rayddl.stages.imported.settings import ImportedConfig
from rayddl.stages.teacher.settings import TeacherConfig
from rayddl.storage import Folder, UnreachableError
from tests.raising import raises

DEFINITION = """
name: d
source: {name: digits}
stages:
  theirs: {kind: imported, path: PATH}
  judged: {kind: evaluate, set: theirs, seeds: 1}
  ours: {kind: experts, count: 1, epochs: 1}
"""


def saved(place: Path, seed: int, numbers: int = 8) -> None:
    """A tensor of that many random numbers: files of two seeds have the same size."""
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.rand(numbers, generator=torch.Generator().manual_seed(seed)), place)


@pytest.mark.parametrize("named", ["", "images_best.pt"], ids=["the folder", "the file of images"])
@pytest.mark.parametrize("changed", ["images_best.pt", "labels_best.pt", "lr_best.pt"])
def test_a_set_of_the_same_size_is_another(tmp_path: Path, named: str, changed: str) -> None:
    """Training again writes other numbers into files of the same names and sizes."""
    for name in ("images_best.pt", "labels_best.pt"):
        saved(tmp_path / name, 0)
    where = str(tmp_path / named)
    before = outside.identity(where)
    assert before == outside.identity(where) != ""
    saved(tmp_path / changed, 1)
    assert outside.identity(where) != before


def logs(folder: Path) -> None:
    (folder / "log.txt").write_text("epoch 7")
    (folder / ".cache").mkdir()
    saved(folder / ".cache" / "images_best.pt", 5)


def copied(folder: Path) -> None:
    for file in folder.rglob("*"):
        os.utime(file, (1, 1))


@pytest.mark.parametrize("change", [logs, copied])
def test_what_is_no_part_of_a_set_does_not_count(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Logs and hidden files beside it, and times."""
    saved(tmp_path / "images_best.pt", 0)
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    before = outside.identity(str(tmp_path))
    change(tmp_path)
    assert outside.identity(str(tmp_path)) == before


def test_images_count_by_name_and_size(tmp_path: Path) -> None:
    """As those of a source do."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (2, 2)).save(tmp_path / name / "0.png")
    seen = {outside.identity(str(tmp_path))}
    (tmp_path / "b" / "0.png").rename(tmp_path / "b" / "1.png")
    seen.add(outside.identity(str(tmp_path)))
    Image.new("RGB", (9, 9)).save(tmp_path / "b" / "1.png")
    seen.add(outside.identity(str(tmp_path)))
    (tmp_path / "classes.txt").write_text("a\nb\n")
    seen.add(outside.identity(str(tmp_path)))
    (tmp_path / "classes.txt").write_text("b\na\n")
    seen.add(outside.identity(str(tmp_path)))
    assert len(seen) == 5


@pytest.mark.parametrize(("at", "counts"), [(0, True), (150, False), (250, True), (299, True)])
def test_large_files_are_read_at_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, counts: bool
) -> None:
    """A plan does not read gigabytes of experts."""
    monkeypatch.setattr(outside, "END", 100)
    data, place = bytearray(300), tmp_path / "replay_buffer_0.pt"
    place.write_bytes(data)
    before = outside.identity(str(tmp_path))
    data[at] = 1
    place.write_bytes(data)
    assert (outside.identity(str(tmp_path)) != before) == counts


def test_fields_without_files_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage says that its files are missing; names of published weights are no files."""
    (tmp_path / "empty").mkdir()
    for path in ("nothing", "nothing.pt", "empty"):
        config = ImportedConfig.model_validate({"kind": "imported", "path": str(tmp_path / path)})
        assert outside.identities(config) == {}
    named = TeacherConfig.model_validate({"kind": "teacher", "weights": "DEFAULT", "net": "resnet18"})
    assert outside.identities(named) == {}

    def unreachable(*_: object) -> bytes:
        raise UnreachableError("timed out")

    saved(tmp_path / "weights.pt", 0)
    monkeypatch.setattr(Folder, "read", unreachable)
    with raises("import-unreachable"):
        outside.identity(str(tmp_path / "weights.pt"))


def test_a_changed_set_is_imported_and_evaluated_again(tmp_path: Path, written: Callable[..., Path]) -> None:
    """Stages that read neither keep their results."""
    place = tmp_path / "mtt" / "images_best.pt"
    definition = load(written(DEFINITION.replace("PATH", str(place.parent))))

    def prints() -> dict[str, str]:
        made = plans.make(definition, str(tmp_path / "runs"), lambda _: "digits")
        return {stage.name: stage.fingerprint for stage in made.stages}

    without = prints()
    saved(place, 0)
    first = prints()
    assert first == prints()
    saved(place, 1)
    second = prints()
    assert len({without["theirs"], first["theirs"], second["theirs"]}) == 3
    assert len({without["judged"], first["judged"], second["judged"]}) == 3
    assert without["ours"] == first["ours"] == second["ours"]
