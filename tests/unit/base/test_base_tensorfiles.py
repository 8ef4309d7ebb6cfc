"""Files that torch saved, read without running anything in them."""

import io
import pickle
import re
import struct
import time
import zipfile
from collections import Counter, OrderedDict
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


def _old(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _huge(numbers: bytes, before: bytes = b"K\x06N") -> bytes:
    return _old(torch.zeros(2, 3)).replace(before, numbers)


_LARGE = b"\x8a\x05" + struct.pack("<q", 2**31)[:5]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: _huge(_LARGE + b"N"), "2,147,483,648 values in all, and the file has"),
        (lambda: _huge(b"J\xff\xff\xff\x7fN"), "2,147,483,647 values in all"),
        (lambda: _huge(_LARGE + b"q\x400h\x40N"), "keeps a number for later use"),
        # The number stays below, and is kept as if it were the dictionary.
        (lambda: _huge(b"K\x06N" + _LARGE + b"(uq\x40"), "adds nothing to a list or dictionary"),
        (lambda: _huge(b"K\x06N" + _LARGE + b"(eq\x40"), "adds nothing to a list or dictionary"),
        (
            lambda: _old(torch.zeros(2, 3)).replace(b"FloatStorage", b"OtherStorage"),
            "otherwise than torch does",
        ),
        (
            lambda: re.sub(rb"K\x06Nt(q.)Q", b"K\x06Nt\\1NQ", _old(torch.zeros(2, 3))),
            "otherwise than torch does",
        ),
        (lambda: _old([torch.zeros(300)] * 2).replace(b"M,\x01N", b"M\xff\xffN"), "65,535 values in all"),
    ],
)
def test_storages_are_compared_with_the_file_before_they_are_allocated(
    make: Callable[[], bytes], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older layout allocates what it declares, of 370 bytes gigabytes."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch reads it"))
    with pytest.raises(tensorfiles.NotTensors, match=said):
        tensorfiles.load(io.BytesIO(make()))


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.bool, torch.float16, torch.float32, torch.int64, torch.complex128, torch.uint16],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_no_storage_is_larger_than_its_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, mapped: bool
) -> None:
    """What follows in the file, or in memory, is no part of it."""
    whole = _saved([torch.zeros(100, dtype=dtype), torch.ones(100, dtype=dtype)])
    path = tmp_path / "f.pt"
    path.write_bytes(_edited(whole, lambda n, d: [(n, d)]))
    assert [each.dtype for each in tensorfiles.load(str(path), mapped=mapped)] == [dtype] * 2
    path.write_bytes(_edited(whole, lambda n, d: [(n, d[:-1] if n.endswith("data/0") else d)]))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch reads it"))
    bytes_ = 100 * dtype.itemsize
    with pytest.raises(
        tensorfiles.NotTensors, match=f"has {bytes_:,} bytes of values and {bytes_ - 1:,} are stored"
    ):
        tensorfiles.load(str(path), mapped=mapped)


@pytest.mark.parametrize("save", [_saved, _old])
def test_many_tensors_of_both_layouts_are_taken(save: Callable[[Any], bytes]) -> None:
    """Small ones of a byte each, of one storage or of their own, and whole numbers that are no sizes."""
    base = torch.arange(100, dtype=torch.uint8)
    own = [torch.full((3,), k, dtype=torch.int16) for k in range(300)]
    found = tensorfiles.load(io.BytesIO(save({"views": [*base.split(7)], "own": own, "seen": 10**12})))
    assert torch.equal(torch.cat(found["views"]), base)
    assert all(torch.equal(one, other) for one, other in zip(found["own"], own, strict=True))
    assert found["seen"] == 10**12


@pytest.mark.parametrize("protocol", [0, 4, 5])
def test_instructions_that_torch_does_not_write_are_named(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of other protocols, before torch reads the file."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch reads it"))
    for value in (Owned(tmp_path / "owned"), 1 << 3000):
        pickled = pickle.dumps(value, protocol)
        archive = _edited(
            _saved(torch.zeros(2)), lambda n, d, p=pickled: [(n, p if n.endswith("data.pkl") else d)]
        )
        said = "object of io.open" if protocol == 0 and isinstance(value, Owned) else "it has the instruction"
        for data in (pickled, archive):
            with pytest.raises(tensorfiles.NotTensors, match=said):
                tensorfiles.load(io.BytesIO(data))


def test_views_are_taken() -> None:
    """Shared, transposed and sliced storage is what it is."""
    base = torch.arange(12.0).view(3, 4)
    found = tensorfiles.load(io.BytesIO(_saved([base.T, base[1:], base])))
    assert torch.equal(found[0], base.T)
    assert torch.equal(found[1], base[1:])


def _edited(data: bytes, change: Callable[[str, bytes], list[tuple[str, bytes]]]) -> bytes:
    """A file of torch's with each member replaced by what ``change`` makes of it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            for made, content in change(name, old.read(name)):
                new.writestr(made, content)
    return out.getvalue()


def _pickled(content: bytes) -> bytes:
    """A file of torch's whose values are the pickle ``content``."""
    return _edited(
        _saved(torch.ones(2)), lambda name, old: [(name, content if name.endswith("data.pkl") else old)]
    )


