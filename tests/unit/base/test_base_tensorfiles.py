"""Files that torch saved, read without running anything in them."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rayddl import tensorfiles


@pytest.mark.parametrize("mapped", [False, True])
def test_what_was_saved_comes_back(tmp_path: Path, mapped: bool) -> None:
    """Tensors in lists and dictionaries, from a path; mapped or read."""
    saved = {"a": [torch.arange(5), torch.ones(2, 3)], "b": 1}
    torch.save(saved, tmp_path / "f.pt")
    found = tensorfiles.load(str(tmp_path / "f.pt"), mapped=mapped)
    assert torch.equal(found["a"][0], saved["a"][0])
    assert torch.equal(found["a"][1], saved["a"][1])
    assert found["b"] == 1


class Owned:
    """Code that a file would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    """The reason is one line; the code has not run."""
    buffer = io.BytesIO()
    torch.save(Owned(tmp_path / "owned"), buffer)
    with pytest.raises(tensorfiles.NotTensors) as caught:
        tensorfiles.load(io.BytesIO(buffer.getvalue()))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", b"not a file of tensors", bytes(100), b"\x80\x02}q\x00."[:4]]
)
def test_damaged_files_are_refused(data: bytes) -> None:
    """Empty, cut off, or of another program: always the same error, never the reader's own."""
    with pytest.raises(tensorfiles.NotTensors):
        tensorfiles.load(io.BytesIO(data))


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_cut_off_files_are_refused(kept: float) -> None:
    """A download that broke off anywhere."""
    buffer = io.BytesIO()
    torch.save([torch.randn(100, 10)], buffer)
    data = buffer.getvalue()
    with pytest.raises(tensorfiles.NotTensors):
        tensorfiles.load(io.BytesIO(data[: int(kept * len(data))]))


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    """No matter of its content."""
    with pytest.raises(FileNotFoundError):
        tensorfiles.load(str(tmp_path / "none.pt"))


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _compressed(value: Any) -> bytes:
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(_saved(value))) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return out.getvalue()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: _saved([torch.zeros(1).expand(10**9)]), "4,000,000,000 bytes of values and 4 are stored"),
        (lambda: _saved({"a": torch.sparse_coo_tensor([[0]], [1.0], (10**9,))}), "sparse"),
        (lambda: _saved(torch.eye(3).to_sparse_csr()), "sparse"),
        (lambda: _saved(torch.empty(10**9, device="meta")), "without values"),
        (lambda: _saved(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)), "quantised"),
        (lambda: _compressed(torch.zeros(10**6)), "compressed"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_grow_are_refused(make: Callable[[], bytes], said: str) -> None:
    """A few bytes that stand for gigabytes, and tensors that later code cannot use, are named."""
    with pytest.raises(tensorfiles.NotTensors, match=said):
        tensorfiles.load(io.BytesIO(make()))


def test_views_are_taken() -> None:
    """Shared, transposed and sliced storage is what it is."""
    base = torch.arange(12.0).view(3, 4)
    found = tensorfiles.load(io.BytesIO(_saved([base.T, base[1:], base])))
    assert torch.equal(found[0], base.T)
    assert torch.equal(found[1], base[1:])
