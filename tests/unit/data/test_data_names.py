"""Names of millions of files stay in columns, from the listing of a folder to the listing of its images."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayddl import filenames
from rayddl.data.config import SourceConfig
from rayddl.data.sources import folders, known, registry, trees
from rayddl.data.sources.listing import Listing
from rayddl.data.sources.summary import source_summary
from rayddl.filenames import FileList, Names
from rayddl.storage import Folder

FILES = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4),
    st.integers(0, 2**60),
    max_size=20,
)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (filenames, trees):
        monkeypatch.setattr(module, "AT_ONCE", 3)


@given(FILES, st.data())
def test_a_list_has_the_order_of_sorted_strings(files: dict[str, int], data: st.DataObject) -> None:
    listed = FileList.of(files.items())
    expected = sorted(files.items())
    assert list(listed) == expected
    assert [pair for some in listed.batches() for pair in some] == expected
    assert all(len(some) <= 3 for some in listed.batches())
    assert len(listed) == len(expected)
    picked = data.draw(st.lists(st.booleans(), min_size=len(files), max_size=len(files)))
    some = listed.take(np.flatnonzero(np.array(picked, bool)))
    assert list(some) == [pair for pair, own in zip(expected, picked, strict=True) if own]


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), min_size=1, max_size=9), st.data()
)
def test_names_are_a_sequence(names: list[str], data: st.DataObject) -> None:
    column = Names.of(names)
    at = data.draw(st.integers(-len(names), len(names) - 1))
    part = data.draw(st.slices(len(names)).filter(lambda s: (s.step or 1) > 0))
    assert list(column) == names
    assert column[at] == names[at]
    assert list(column[part]) == names[part]
    assert (names[0] in column) is True


@given(FILES, FILES)
def test_the_digest_is_that_of_the_whole_json(one: dict[str, int], two: dict[str, int]) -> None:
    def identity(files: Any) -> dict[str, Any]:
        return {
            "size": None,
            "content": {"splits": {"train": files(one), "test": files(two)}, "classes": ("a", "ü")},
        }

    whole = json.dumps(identity(lambda files: [list(pair) for pair in sorted(files.items())]), sort_keys=True)
    assert registry._digest(identity(lambda files: FileList.of(files.items()))) == (
        hashlib.sha256(whole.encode()).hexdigest()
    )


TREE = {
    "b/2.png": 5, "b/1.PNG": 6, "b/sub/3.jpg": 7, "a/x.txt": 1, "a/.hidden.png": 2, "a/z.png": 3, ".git/b.png": 4,
    "loose.png": 8, "c/only.txt": 9,
}  # fmt: skip


def test_images_of_class_folders() -> None:
    images, others = trees.in_class_folders(FileList.of(TREE.items()))
    assert images.classes == ("a", "b")
    assert list(images) == [
        trees.ImageFile("a/z.png", "a", 3),
        trees.ImageFile("b/1.PNG", "b", 6),
        trees.ImageFile("b/2.png", "b", 5),
        trees.ImageFile("b/sub/3.jpg", "b", 7),
    ]
    assert images.counts().tolist() == [1, 3]
    assert list(others) == ["a/x.txt", "c/only.txt"]
    of_b = images.take(np.array([1, 3]))
    assert (of_b.classes, [file.name for file in of_b]) == (("b",), ["b/1.PNG", "b/sub/3.jpg"])
    only, _ = trees.in_class_folders(FileList.of(TREE.items()), {"a", "c"})
    assert [file.name for file in only] == ["a/z.png"]
    assert len(trees.in_class_folders(FileList.of([]))[0]) == 0


def test_names_shown_alike_are_found_in_a_folder_of_many(tmp_path: Path) -> None:
    (tmp_path / "plain.png").touch()
    (tmp_path / "caf\\xe9.png").touch()
    assert sorted(Folder(str(tmp_path)).files()) == ["caf\\xe9.png", "plain.png"]
    (tmp_path / "caf\udce9.png").touch()
    with pytest.raises(Exception, match="shown as"):
        Folder(str(tmp_path)).files()


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[SourceConfig, int]:
    """A source whose folders say that they have 20,000 images of ten classes."""
    for module in (filenames, trees):
        monkeypatch.setattr(module, "AT_ONCE", 512)
    count = 20_000
    for split in ("train", "val"):
        for label in range(10):
            (tmp_path / split / f"n{label:08d}").mkdir(parents=True)
    made = FileList.of((f"n{at % 10:08d}/n{at % 10:08d}_{at:08d}.JPEG", 100_000 + at) for at in range(count))
    monkeypatch.setattr(Folder, "listed", lambda self, within=None: made)
    return SourceConfig.model_validate({"name": "imagefolder", "root": str(tmp_path)}), 2 * count


def test_a_source_of_many_files_takes_few_bytes_of_python_for_each(many: tuple[SourceConfig, int]) -> None:
    """Python's strings, tuples and dictionaries took 300 bytes a file."""
    config, count = many

    def whole() -> Listing:
        registry._digest({"content": folders.identity(config)})
        return folders.listing(config, "train")

    whole()  # imports what it needs
    tracemalloc.start()
    try:
        listed = whole()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(listed) == count // 2
    assert peak < 40 * count + 2**20


@pytest.mark.parametrize("name", ["imagefolder", "imagenet"])
def test_a_command_lists_a_folder_once(
    many: tuple[SourceConfig, int], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """For its identity, both splits and the counts of a plan."""
    config = many[0].model_copy(update={"name": name})
    listed, asked = Folder.listed, list[str]()

    def counted(folder: Folder, within: Folder | None = None) -> FileList:
        asked.append(folder.name)
        return listed(folder, within)

    monkeypatch.setattr(Folder, "listed", counted)
    monkeypatch.setattr(Folder, "read", lambda *_: b"")
    with known.Known().used():
        registry.fingerprint(config)
        assert registry.listing(config, "train") is not None
        assert registry.listing(config, "test") is not None
        assert source_summary(config).train == many[1] // 2
    assert sorted(asked) == ["train", "val"]
