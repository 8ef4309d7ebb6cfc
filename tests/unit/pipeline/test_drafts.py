"""``rayddl init``: what is found in a folder of images, and the definition that is written for it."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from rayddl.data.sources import path_contents
from rayddl.data.sources.path_contents import read_contents
from rayddl.drafts.draft import draft
from rayddl.pipeline import api
from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition import load as definitions
from rayddl.stages.drafting import DraftRequest
from rayddl.stages.kinds import outlook
from tests.raising import raises


def _image(seed: int, size: tuple[int, int], form: str = "PNG", mode: str = "RGB") -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(values).convert(mode).save(sink, form)
    return sink.getvalue()


def _photos(root: Path, per_class: int = 60, size: tuple[int, int] | None = None, mode: str = "RGB") -> Path:
    """Five folders of photos of mixed sizes and formats, or of one size."""
    for k in range(5 * per_class):
        form, ending = (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"))[k % 3]
        sides = size or ((48, 40), (90, 64), (64, 128))[k % 3]
        path = root / f"class {k % 5}" / f"{k:04d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_image(k, sides, form if mode == "RGB" else "PNG", mode))
    return root


def _stages(file: Path) -> dict[str, Any]:
    return {stage.name: stage.config for stage in definitions.load(file).stages}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rayddl.stages.runtime.machine.gpu_bytes", lambda: ())


def test_three_hundred_photos_get_settings_that_train(tmp_path: Path) -> None:
    """Mixed sizes get a size, a missing split a holdout, and an epoch many steps instead of two."""
    made = draft(str(_photos(tmp_path / "My Photos!")))
    assert made.file == Path("my-photos.yaml")
    definition, stages = definitions.load(made.file), _stages(made.file)
    assert definition.source.holdout == 0.2
    assert definition.source.size == 32
    seen = outlook(definition.source).source_summary
    assert (seen.train, seen.test, seen.classes) == (240, 60, 5)
    experts, match = stages["experts"], stages["distill"]
    assert seen.train / experts.batch >= 15
    assert experts.epochs * seen.train / experts.batch >= 500
    assert match.last_epoch <= experts.epochs
    assert 32 >> experts.net.depth == 4
    assert (match.trajectory, match.ipc) == ("convex", 1)
    assert "rayddl run my-photos.yaml" in made.file.read_text()
    assert re.fullmatch(
        r"\d+ (s|min): experts ~\d+ (s|min), distill ~\d+ (s|min), evaluate .*, report .*", made.takes
    )
    assert f"on this machine about {made.takes}." in made.file.read_text()


def test_many_images_are_matched_in_batches(tmp_path: Path) -> None:
    """With a step of all 75 images, matching would take too long on a processor."""
    photos = str(_photos(tmp_path / "photos"))
    assert _stages(draft(photos, "few.yaml", ipc=5).file)["distill"].batch_syn is None
    assert _stages(draft(photos, "many.yaml", ipc=15).file)["distill"].batch_syn == 64


def test_counts_sizes_and_formats_are_found(tmp_path: Path) -> None:
    """From listings and headers."""
    found = read_contents(str(_photos(tmp_path / "photos")))
    assert found.train == (48,) * 5
    assert found.test == 60
    assert set(found.formats) == {"JPEG", "PNG", "WEBP"}
    assert set(found.sides) == {(48, 40), (90, 64), (64, 128)}
    assert not found.grey
    assert found.side == 64


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    """Broken images are counted, and files of other kinds named, before anything runs."""
    photos = _photos(tmp_path / "photos", per_class=10)
    for name in ("0000.jpg", "0005.webp"):
        (photos / "class 0" / name).write_bytes(b"no image")
    (photos / "class 1" / "notes.txt").write_text("a list")
    found = read_contents(str(photos))
    assert found.unreadable == ("class 0/0000.jpg", "class 0/0005.webp")
    assert len(found.sides) == 38
    counts, looks, classes, broken, left_out = found.lines()
    assert counts.startswith("40 training images")
    assert classes == "classes: class 0, class 1, class 2, class 3, class 4"
    assert looks.endswith("(40 looked at)")
    assert broken == (
        "2 of 40 images looked at cannot be read: class 0/0000.jpg, class 0/0005.webp; a run leaves such images out, "
        "and ends with an error if they are more than 10 % of all (source.max_bad_fraction)"
    )
    assert "notes.txt" in left_out


def test_files_that_are_cut_off_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their headers are whole. Of a large sample, only as many images are decoded as take a moment."""
    photos = _photos(tmp_path / "photos", per_class=10)
    cut = ("class 0/0000.jpg", "class 4/0049.png")
    for name in cut:
        data = (photos / name).read_bytes()
        (photos / name).write_bytes(data[: len(data) // 2])
    assert read_contents(str(photos)).unreadable == cut
    monkeypatch.setattr(path_contents, "_DECODED", 10_000)
    assert read_contents(str(photos)).unreadable == cut[:1]


def test_a_plan_says_which_of_its_headers_cannot_be_read(tmp_path: Path) -> None:
    """With the share that the definition allows, as text and as JSON; a source of whole images has no such remark."""
    photos = _photos(tmp_path / "photos", per_class=10)
    plan = plans.make(definitions.load(draft(str(photos), "whole.yaml").file), "runs")
    assert "remarks" not in api.estimate(plan).to_json(plan)
    (photos / "class 0" / "0000.jpg").write_bytes(b"no image")
    plan = plans.make(definitions.load(draft(str(photos), "one.yaml").file), "runs")
    (remark,) = api.estimate(plan).to_json(plan)["remarks"]
    assert remark == (
        "source: 1 of 8 images looked at cannot be read; a run leaves such images out, and ends with an error if they "
        "are more than 5 % of all (source.max_bad_fraction)"
    )


def test_broken_images_are_allowed_for(tmp_path: Path) -> None:
    """With more of them than the default allows, the written definition says how many, so that it runs."""
    photos = _photos(tmp_path / "photos", per_class=10)
    whole = draft(str(photos), "whole.yaml")
    (photos / "class 0" / "0000.jpg").write_bytes(b"no image")
    few = draft(str(photos), "few.yaml")
    assert whole.contents.bad_fraction is None
    assert definitions.load(whole.file).source.max_bad_fraction == 0.01
    assert definitions.load(few.file).source.max_bad_fraction == 0.05  # twice 1 of 40, the training images
    assert "1 of 40 images looked at cannot be read" in few.file.read_text()


def test_few_held_out_images_are_warned_of(tmp_path: Path) -> None:
    """As the run will, before it is started."""
    (line,) = draft(str(_photos(tmp_path / "photos"))).warnings
    assert line.startswith("evaluate: 60 held-out images tell accuracies apart only if")


def test_a_folder_one_level_too_high_is_said(tmp_path: Path) -> None:
    """The class folders' own folder is named; a folder of images in each class folder is a usual layout."""
    photos = _photos(tmp_path / "all" / "photos", per_class=4)
    with raises("too-few-classes") as caught:
        read_contents(str(tmp_path / "all"))
    assert f"if these are the classes, give {photos}" in str(caught.value)
    for k in range(2):
        path = tmp_path / "all" / "others" / "images" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_image(k, (8, 8)))
    notes = read_contents(str(tmp_path / "all")).notes
    assert [note.partition(";")[0] for note in notes] == [
        "class photos: all images lie in 5 folders in it (class 0, class 1, class 2, class 3, class 4)"
    ]


def test_the_folder_of_one_class_is_said(tmp_path: Path) -> None:
    """Images lie in the folder itself: the one above has the classes."""
    photos = _photos(tmp_path / "photos", per_class=4)
    with raises("images-without-class") as caught:
        read_contents(str(photos / "class 0"))
    assert "4 images lie in" in str(caught.value)
    assert "give the one above it" in str(caught.value)


@pytest.mark.parametrize("name", ["mtt", "MCT", "match"])
def test_a_method_may_be_called_as_papers_do(tmp_path: Path, name: str) -> None:
    """MTT and MCT are made by matching."""
    assert draft(str(_photos(tmp_path / "photos", per_class=10)), method=name).method == "match"


def test_links_out_of_the_folder_are_followed_where_that_is_said(tmp_path: Path) -> None:
    """The written definition follows them too."""
    photos = _photos(tmp_path / "photos", per_class=4)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "more.png").write_bytes(_image(99, (8, 8)))
    (photos / "class 0" / "more.png").symlink_to(tmp_path / "elsewhere" / "more.png")
    with raises("link-leaves-root"):
        draft(str(photos), "refused.yaml")
    made = draft(str(photos), "followed.yaml", follow_links=True)
    assert made.contents.images + made.contents.test == 21
    assert definitions.load(made.file).source.follow_links


