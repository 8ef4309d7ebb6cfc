"""``kind: report`` on folders as stages leave them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels.space import fit
from rayddl.errors import ArtifactError
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context, Input
from rayddl.stages.report.settings import ReportConfig
from rayddl.stages.report.stage import _real, run
from rayddl.storage import Folder
from tests.raising import raises

INTEGERS = {"expert", "epoch", "iteration", "seed"}
TEXTS = {"data", "net"}
CONFIG = ReportConfig(kind="report")


def write(folder: Folder, name: str, columns: Any) -> None:
    """A table as its stage writes it."""
    plain = {key: list(values.tolist()) for key, values in columns.items()}
    types = {key: "int64" if key in INTEGERS else "string" if key in TEXTS else "double" for key in plain}
    tables.write(folder, name, plain, types)


@pytest.fixture
def context(tmp_path: Path, make: Any) -> Context:
    """A finished run on disk: experts, match, evaluate."""
    out = Folder(str(tmp_path))
    inputs = {}
    for made in (make.evaluate(), make.match(), make.experts()):
        stage, folder = made.stage, out.child(made.stage.folder)
        if stage.kind == "experts":
            write(folder, "metrics.parquet", made.metrics)
        elif stage.kind == "match":
            write(folder, "metrics.parquet", made.metrics)
            write(folder, "accuracy.parquet", made.accuracy)
            pixels = torch.from_numpy(made.pictures.images)
            space = fit("normalise", pixels)
            labels = torch.from_numpy(made.pictures.labels)
            info = {"method": "MCT", "source_fingerprint": "5ba1e"}
            DistilledSet(space.encode(pixels), labels, 0.02, made.pictures.classes, space, info).save(
                folder.child("set")
            )
        else:
            write(folder, "students.parquet", made.students)
        inputs[stage.name] = Input(stage.name, stage.kind, folder, stage.config, stage.summary)
    definition = {
        "name": "quickstart",
        "stages": {
            "experts": {"kind": "experts"},
            "distill": {"kind": "match"},
            "evaluate": {"kind": "evaluate"},
        },
    }
    return Context("report", SourceConfig(name="digits"), 3, out.child("report-1"), inputs, definition)


def page(context: Context) -> str:
    """The page that was written."""
    return context.out.read("report.html").decode()


def test_writes_the_page_and_says_how_large(context: Context) -> None:
    """The summary names the file and its bytes; the page has a section per stage in order."""
    result = run(CONFIG, context)

    text = page(context)
    assert result.summary == {"file": "report.html", "bytes": len(text.encode())}
    places = [
        text.index(f'id="{key}"')
        for key in ("accuracy", "match-distill", "experts-experts", "evaluate-evaluate")
    ]
    assert places == sorted(places)
    assert "71.2\u00a0%" in text
    assert "distill-a07c55d1e2f4" in text
    assert "5ba1e" in text


def test_second_writing_is_the_same(context: Context) -> None:
    """The same inputs give the same bytes."""
    run(CONFIG, context)
    first = page(context)

    run(CONFIG, context)

    assert page(context) == first


def test_soft_labels_sort_images_by_their_likeliest_class(context: Context) -> None:
    """A set whose labels are distributions is shown under the classes it leans to."""
    folder = context.inputs["distill"].folder.child("set")
    made = DistilledSet.load(folder)
    soft = torch.nn.functional.one_hot(made.labels.flip(0), len(made.classes)).float()
    DistilledSet(made.images, soft, 0.02, made.classes, made.space, made.info).save(folder)

    run(CONFIG, context)

    assert 'alt="nine, distilled"' in page(context)


def test_no_path_of_the_machine_is_on_the_page(context: Context, tmp_path: Path) -> None:
    """A page can be sent around: folders appear by their own names only."""
    run(CONFIG, context)

    assert str(tmp_path) not in page(context)


def test_stage_of_another_kind_is_listed_only(context: Context) -> None:
    """A kind that the report does not know has its row among the folders and its time, no section."""
    other = Input("sweep", "teacher", Folder(context.out.uri).child("sweep-1"), {}, {"seconds": 12.0})
    context = Context(**{**vars(context), "inputs": {**context.inputs, "sweep": other}})

    run(CONFIG, context)

    assert "<td>sweep</td><td>teacher</td>" in page(context)


def test_missing_table_is_named(context: Context) -> None:
    """A finished stage without its table is refused with the path and what to do."""
    folder = context.inputs["experts"].folder
    folder.delete("metrics.parquet")

    with pytest.raises(ArtifactError) as caught:
        run(CONFIG, context)

    assert str(caught.value) == (
        f"{folder.path('metrics.parquet')} is missing, though stage 'experts' is finished; delete the "
        "stage's folder and run again to make it anew"
    )


def test_broken_table_is_named(context: Context) -> None:
    """A table that is not Parquet is refused with its path."""
    context.inputs["evaluate"].folder.write("students.parquet", b"not a table")

    with raises("stage-table-unreadable"):
        run(CONFIG, context)


def test_table_without_a_column_is_named(context: Context) -> None:
    """A table of another layout is refused with the column and what it has."""
    folder = context.inputs["distill"].folder
    types = {"iteration": "int64", "loss": "double"}
    tables.write(folder, "metrics.parquet", {"iteration": [1], "loss": [0.5]}, types)

    with pytest.raises(ArtifactError) as caught:
        run(CONFIG, context)

    assert str(caught.value) == (
        f"{folder.path('metrics.parquet')} lacks the column 'lr_student'; it has iteration, loss. Another "
        "version of rayddl made it: delete the stage's folder and run again to make it anew"
    )


def test_nulls_in_a_table_are_gaps(context: Context) -> None:
    """A null is read as NaN and shown as a dash."""
    columns: dict[str, list[Any]] = {
        "data": ["distilled"],
        "net": ["convnet"],
        "seed": [0],
        "accuracy": [None],
        "seconds": [1.0],
    }
    types = {"data": "string", "net": "string", "seed": "int64", "accuracy": "double", "seconds": "double"}
    tables.write(context.inputs["evaluate"].folder, "students.parquet", columns, types)

    run(CONFIG, context)

    assert 'data-key="">–</td>' in page(context)


def test_real_images_are_drawn_for_the_sets_classes(context: Context, make: Any) -> None:
    """The same at every call, of every class in order; none for a set of other classes, or a source that is gone."""
    mine = {"match": [make.match(classes=tuple("0123456789"))]}
    real, again = _real(context, mine), _real(context, mine)

    assert real is not None
    assert again is not None
    assert real.labels.tolist() == [c for c in range(10) for _ in range(4)]
    assert (real.images == again.images).all()
    assert real.images.max() > 200
    assert _real(context, {"match": [make.match()]}) is None
    assert _real(context, {"experts": [make.experts()]}) is None
    gone = replace(context, source=SourceConfig(name="imagefolder", root="/nowhere"))
    assert _real(gone, mine) is None


def test_real_images_of_a_folder(context: Context, make: Any, tmp_path: Path) -> None:
    """A source whose images are read one by one shows them, too."""
    for split in ("train", "val"):
        for name, level in (("cat", 10), ("dog", 200)):
            for i in range(5):
                place = tmp_path / "photos" / split / name / f"{i}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), level + i).save(place)
    folder = replace(context, source=SourceConfig(name="imagefolder", root=str(tmp_path / "photos")))
    real = _real(folder, {"match": [make.match(classes=("cat", "dog"))]})

    assert real is not None
    assert [int(image.mean()) // 100 for image in real.images] == [0] * 4 + [2] * 4
