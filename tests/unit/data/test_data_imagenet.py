"""ImageNet and its subsets: which class folders are taken, and what is said when some are missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from rayddl.data.config import SourceConfig
from rayddl.data.sources import registry as sources
from rayddl.data.sources.wnids import SUBSETS
from rayddl.errors import SourceError

Encode = Callable[..., bytes]
NETTE = SUBSETS["nette"]
# Positions among ImageNet-1K's sorted ids, as the trajectory-matching papers give them.
POSITIONS = {
    "nette": [0, 217, 482, 491, 497, 566, 569, 571, 574, 701],
    "woof": [155, 159, 162, 167, 182, 193, 207, 229, 258, 273],
    "meow": [281, 282, 283, 284, 285, 287, 289, 290, 291, 292],
    "squawk": [9, 22, 84, 88, 89, 96, 100, 130, 144, 145],
    "fruit": [943, 945, 948, 949, 950, 951, 952, 953, 954, 957],
    "yellow": [11, 72, 291, 309, 599, 779, 951, 954, 986, 987],
}


def config(root: Path, **settings: object) -> SourceConfig:
    """An ``imagenet`` source in ``root``."""
    return SourceConfig.model_validate({"name": "imagenet", "root": str(root), **settings})


def message(source: SourceConfig) -> str:
    """What the user reads when the source is refused, before any image is decoded."""
    with pytest.raises(SourceError) as caught:
        sources.fingerprint(source)
    return str(caught.value)


@pytest.fixture
def grow(tmp_path: Path, encode: Encode) -> Callable[[Iterable[str]], Path]:
    """Writes two training JPEGs and one held-out JPEG, wider than high, into each class folder."""

    def write(wnids: Iterable[str]) -> Path:
        for seed, wnid in enumerate(wnids):
            for name in (f"train/{wnid}/{wnid}_1.JPEG", f"train/{wnid}/{wnid}_2.JPEG", f"val/{wnid}/v.JPEG"):
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode(Image.new("RGB", (40, 30), (20 * seed, 0, 0)), form="JPEG"))
        return tmp_path

    return write


class TestTable:
    def test_every_subset_has_as_many_classes_as_it_says(self) -> None:
        """Ten or a hundred different ids each, in sorted order; the ten begin the hundred."""
        assert all(len(set(ids)) == (100 if name == "100" else 10) for name, ids in SUBSETS.items())
        assert all(list(ids) == sorted(ids) for ids in SUBSETS.values())
        assert set(SUBSETS["10"]) < set(SUBSETS["100"])

    def test_other_names_are_the_same_lists(self) -> None:
        """Later papers' names stand for the lists that came first."""
        for later, first in {"birds": "squawk", "cats": "meow", "fruits": "fruit"}.items():
            assert SUBSETS[later] == SUBSETS[first]

    @pytest.mark.parametrize("subset", POSITIONS)
    def test_ids_stand_at_the_published_positions(self, subset: str, shared_data: Path) -> None:
        """Where the sample of real images knows the id of a published position, the table has that id;
        and sorted ids lie in the order of the sorted positions.
        """
        rows = pq.read_table(shared_data / "imagenet-sample.parquet", columns=["label", "path"]).to_pylist()
        known = {row["label"]: row["path"].split("_")[0] for row in rows}
        pairs = dict(zip(POSITIONS[subset], SUBSETS[subset], strict=True))

        for position, wnid in pairs.items():
            below = [w for p, w in known.items() if p < position]
            above = [w for p, w in known.items() if p > position]
            assert known.get(position, wnid) == wnid
            assert max(below, default="") < wnid < min(above, default="o")


