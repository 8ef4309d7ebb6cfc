"""Containers that are whole, with one part that is not what it should be; files cut off anywhere; odd names and links.

Run like :mod:`tests.fuzz.test_fuzz`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rayddl
from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels.decode import Encoded, decode
from rayddl.data.pixels.space import fit
from rayddl.data.sources import registry as sources
from rayddl.data.sources.path_contents import read_contents
from rayddl.methods.training import pretrained, softlabels
from rayddl.methods.training.observer import Observer
from rayddl.methods.trajectories import files as experts
from rayddl.storage import Folder
from tests.fuzz.test_fuzz import ANY, REPLACED, encoded, replaced, saved, shard, table
from tests.fuzz.watch import CHANGES, LONG, bounded, changed, fuzzed
from tests.unit.training.test_training_observer import observer
from tests.unit.training.test_training_soft import CLASSES, pixels, stored

pytestmark = [pytest.mark.timeout(0)] if LONG else []

Folders = pytest.TempPathFactory
SIZES = st.sampled_from([0, 1, 2, 255, 2**15, 2**24, 2**31 - 1, 2**31, 2**32 - 1])
NAMES = st.sampled_from(
    ["a", "0", "-1", "--1", "007", "1_1", "é", "e\u0301", "\u202eb", "\ufeff0", "a\nb", "٣", "x" * 200, ".", "a.b", " "]
) | st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)  # fmt: skip


def loaded(name: str, folder: Path) -> None:
    """Everything that reads a source, and what a person first asks about it."""
    config = SourceConfig.model_validate(
        {"name": name, "root": str(folder), "size": 8, "max_bad_fraction": 1}
    )
    with bounded(folder):
        listed = sources.listing(config)
        assert listed is not None
        for _ in listed.read(listed.bounds()[:-1]):
            pass
    with bounded(folder):
        sources.load(config)
    with bounded(folder):
        read_contents(str(folder)).lines()


# Tensors


OPS = st.sampled_from(
    [
        *(bytes([code]) for code in b"]}()(eaasutRbQ02N\x85\x86\x87"),
        *(b"h\x01", b"h\x02", b"q\x01", b"q\x02", b"K\x05", b"\x8a\x05\0\0\0\0\x20", b"J\xff\xff\xff\x7f"),
        *(b"X\x01\0\0\0a", b"X\xff\xff\xff\xffa", b"\x8d" + b"\xff" * 8),
        *(
            f"c{module}\n{name}\n".encode()
            for module, name in (
                ("collections", "OrderedDict"), ("__builtin__", "set"), ("__builtin__", "bytearray"), ("torch", "Size"),
                ("torch", "Tensor"), ("torch", "FloatStorage"), ("os", "system"), ("_codecs", "encode"),
                ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_qtensor"),
                ("torch._utils", "_rebuild_sparse_tensor"), ("torch.storage", "UntypedStorage"),
            )
        ),
    ]
)  # fmt: skip


def _zipped(data: bytes, parts: dict[str, bytes]) -> bytes:
    """A zip file with some members' contents replaced by their endings, and others added."""
    out, left = io.BytesIO(), dict(parts)
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            own = next((end for end in left if name.endswith(end)), None)
            new.writestr(name, old.read(name) if own is None else left.pop(own))
        for end, content in left.items():
            new.writestr(f"archive/{end}", content)
    return out.getvalue()


def read_pt(folder: Path, data: bytes) -> None:
    """What reads files of tensors: as a set's labels, and as a teacher's weights."""
    for name, content in (
        ("images_best.pt", saved(torch.rand(4, 1, 8, 8))),
        ("labels_best.pt", data),
        ("lr_best.pt", saved(torch.tensor(0.1))),
    ):
        (folder / name).write_bytes(content)
    with bounded(folder):
        rayddl.load_set(folder).pixels()
    with bounded(folder):
        pretrained.read_state(str(folder / "labels_best.pt"))


@fuzzed
@given(
    ops=st.lists(OPS, max_size=14),
    wrapped=st.sampled_from([b"", b"]q\x01(K\x01K\x02e", b"(ccollections\nOrderedDict\nq\x01)R"]),
    older=st.booleans(),
)
def test_pickles(tmp_path_factory: Folders, ops: list[bytes], wrapped: bytes, older: bool) -> None:
    """Any operations of pickles, in both of torch's layouts."""
    content = b"\x80\x02" + wrapped + b"".join(ops) + b"."
    data = _zipped(saved(torch.arange(4)), {"data.pkl": content})
    if older:
        head, values, tail = saved([], zipped=False).partition(b"\x80\x02]q\x00.")
        data = head + content + values + tail
    read_pt(tmp_path_factory.mktemp("pickles"), data)


