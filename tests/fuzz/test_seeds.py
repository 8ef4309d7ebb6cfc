"""The whole files that guided fuzzing begins with, and those that once failed, are read as promised."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.formats import FORMATS, SEEDS, kept
from tests.fuzz.guided import reader


@pytest.mark.parametrize("name", FORMATS)
def test_files_are_read_as_promised(name: str) -> None:
    """A value or an error, within bounds."""
    test = reader(FORMATS[name].read)
    for data in [*FORMATS[name].files(), *kept(name)]:
        test(data)


def test_seeds_are_of_known_formats() -> None:
    """Else they would never be read."""
    assert {path.name for path in SEEDS.glob("*")} <= {*FORMATS}


def test_a_broken_promise_fails(tmp_path: Path) -> None:
    """An error of another type, and a file elsewhere."""

    def raising(folder: Path, data: bytes) -> None:
        raise KeyError(data)

    def writing(folder: Path, data: bytes) -> None:
        from tests.fuzz.watch import bounded

        with bounded(folder):
            (tmp_path / "x").write_bytes(data)

    with pytest.raises(KeyError):
        reader(raising)(b"")
    with pytest.raises(AssertionError):
        reader(writing)(b"")