@pytest.mark.parametrize(("flags", "precision"), [("avx512f avx512_bf16", "bf16"), ("avx2", "fp32")])
def test_crops_use_bfloat16_where_it_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, precision: str
) -> None:
    """By the processor's instruction set, where there is no GPU."""
    monkeypatch.setattr("rayddl.stages.runtime.machine.cpu_text", lambda: f"flags : {flags}\ncpu MHz : 2000")
    photos = str(_photos(tmp_path / "photos", per_class=10))
    stages = _stages(draft(photos, "cpu.yaml", method="rded").file)
    assert (stages["teacher"].precision, stages["evaluate"].precision) == (precision, precision)
    monkeypatch.setattr("rayddl.stages.runtime.machine.gpu_bytes", lambda: (1 << 34,))
    assert _stages(draft(photos, "gpu.yaml", method="rded").file)["teacher"].precision == "fp32"


@pytest.mark.parametrize(("made", "epochs"), [(5, 300), (66, 300), (100, 200), (200, 100), (1000, 100)])
def test_students_of_large_sets_train_for_fewer_epochs_on_a_processor(
    tmp_path: Path, made: int, epochs: int
) -> None:
    """So that the folder of 40 classes takes minutes, not half an hour."""
    found = read_contents(str(_photos(tmp_path / "photos", per_class=4)))
    assert DraftRequest(found, gpu=False).student_epochs(made) == epochs
    assert DraftRequest(found, gpu=True).student_epochs(made) == 300