@fuzzed
@given(
    changes=CHANGES,
    part=st.sampled_from(
        ["data.pkl", "data/0", "byteorder", ".format_version", ".storage_alignment", "version"]
    ),
    whole=st.sampled_from([None, b"", b"big", b"9" * 20, b"\xff" * 64]),
)
def test_members_of_tensors(
    tmp_path_factory: Folders, changes: list[Any], part: str, whole: bytes | None
) -> None:
    """A zip file that is whole, with one member that is not."""
    data = saved({"w": torch.arange(16.0), "b": [torch.ones(3)]})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        there = next((name for name in archive.namelist() if name.endswith(part)), None)
        old = b"" if there is None else archive.read(there)
    content = changed(old, changes) if whole is None else whole
    read_pt(tmp_path_factory.mktemp("members"), _zipped(data, {part: content}))


CUT: dict[str, tuple[str, Callable[[], bytes]]] = {
    "webdataset": ("train.tar", shard),
    "parquet": ("train.parquet", table),
}


@pytest.mark.parametrize("name", [*CUT, "pt"])
@fuzzed
@given(kept=st.floats(0, 1), added=st.sampled_from([b"", bytes(1024), b"PAR1", b"PK\x05\x06" + bytes(18)]))
def test_files_that_break_off(tmp_path_factory: Folders, name: str, kept: float, added: bytes) -> None:
    """At any byte, with or without an end that looks right."""
    folder = tmp_path_factory.mktemp("cut")
    if name == "pt":
        data = saved(torch.arange(4))
        read_pt(folder, data[: int(kept * len(data))] + added)
        return
    file, make = CUT[name]
    data = make()
    (folder / file).write_bytes(data[: int(kept * len(data))] + added)
    (folder / file.replace("train", "test")).write_bytes(data)
    loaded(name, folder)