def _older(content: bytes) -> bytes:
    """The same in torch's older layout."""
    out = io.BytesIO()
    torch.save([], out, _use_new_zipfile_serialization=False)
    head, values, tail = out.getvalue().partition(b"\x80\x02]q\x00.")
    return head + content + values + tail


NUMBER = b"\x8a\x05" + (10**11).to_bytes(5, "little")
"""100 G as a pickle's number."""
LONG_LIST = b"]q\x01(" + b"K\x00" * 50_000 + b"e"


@pytest.mark.parametrize("layout", [_pickled, _older])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"c__builtin__\nbytearray\n" + NUMBER + b"\x85R.", "an object of __builtin__.bytearray"),
        (b"ctorch\nSize\n(K\x01K\x02t\x85R.", "an object of torch.Size"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.", "an object of _codecs.encode"),
        (LONG_LIST + b"c__builtin__\nset\nq\x02h\x01\x85R.", "made of another one"),
        (LONG_LIST + b"c__builtin__\nset\nq\x02]\x85Rh\x02h\x01\x85R.", "made of another one"),
        (LONG_LIST + b"ccollections\nOrderedDict\nh\x01\x85R.", "made of another one"),
    ],
)
def test_calls_that_make_much_of_little_are_refused(
    layout: Callable[[bytes], bytes], content: bytes, said: str
) -> None:
    """Before they are made: none of these is called."""
    with pytest.raises(tensorfiles.NotTensors, match=said):
        tensorfiles.load(io.BytesIO(layout(b"\x80\x02" + content)))


def test_containers_of_checkpoints_are_read() -> None:
    """As optimisers' schedules have them."""
    saved = {"a": OrderedDict(w=torch.ones(2)), "milestones": Counter([3, 3, 5]), "seen": {1, 2}}
    found = tensorfiles.load(io.BytesIO(_saved(saved)))
    assert (found["milestones"], found["seen"]) == (saved["milestones"], saved["seen"])
    assert torch.equal(found["a"]["w"], torch.ones(2))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        # A list of itself, and lists that hold the one before twice: 2**60 in all.
        (b"\x80\x02]q\x00h\x00a.", None),
        (
            b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(1, 60)) + b".",
            None,
        ),
        (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "more than 64 levels"),
    ],
)
def test_lists_in_lists_are_passed_once(content: bytes, said: str | None) -> None:
    """However often, and however deep, they hold each other."""
    began = time.process_time()
    if said is None:
        assert isinstance(tensorfiles.load(io.BytesIO(_pickled(content))), list)
    else:
        with pytest.raises(tensorfiles.NotTensors, match=said):
            tensorfiles.load(io.BytesIO(_pickled(content)))
    assert time.process_time() - began < 5


def test_values_shared_by_many_tensors_are_refused() -> None:
    """A thousand views of one megabyte would be a gigabyte once they are stacked."""
    base = torch.zeros(2**18)
    with pytest.raises(tensorfiles.NotTensors, match="bytes of values in all"):
        tensorfiles.load(io.BytesIO(_saved([base.view(2**18) for _ in range(1000)])))


def test_a_list_that_is_there_many_times_is_counted_each_time() -> None:
    """An expert of 300,000 snapshots that are one list is gigabytes once they are stacked."""
    snapshot = [torch.zeros(100, 30), torch.zeros(2)]
    with pytest.raises(tensorfiles.NotTensors, match="3,602,400,000 bytes of values in all"):
        tensorfiles.load(io.BytesIO(_saved([[snapshot] * 300_000])))
    assert len(tensorfiles.load(io.BytesIO(_saved([snapshot, snapshot, snapshot])))) == 3


def test_members_of_one_name_are_refused() -> None:
    """One reader would check the first, and another read the second."""
    hidden = b"\x80\x02c__builtin__\nbytearray\n" + NUMBER + b"\x85R."

    def change(name: str, old: bytes) -> list[tuple[str, bytes]]:
        return (
            [(name.replace("data.pkl", "DATA.PKL"), hidden), (name, old)]
            if "data.pkl" in name
            else [(name, old)]
        )

    with pytest.raises(tensorfiles.NotTensors, match="overlap or have one name"):
        tensorfiles.load(io.BytesIO(_edited(_saved(torch.ones(2)), change)))


def test_sizes_that_the_file_does_not_have_are_refused() -> None:
    """A member of a gigabyte in a file of a kilobyte."""
    data = bytearray(_saved(torch.ones(2)))
    at = data.index(b"PK\x01\x02")
    data[at + 20 : at + 28] = struct.pack("<II", 2**30, 2**30)
    with pytest.raises(tensorfiles.NotTensors, match="overlap or have one name"):
        tensorfiles.load(io.BytesIO(bytes(data)))