def test_images_of_one_small_size_are_not_resized_and_grey_ones_not_mirrored(tmp_path: Path) -> None:
    """A network fits the 28 pixels that are stored."""
    made = draft(str(_photos(tmp_path / "letters", size=(28, 28), mode="L")))
    assert definitions.load(made.file).source.size is None
    experts = _stages(made.file)["experts"]
    assert experts.augment == "none"
    assert experts.net.depth == 2


def test_large_images_get_crops(tmp_path: Path) -> None:
    """At 128 pixels RDED is taken, with no more images per class than its patches allow."""
    made = draft(str(_photos(tmp_path / "photos", per_class=20, size=(128, 128))), size=128)
    stages = _stages(made.file)
    teacher, rded = stages["teacher"], stages["distill"]
    assert rded.kind == "rded"
    assert rded.factor == 2
    assert rded.factor**2 * rded.ipc <= 16
    assert 80 / teacher.batch >= 8
    assert stages["evaluate"].observer == "teacher"


def test_a_held_out_split_of_any_usual_name_is_used(tmp_path: Path) -> None:
    """``validation`` is named; ``val`` is the default."""
    for split in ("train", "validation"):
        _photos(tmp_path / "photos" / split, per_class=4)
    assert read_contents(str(tmp_path / "photos")).source == {
        "name": "imagefolder",
        "root": str(tmp_path / "photos"),
        "test": "validation",
    }
    (tmp_path / "photos" / "validation").rename(tmp_path / "photos" / "val")
    assert set(read_contents(str(tmp_path / "photos")).source) == {"name", "root"}


def test_a_parquet_file_is_read_by_its_columns(tmp_path: Path) -> None:
    """Columns of other names are found by type; a sibling of the other split is used, another data set is not."""
    rows = {"img": [_image(k, (8, 8)) for k in range(10)], "fine_label": [k % 2 for k in range(10)]}
    for name in ("a-train.parquet", "b-test.parquet"):
        pq.write_table(pa.table(rows), tmp_path / name)
    found = read_contents(str(tmp_path / "a-train.parquet"))
    assert found.source["image_column"] == "img"
    assert found.source["label_column"] == "fine_label"
    assert found.source["holdout"] == 0.2
    assert (found.train, found.test) == ((4, 4), 2)
    pq.write_table(pa.table(rows), tmp_path / "a-test.parquet")
    found = read_contents(str(tmp_path / "a-train.parquet"))
    assert found.source["test"] == "a-test.parquet"
    assert (found.train, found.test) == ((5, 5), 10)


def test_shards_are_read(tmp_path: Path) -> None:
    """A folder of tar files is a ``webdataset``."""
    with tarfile.open(tmp_path / "photos-0000.tar", "w") as tar:
        for k in range(10):
            for ending, content in (("png", _image(k, (8, 8))), ("cls", str(k % 2).encode())):
                head = tarfile.TarInfo(f"{k}.{ending}")
                head.size = len(content)
                tar.addfile(head, io.BytesIO(content))
    found = read_contents(str(tmp_path))
    assert found.source == {"name": "webdataset", "root": str(tmp_path), "holdout": 0.2}
    assert (found.train, found.test) == ((4, 4), 2)


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    """Only with ``force``."""
    photos = str(_photos(tmp_path / "photos", per_class=4))
    Path("mine.yaml").write_text("mine")
    with raises("file-exists"):
        draft(photos, "mine.yaml")
    assert Path("mine.yaml").read_text() == "mine"
    draft(photos, "mine.yaml", force=True)
    assert yaml.safe_load(Path("mine.yaml").read_text())["name"] == "mine"


def test_more_images_than_a_class_has_are_refused(tmp_path: Path) -> None:
    """Before anything is written."""
    with raises("ipc-above-class"):
        draft(str(_photos(tmp_path / "photos", per_class=10)), ipc=9)
    assert not Path("photos.yaml").exists()


def test_nothing_to_look_at() -> None:
    """Neither a folder nor a file of images."""
    with raises("nothing-to-look-at"):
        read_contents("nowhere")


@pytest.mark.parametrize("folder", ["photos", "photos/train/cat", "photos/cat"])
def test_a_folder_without_images(tmp_path: Path, folder: str) -> None:
    """Says what to give, and names no setting of a definition that is not written yet."""
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "notes.txt").write_text("none here")
    with raises("nothing-to-look-at") as caught:
        read_contents(str(tmp_path / "photos"))
    assert "source." not in str(caught.value)


def test_a_method_is_a_kind_that_proposes_settings(tmp_path: Path) -> None:
    """It overrides the choice; others are refused with the names of those that can."""
    photos = str(_photos(tmp_path / "photos", per_class=10))
    assert draft(photos, "crops.yaml", method="rded").method == "rded"
    with raises("unknown-method"):
        draft(photos, "other.yaml", method="coreset")
    with raises("unknown-method") as caught:
        draft(photos, "other.yaml", method="RDED")
    assert "did you mean 'rded'?" in str(caught.value)