# Images


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(draw: st.DrawFn, w: int, h: int, rest: bytes) -> bytes:
    depth, mode = draw(st.sampled_from([1, 8, 16])), draw(st.sampled_from([0, 2, 3, 6]))
    head = struct.pack(">IIBBBBB", w, h, depth, mode, 0, 0, draw(st.integers(0, 1)))
    text, profile = b"a\0\0" + zlib.compress(bytes(10**6)), b"a\0\0" + rest
    frames = struct.pack(">II", 2**31 - 1, 0)
    extra = {b"zTXt": text, b"iCCP": profile, b"acTL": frames, b"tRNS": rest}
    parts = [(kind, extra[kind]) for kind in draw(st.sets(st.sampled_from(sorted(extra))))]
    chunks = [(b"IHDR", head), *parts, (b"IDAT", zlib.compress(bytes(10**5))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _bmp(draw: st.DrawFn, w: int, h: int, rest: bytes) -> bytes:
    bits, packing = draw(st.sampled_from([1, 4, 8, 24, 32])), draw(st.sampled_from([0, 1, 3]))
    sides = (w & 0x7FFFFFFF, -(h & 0x7FFFFFFF))
    return (
        b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, *sides, 1, bits, packing, 0, 0, 0, w, 0)
        + rest
    )


def _gif(draw: st.DrawFn, w: int, h: int, rest: bytes) -> bytes:
    del draw
    sides = (w & 0xFFFF, h & 0xFFFF)
    head = b"GIF89a" + struct.pack("<HHBBB", *sides, 0xF7, 0, 0) + rest * 40
    return head + b"," + struct.pack("<HHHHB", 0, 0, *sides, 0) + b"\x08" + rest


def _ppm(draw: st.DrawFn, w: int, h: int, rest: bytes) -> bytes:
    magic = draw(st.sampled_from(["P1", "P2", "P3", "P4", "P5", "P6", "Pf", "PF", "Py"]))
    return f"{magic} {w} {h} {draw(SIZES)} ".encode() + rest


def _tiff(draw: st.DrawFn, w: int, h: int, rest: bytes) -> bytes:
    few = st.sampled_from([1, 3, 4, 65535])
    packing = st.sampled_from([1, 5, 7, 8, 32773, 34712])
    tags = [
        (256, 4, 1, w), (257, 4, 1, h), (258, 3, 1, draw(st.sampled_from([1, 8, 16, 32]))),
        (259, 3, 1, draw(packing)), (262, 3, 1, draw(st.integers(0, 8))), (273, 4, draw(SIZES), 8),
        (277, 3, 1, draw(few)), (278, 4, 1, draw(SIZES)), (279, 4, 1, draw(SIZES)),
    ]  # fmt: skip
    listed = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + listed + struct.pack("<I", draw(st.sampled_from([0, 8]))) + rest


def _webp(draw: st.DrawFn, w: int, h: int, rest: bytes) -> bytes:
    del draw
    size = ((w - 1) & 0x3FFF) | (((h - 1) & 0x3FFF) << 14)
    body = b"\x2f" + struct.pack("<I", size) + rest[:13].ljust(13, b"\0")
    return b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L" + struct.pack("<I", 18) + body


def _jpeg(draw: st.DrawFn, w: int, h: int, rest: bytes) -> bytes:
    del draw
    data = encoded("JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", h & 0xFFFF, w & 0xFFFF) + data[at + 4 :] + rest


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Images whose headers say sizes that their data do not have."""
    make = draw(st.sampled_from([_png, _bmp, _gif, _ppm, _tiff, _webp, _jpeg]))
    return make(draw, draw(SIZES), draw(SIZES), draw(st.binary(max_size=40)))


@fuzzed
@given(data=headers(), size=st.sampled_from([None, 8]))
def test_sizes_in_headers(tmp_path_factory: Folders, data: bytes, size: int | None) -> None:
    """Pixels, or the reason why there are none; 2**31 of them take no memory."""
    with bounded(tmp_path_factory.mktemp("headers")):
        (found,) = decode([[Encoded("x", 0, lambda: data)]], size)
        assert found.pixels if isinstance(found.pixels, str) else found.pixels.ndim in (2, 3)


# Sources


KINDS = [
    tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE,
]  # fmt: skip
LABEL_FILES = [b"0", b"-1", b'{"label": 1e999}', b'{"label": ' + b"9" * 5000 + b"}", b"[" * 9000]
PAX = ["size", "path", "GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size", "hdrcharset"]
MEMBER = st.tuples(
    NAMES | st.sampled_from(["../a.png", "/a.png", "a/../b.png", "._a.png"]),
    st.sampled_from([".png", ".cls", ".json", ".jpg.cls", ""]),
    st.sampled_from(KINDS),
    st.binary(max_size=20) | st.sampled_from(LABEL_FILES),
    st.dictionaries(st.sampled_from(PAX), NAMES | st.sampled_from(["1", "-5", "9" * 30]), max_size=2),
)


@fuzzed
@given(members=st.lists(MEMBER, min_size=1, max_size=4), names=st.none() | st.lists(NAMES, max_size=4))
def test_members_of_shards(tmp_path_factory: Folders, members: list[Any], names: list[str] | None) -> None:
    """Tar files that are whole, with members of any kind, name and header."""
    folder, sink = tmp_path_factory.mktemp("shards"), io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for k in range(4):
            for end, content in ((".png", encoded("PNG")), (".cls", b"01"[k % 2 : k % 2 + 1])):
                head = tarfile.TarInfo(f"{k}{end}")
                head.size = len(content)
                tar.addfile(head, io.BytesIO(content))
        for stem, end, kind, content, pax in members:
            head = tarfile.TarInfo(stem + end)
            head.type, head.linkname, head.pax_headers = kind, "/etc/passwd", pax
            head.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(head, io.BytesIO(content))
    (folder / "train.tar").write_bytes(sink.getvalue())
    (folder / "test.tar").write_bytes(shard())
    if names is not None:
        (folder / "classes.txt").write_text("\n".join(names), encoding="utf-8", errors="surrogatepass")
    loaded("webdataset", folder)


def _four(
    type_: pa.DataType, values: st.SearchStrategy[Any]
) -> st.SearchStrategy[tuple[pa.DataType, list[Any]]]:
    return st.tuples(st.just(type_), st.lists(values, min_size=4, max_size=4))


FEW = st.sampled_from([0, 1])
LABELS = st.one_of(
    _four(pa.int64(), st.integers(-3, 2**63 - 1) | FEW),
    _four(pa.uint64(), st.integers(0, 2**64 - 1) | FEW),
    _four(pa.int8(), st.integers(-128, 127)),
    _four(pa.string(), NAMES),
    _four(pa.dictionary(pa.int32(), pa.string()), NAMES),
    _four(pa.bool_(), st.booleans()),
    _four(pa.float64(), st.floats()),
    _four(pa.string(), st.none() | NAMES),
)
CELLS = st.none() | st.binary(max_size=20) | st.sampled_from(["whole", "padded"])
PATHS = (
    st.none() | NAMES | st.sampled_from(["/etc/passwd", "../x", "train.parquet", "", ".", "pipe", "device"])
)


@fuzzed
@given(
    labels=LABELS,
    cells=st.lists(st.tuples(CELLS, PATHS), min_size=4, max_size=4),
    struct_=st.booleans(),
    classes=st.none() | st.lists(NAMES, max_size=3),
    features=st.none() | ANY,
)
def test_rows_of_tables(
    tmp_path_factory: Folders,
    labels: tuple[pa.DataType, list[Any]],
    cells: list[tuple[Any, str | None]],
    struct_: bool,
    classes: list[str] | None,
    features: Any,
) -> None:
    """Parquet files that are whole, with labels of any type, and cells and names of classes of any value."""
    folder = tmp_path_factory.mktemp("rows")
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to("/dev/zero")
    made = {"whole": encoded("PNG"), "padded": encoded("PNG") + bytes(2**16)}
    data = [made.get(cell, cell) if isinstance(cell, str) else cell for cell, _ in cells]
    images: Any = pa.array(data, pa.binary())
    if struct_:
        paths = [path for _, path in cells]
        images = pa.StructArray.from_arrays([images, pa.array(paths, pa.string())], ["bytes", "path"])
    metadata = {} if classes is None else {"classes": "\n".join(classes)}
    if features is not None:
        metadata["huggingface"] = json.dumps({"info": {"features": {"label": features}}})
    rows = pa.table({"image": images, "label": pa.array(labels[1], labels[0])})
    pq.write_table(rows.replace_schema_metadata(metadata), folder / "train.parquet", row_group_size=3)
    (folder / "test.parquet").write_bytes(table())
    loaded("parquet", folder)


@fuzzed
@given(
    entries=st.lists(
        st.tuples(
            NAMES,
            NAMES,
            st.sampled_from(["image", "text", "empty", "pipe", "outside", "circle", "device", "raw"]),
        ),
        max_size=6,
    )
)
def test_trees(tmp_path_factory: Folders, entries: list[tuple[str, str, str]]) -> None:
    """Folders of classes with files, links and pipes of any name."""
    folder = tmp_path_factory.mktemp("trees")
    for split in ("train", "val"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / "0.png").write_bytes(encoded("PNG"))
    for class_, name, kind in entries:
        place = folder / "train" / class_
        path = os.fsencode(place / f"{name}.png") + (b"\xff.png" if kind == "raw" else b"")
        try:
            place.mkdir(exist_ok=True)
            if kind == "pipe":
                os.mkfifo(path)
            elif kind in ("outside", "circle", "device"):
                os.symlink({"outside": "/etc/passwd", "circle": "..", "device": "/dev/zero"}[kind], path)
            else:
                with open(path, "xb") as file:
                    file.write({"text": b"text", "empty": b""}.get(kind, encoded("PNG")))
        except OSError:
            continue  # a name that this file system does not take
    loaded("imagefolder", folder)


# Sets and what belongs to them


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: Folders) -> Path:
    """A set with stored soft labels and an observer, and an expert's file."""
    out, monkeypatch = tmp_path_factory.mktemp("sealed"), pytest.MonkeyPatch()
    images = pixels()
    labels = torch.arange(len(images)) % len(CLASSES)
    DistilledSet(images, labels, 0.1, CLASSES, fit("normalise", images), {}).save(Folder(str(out)))
    stored(Folder(str(out / "labels")), images, monkeypatch)
    monkeypatch.undo()
    observer().save(Folder(str(out / "observer")))
    header = experts.Header((4, 2), (0, 3), {})
    snapshots = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    data = experts.dump_snapshots(snapshots, header, torch.float32, torch.zeros(4, 5))
    (out / "expert").write_bytes(data)
    return out


def _opened(out: Path) -> list[Callable[[], object]]:
    labels, whole = Folder(str(out / "labels")), Folder(str(out))
    return [
        lambda: rayddl.load_set(out).pixels(),
        lambda: softlabels.StoredLabels(labels)(0),
        lambda: [content() for content in softlabels.StoredLabels(labels).contents().values()],
        lambda: (
            Observer.load(Folder(str(out / "observer")))
            .pruned(("owl", "cat"))
            .module(torch.zeros(1, 3, 8, 8))
        ),
        *(
            lambda kind=kind: experts.open_trajectory(whole, "expert", kind).at(1)
            for kind in ("snapshots", "convex")
        ),
    ]


def _remade(data: bytes, replacements: list[tuple[list[int], Any]]) -> bytes:
    """A safetensors file with values of its header replaced."""
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    for path, new in replacements:
        head = replaced(head, path, new)
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


DOCUMENTS = {
    "labels/labels-0000.safetensors": "labels/labels.json",
    "observer/observer.safetensors": "observer/observer.json",
    "set.safetensors": "set.json",
}


@pytest.mark.parametrize("name", [*DOCUMENTS, "expert", "labels/labels.json", "observer/observer.json"])
@fuzzed
@given(replacements=REPLACED, changes=CHANGES, raw=st.booleans())
def test_sealed_files(
    sealed: Path, name: str, replacements: list[Any], changes: list[Any], raw: bool
) -> None:
    """Headers and bytes of files of tensors, with the hash that a hostile maker gives them; documents beside them."""
    file = sealed / name
    document = sealed / DOCUMENTS.get(name, name)
    before, described = file.read_bytes(), document.read_bytes()
    if name.endswith(".json"):
        value = json.loads(before)
        for path, new in replacements:
            value = replaced(value, path, new)
        data = json.dumps(value).encode()
    else:
        data = changed(before, changes) if raw else _remade(before, replacements)
    try:
        file.write_bytes(data)
        if name in DOCUMENTS:
            meta = json.loads(described)
            meta["files"][file.name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            document.write_text(json.dumps(meta))
        for look_at in _opened(sealed):
            with bounded(sealed):
                look_at()
    finally:
        file.write_bytes(before)
        document.write_bytes(described)


@fuzzed
@given(value=ANY, raw=st.binary(max_size=30), ending=st.sampled_from([".json", ".txt"]), bare=st.booleans())
def test_names_of_outputs(tmp_path_factory: Folders, value: Any, raw: bytes, ending: str, bare: bool) -> None:
    """Files of class names of a teacher."""
    folder = tmp_path_factory.mktemp("names")
    (folder / f"n{ending}").write_bytes(raw if bare else json.dumps(value).encode())
    with bounded(folder):
        pretrained.named(pretrained.read_names(str(folder / f"n{ending}")), ["a"])


# Definitions as text


TOKENS = st.sampled_from(
    [
        *"{}[],'\"|>#~$\t\0\ufeff\u2028é",
        *(
            "\n",
            "  ",
            "- ",
            ": ",
            "? ",
            "&a ",
            "*a",
            "<<: ",
            "%YAML 1.1\n",
            "---\n",
            "...\n",
            "${HOME}",
            "${",
        ),
        *(
            "!!binary ",
            "!!python/object:os.system ",
            "!!int ",
            "!!set ",
            "1e999",
            "0x1f",
            "1:30",
            "2001-01-01",
            ".nan",
        ),
        *("name", "source", "stages", "extends", "kind", "experts"),
    ]
)


@fuzzed
@given(before=st.lists(TOKENS, max_size=12), after=st.lists(TOKENS, max_size=12), doubled=st.integers(0, 30))
def test_text_of_definitions(
    tmp_path_factory: Folders, before: list[str], after: list[str], doubled: int
) -> None:
    """Tags, anchors, documents and quotes anywhere, and aliases that double."""
    folder = tmp_path_factory.mktemp("text")
    lists = "".join(f"x{k}: &x{k} [{f'*x{k - 1}, *x{k - 1}' if k else 'a'}]\n" for k in range(doubled))
    whole = "name: x\nsource: {name: digits}\nstages:\n  e: {kind: experts, count: 1, epochs: 1}\n"
    text = "".join(before) + lists + whole + "".join(after)
    (folder / "d.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    with bounded(folder):
        rayddl.plan(folder / "d.yaml", out=folder / "runs")
