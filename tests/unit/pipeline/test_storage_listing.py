"""Listings of folders: what an artifact's manifest is made from."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

from rayddl.storage import Folder


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "file://{}/"])
def test_files(tmp_path: Path, form: str) -> None:
    """Every file in the folder and below, with its bytes, sorted, however the folder is written."""
    folder = Folder(form.format(tmp_path / "x"))
    folder.write("b.bin", b"123")
    folder.write("a/deep/er.txt", b"12345")
    (tmp_path / "x" / "c.tmp-0123abcd").write_text("unfinished")
    (tmp_path / "x" / "empty").mkdir()

    assert list(folder.files().items()) == [("a/deep/er.txt", 5), ("b.bin", 3)]


def test_no_folder(tmp_path: Path) -> None:
    """A folder that is not there has no files."""
    assert Folder(str(tmp_path / "none")).files() == {}


def test_modified(tmp_path: Path) -> None:
    """The time of a file is in UTC; a file that is not there has none."""
    before = datetime.now(timezone.utc).replace(microsecond=0)
    folder = Folder(str(tmp_path))
    folder.write("x", b"")
    written = folder.modified("x")

    assert written is not None
    assert written.tzinfo is timezone.utc
    assert written >= before
    assert folder.modified("y") is None