class TestLoading:
    def test_a_download_of_ten_classes(self, grow: Callable[..., Path]) -> None:
        """Ten class folders are enough; classes are ids in sorted order, the held-out split is val."""
        source = sources.load(config(grow(NETTE), subset="nette", size=16))

        assert source.train.classes == NETTE
        assert source.train.shape == (3, 16, 16)
        assert (source.train.counts(), source.test.counts()) == ((2,) * 10, (1,) * 10)
        assert source.test.images[:, 0].float().mean((1, 2)).diff().min() > 10

    def test_the_whole_gives_what_the_download_gives(self, grow: Callable[..., Path], tmp_path: Path) -> None:
        """A subset of more folders is the same source as a folder of the subset."""
        alone = sources.fingerprint(config(grow(NETTE), subset="nette"))
        grow(SUBSETS["woof"])

        assert sources.fingerprint(config(tmp_path, subset="nette")) == alone
        assert sources.fingerprint(config(tmp_path)) != alone

    def test_without_a_subset_every_class_folder_counts(self, grow: Callable[..., Path]) -> None:
        """Folders that are not named by an id are left alone."""
        root = grow(NETTE[:3])
        shutil.copytree(root / "train" / NETTE[0], root / "train" / "thumbnails")

        assert sources.load(config(root, size=8)).train.classes == NETTE[:3]

    def test_images_come_at_128_pixels(self, grow: Callable[..., Path]) -> None:
        """The size of the papers is the default; another one is another source."""
        root = grow(NETTE[:2])

        assert sources.load(config(root)).train.shape == (3, 128, 128)
        assert sources.fingerprint(config(root)) == sources.fingerprint(config(root, size=128))
        assert sources.fingerprint(config(root)) != sources.fingerprint(config(root, size=64))

    def test_the_centre_is_kept(self, grow: Callable[..., Path], encode: Encode) -> None:
        """The shorter side is scaled to the size, and what sticks out left and right is cut off."""
        root = grow(NETTE[:2])
        picture = np.zeros((32, 96, 3), np.uint8)
        picture[:, 32:64] = 200
        (root / "train" / NETTE[0] / f"{NETTE[0]}_1.JPEG").write_bytes(
            encode(Image.fromarray(picture), form="JPEG", quality=100)
        )

        first = sources.load(config(root, size=16)).train.images[0].float()

        assert abs(first[:, :, 2:-2] - 200).max() <= 2

    def test_numbers_name_subsets(self, tmp_path: Path) -> None:
        """``subset: 100`` is a number in YAML."""
        assert config(tmp_path, subset=100).subset == "100"


class TestRefusals:
    def test_missing_class_folders_are_named_in_one_error(self, grow: Callable[..., Path]) -> None:
        """What either split lacks, and what would help."""
        root = grow(NETTE)
        for name in (f"train/{NETTE[3]}", f"train/{NETTE[4]}", f"val/{NETTE[9]}"):
            shutil.rmtree(root / name)

        text = message(config(root, subset="nette"))

        assert text.startswith(
            f"source imagenet in {root}: the subset 'nette' is made of 10 class folders, and not all are there:\n"
            f"  {root}/train lacks 2: n03000684, n03028079\n"
            f"  {root}/val lacks 1: n03888257\nExpected:\n"
        )
        assert text.endswith("without it every class folder is taken.")

    def test_a_missing_split(self, grow: Callable[..., Path]) -> None:
        """What is there, and how it should look."""
        root = grow(NETTE)
        shutil.rmtree(root / "val")

        assert message(config(root)) == (
            f"source imagenet in {root}: there is no folder val. It holds: train. Expected:\n"
            f"  {root}/\n"
            "    train/\n      n01440764/  n01440764_18.JPEG ...\n      ...\n"
            "    val/\n      n01440764/  ILSVRC2012_val_00000293.JPEG ...\n      ...\n"
            "Set source.root, source.train or source.test. Without a held-out split, set source.holdout, for "
            "example --set source.holdout=0.2."
        )

    def test_held_out_images_that_were_never_sorted(self, grow: Callable[..., Path]) -> None:
        """The archive of held-out images unpacks flat."""
        root = grow(NETTE)
        (root / "flat").mkdir()
        shutil.copy(root / "val" / NETTE[0] / "v.JPEG", root / "flat" / "ILSVRC2012_val_00000001.JPEG")

        assert message(config(root, test="flat")).startswith(
            f"source imagenet: {root}/flat has no class folder named by a WordNet id such as n01440764. It "
            "holds: images that lie in no class folder. Expected:\n"
        )

    def test_an_empty_class_folder(self, grow: Callable[..., Path]) -> None:
        """It is named rather than dropped."""
        root = grow(NETTE)
        shutil.rmtree(root / "val" / NETTE[1])
        (root / "val" / NETTE[1]).mkdir()

        assert message(config(root, subset="nette")).startswith(
            f"source imagenet: no image in the class folders {NETTE[1]} of {root}/val. Looked for endings .png, "
        )

    def test_a_missing_root(self, tmp_path: Path) -> None:
        """The path and what was looked for in it."""
        assert message(config(tmp_path / "x")) == (
            f"source imagenet: there is no folder {tmp_path / 'x'}. Looked for train/<wnid>/<image> in it. "
            "Set source.root."
        )

    def test_a_subset_of_another_source(self) -> None:
        """Only ``imagenet`` has subsets."""
        with pytest.raises(ValidationError, match="subset belongs to name: imagenet, not cifar10"):
            SourceConfig.model_validate({"name": "cifar10", "subset": "nette"})


@pytest.mark.parametrize("subset", [None, "nette"])
def test_files_that_are_no_images_are_noted(
    grow: Callable[[Iterable[str]], Path], subset: str | None
) -> None:
    """Those of the class folders that are read, with a subset and without."""
    root = grow(NETTE)
    (root / "train" / NETTE[3] / "n.mp4").write_bytes(b"x")
    (root / "train" / "readme.txt").write_text("not in a class folder")

    (note,) = sources.load(config(root, size=8, subset=subset)).notes

    assert note.endswith(f": 1 with an ending of no image: {NETTE[3]}/n.mp4")
