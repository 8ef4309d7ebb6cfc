"""What other code made: sets to import, teachers' weights, buffers of experts, Tiny-ImageNet's text files; and settings
of sources that do not fit the files.

Run like :mod:`tests.fuzz.test_fuzz`.
"""

from __future__ import annotations

import io
import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from rayddl.data.config import SourceConfig
from rayddl.data.formats import forms, importing
from rayddl.data.pixels.space import fit
from rayddl.data.sources import registry as sources
from rayddl.methods.training import pretrained
from rayddl.methods.trajectories import buffers
from rayddl.methods.trajectories import files as experts
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.storage import Folder
from tests.fuzz.test_fuzz import ANY, REPLACED, encoded, replaced, saved, shard, table
from tests.fuzz.test_members import NAMES, SIZES
from tests.fuzz.watch import CHANGES, LONG, bounded, changed, fuzzed

pytestmark = [pytest.mark.timeout(0)] if LONG else []

Folders = pytest.TempPathFactory
TYPES = st.sampled_from(
    [
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.int8,
        torch.uint8, torch.uint16, torch.uint64, torch.bool, torch.complex64,
    ]
)  # fmt: skip
VALUES = st.sampled_from([0.0, 1.0, -1.0, 0.5, 255.0, 1e30, float("nan"), float("inf"), 3e9])
HOME = importing.TargetSource(
    ("a", "b", "10", "2"), (1, 8, 8), fit("normalise", torch.arange(128).reshape(2, 1, 8, 8).to(torch.uint8))
)


@st.composite
def tensors(draw: st.DrawFn, usual: tuple[int, ...]) -> torch.Tensor:
    """Tensors of any type, shape and layout; half of them of the ``usual`` shape."""
    shape = draw(st.just(usual) | st.lists(st.integers(0, 9), max_size=5).map(tuple))
    made = torch.full(shape, draw(VALUES)).to(draw(TYPES))
    if made.ndim > 1 and draw(st.booleans()):
        made = made.transpose(0, 1) if draw(st.booleans()) else made[:1].expand(shape)
    return made.requires_grad_() if draw(st.booleans()) and made.is_floating_point() else made


# Sets


@fuzzed
@given(
    images=tensors((4, 1, 8, 8)),
    labels=tensors((4,)) | tensors((4, 4)) | st.lists(st.integers(-1, 9), max_size=5).map(torch.tensor),
    rate=st.none() | tensors(()),
    wrapped=st.booleans(),
    layout=st.sampled_from(["best", "900", "list", "named"]),
)
def test_tensors_of_pairs(
    tmp_path_factory: Folders,
    images: torch.Tensor,
    labels: torch.Tensor,
    rate: Any,
    wrapped: bool,
    layout: str,
) -> None:
    """Whole files of tensors that are no images, labels or rates."""
    folder = tmp_path_factory.mktemp("pairs")
    said: Any = [labels] if wrapped else labels
    one = {
        "list": [images, said],
        "named": {"images": images, "labels": said},
    }.get(layout)
    if one is None:
        (folder / f"images_{layout}.pt").write_bytes(saved(images))
        (folder / f"labels_{layout}.pt").write_bytes(saved(said))
    else:
        (folder / "data.pt").write_bytes(saved(one))
    if rate is not None:
        (folder / "lr_best.pt").write_bytes(saved(rate))
    _imported(folder)


def _imported(folder: Path) -> None:
    with bounded(folder):
        importing.bring(Folder(str(folder)), forms.form_of(Folder(str(folder))), HOME)


def _picture() -> bytes:
    sink = io.BytesIO()
    Image.new("L", (8, 8), 9).save(sink, "PNG")
    return sink.getvalue()


PICTURE = _picture()
TEXT = ["a", "b", "2", "../x", "/etc/passwd", "t.parquet"]
PLAIN: dict[pa.DataType, list[Any]] = {
    pa.binary(): [b"", b"\xff", encoded("PNG"), PICTURE, None],
    pa.large_binary(): [b"", PICTURE],
    pa.binary(4): [b"abcd"],
    pa.string(): TEXT,
    pa.int64(): [0, 1, 2, 3],
    pa.float64(): [0, 1],
    pa.bool_(): [False, True],
    pa.null(): [None],
}
"""Values of Arrow's types of bytes, text and numbers."""


def cell_types() -> st.SearchStrategy[pa.DataType]:
    """Arrow's types of bytes, text, numbers and rows of them."""
    return st.recursive(
        st.sampled_from([*PLAIN]),
        lambda inner: st.one_of(
            inner.map(pa.list_),
            inner.map(pa.large_list),
            inner.map(lambda each: pa.list_(each, 2)),
            inner.map(lambda each: pa.dictionary(pa.int32(), each)),
            inner.map(lambda each: pa.map_(pa.string(), each)),
            st.tuples(inner, inner).map(lambda two: pa.struct([("bytes", two[0]), ("path", two[1])])),
            inner.map(lambda each: pa.struct([("bytes", each)])),
        ),
        max_leaves=3,
    )


def value_of(kind: pa.DataType, few: st.DataObject) -> Any:
    """A value, or none, that fits an Arrow type."""
    types = pa.types
    if few.draw(st.integers(0, 5)) == 0 or types.is_null(kind):
        return None
    if types.is_struct(kind):
        made: Any = {field.name: value_of(field.type, few) for field in kind}
    elif types.is_map(kind):
        made = [("k", value_of(kind.item_type, few))]
    elif types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind):
        count = 2 if types.is_fixed_size_list(kind) else few.draw(st.integers(0, 4))
        made = [value_of(kind.value_type, few) for _ in range(count)]
    elif types.is_dictionary(kind):
        made = value_of(kind.value_type, few)
    else:
        made = few.draw(st.sampled_from(PLAIN[kind]))
    return made


PATHS = cell_types().map(lambda each: pa.struct([("bytes", pa.binary()), ("path", each)]))
COLUMNS = st.fixed_dictionaries(
    {}, optional={"image": cell_types() | PATHS, "label": cell_types(), "soft_label": cell_types()}
)


def _written(where: Path, few: st.DataObject, columns: dict[str, pa.DataType], **usual: Any) -> bool:
    """A Parquet file with the ``usual`` columns, some of other types. False for types that Arrow does not write."""
    made = {}
    try:
        for name in {**usual, **columns}:
            if name in columns:
                values = [value_of(columns[name], few) for _ in range(8)]
                made[name] = pa.array(values, columns[name])
            else:
                made[name] = usual[name]
        metadata = few.draw(st.sampled_from([{}, {"classes": "a\nb"}, {"classes": "b\na\n10\n2"}]))
        pq.write_table(pa.table(made).replace_schema_metadata(metadata), where, row_group_size=3)
    except (pa.ArrowException, NotImplementedError, TypeError, ValueError):
        return False
    return True


@fuzzed
@given(
    columns=COLUMNS,
    labels=st.sampled_from([[0, 1, 2, 3] * 2, ["a", "b", "10", "2"] * 2, [-1, 0, 9, 1] * 2]),
    few=st.data(),
)
def test_tables_of_sets(
    tmp_path_factory: Folders, columns: dict[str, pa.DataType], labels: list[Any], few: st.DataObject
) -> None:
    """A Parquet file with columns of any type, as a set and as a source."""
    folder = tmp_path_factory.mktemp("tables")
    soft = few.draw(st.none() | st.lists(st.lists(VALUES, min_size=2, max_size=4), min_size=8, max_size=8))
    usual = {"image": [PICTURE] * 8, "label": labels, **({} if soft is None else {"soft_label": soft})}
    if not _written(folder / "t.parquet", few, columns, **usual):
        return
    _imported(folder)
    config = SourceConfig.model_validate(
        {"name": "parquet", "root": str(folder), "holdout": 0.5, "size": 8, "max_bad_fraction": 1}
    )
    with bounded(folder):
        listed = sources.listing(config)
        assert listed is not None
        for blob in listed.read(listed.bounds()[:-1]):
            assert isinstance(blob, bytes | Exception)
    with bounded(folder):
        sources.load(config)


@fuzzed
@given(
    entries=st.lists(st.tuples(NAMES, st.sampled_from(["whole", "text", "empty", "large"])), max_size=5),
    names=st.none() | st.lists(NAMES, max_size=5),
)
def test_folders_of_sets(
    tmp_path_factory: Folders, entries: list[tuple[str, str]], names: list[str] | None
) -> None:
    """Images by class, with a list of names of classes."""
    folder = tmp_path_factory.mktemp("folders")
    kinds = {"whole": PICTURE, "text": b"text", "empty": b"", "large": encoded("PNG")}
    for name, kind in [("a", "whole"), *entries]:
        with suppress(OSError):  # of a name that this file system does not take
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "0.png").write_bytes(kinds[kind])
    if names is not None:
        (folder / "classes.txt").write_text("\n".join(names), encoding="utf-8", errors="surrogatepass")
    _imported(folder)


# Weights


@fuzzed
@example(given_={"classifier.bias": torch.tensor(0.0)}, more=0, wrapped=0, replacements=[], sealed=False)
@given(
    given_=st.dictionaries(
        st.sampled_from(["model", "net", "n_averaged", "module.classifier.bias", "classifier.bias", "a", 3]),
        tensors((4,)) | tensors(()),
        max_size=4,
    ),
    more=st.integers(0, 3),
    wrapped=st.integers(0, 4),
    replacements=REPLACED,
    sealed=st.booleans(),
)
def test_weights_of_teachers(
    tmp_path_factory: Folders,
    given_: dict[Any, Any],
    more: int,
    wrapped: int,
    replacements: Any,
    sealed: bool,
) -> None:
    """State dicts of another network, with tensors of any type and shape."""
    folder, net = tmp_path_factory.mktemp("teachers"), NetConfig(name="convnet", depth=1, width=2)
    module = build(net, (1, 8, 8), 4, seed=0)
    state: Any = {**module.state_dict(), **given_}
    for _ in range(more):
        state.pop(next(iter(state)))
    if sealed:
        from safetensors import torch as safetensors

        plain = {str(k): v.detach().contiguous().clone() for k, v in state.items()}
        data = safetensors.save(plain)
        length = int.from_bytes(data[:8], "little")
        head = json.loads(data[8 : 8 + length])
        for path, new in replacements:
            head = replaced(head, path, new)
        text = json.dumps(head).encode()
        data = struct.pack("<Q", len(text)) + text + data[8 + length :]
    else:
        for _ in range(wrapped):
            state = {"net": state}
        data = saved(state)
    where = folder / f"t.{'safetensors' if sealed else 'pt'}"
    where.write_bytes(data)
    with bounded(folder):
        read = pretrained.read_state(str(where))
        assert pretrained.outputs_of(module.state_dict(), read) >= 0
        pretrained.fill(module, read, net, str(where))


@fuzzed
@given(
    snapshots=st.lists(
        st.lists(tensors((2, 3)) | tensors((2,)), max_size=3) | st.integers() | tensors((2, 3)), max_size=4
    ),
    again=st.sampled_from([0, 1, 100, 60_000]),
)
def test_buffers_of_experts(tmp_path_factory: Folders, snapshots: list[Any], again: int) -> None:
    """Lists of lists of anything, some of them many times."""
    folder = tmp_path_factory.mktemp("buffers")
    whole = [torch.zeros(200, 30), torch.zeros(2)]
    expert = [*[whole] * again, *snapshots]
    (folder / "replay_buffer_0.pt").write_bytes(saved([expert]))
    with bounded(folder):
        (file,) = buffers.buffers(str(folder))
        for _ in buffers.read(file, [torch.Size((200, 30)), torch.Size((2,))]):
            pass


@fuzzed
@example(replacements=[], lost="history", shape=torch.zeros(4, 5))
@example(replacements=[], lost="", shape=torch.tensor(0.0))
@given(replacements=REPLACED, lost=st.sampled_from(["", "history", "snapshots"]), shape=tensors((4, 5)))
def test_histories_of_experts(
    tmp_path_factory: Folders, replacements: Any, lost: str, shape: torch.Tensor
) -> None:
    """Experts' files without their history, or with another one."""
    folder = tmp_path_factory.mktemp("histories")
    header = experts.Header((4, 2), (0, 3), {})
    data = experts.dump_snapshots(torch.zeros(4, 6), header, torch.float32, shape.detach().contiguous())
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    head.pop(lost, None)
    for path, new in replacements:
        head = replaced(head, path, new)
    text = json.dumps(head).encode()
    (folder / "expert").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with bounded(folder):
        assert [int(row[0]) for row in experts.read_history(Folder(str(folder)), "expert").tolist()]


# Sources


@fuzzed
@given(
    file=st.sampled_from(["wnids.txt", "val/val_annotations.txt"]),
    changes=CHANGES,
    lines=st.none() | st.lists(NAMES | st.sampled_from(["0.png\ta\t0", "../0.png\ta", "0.png\tb", "a", "b"])),
)
def test_text_of_tiny_imagenet(
    tmp_path_factory: Folders, file: str, changes: Any, lines: list[str] | None
) -> None:
    """Any bytes and lines in the files that name classes and label images."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("a", "b"):
        (folder / "train" / name / "images").mkdir(parents=True)
        (folder / "train" / name / "images" / "0.png").write_bytes(PICTURE)
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "val" / "images" / "0.png").write_bytes(PICTURE)
    (folder / "wnids.txt").write_text("a\nb\n")
    (folder / "val" / "val_annotations.txt").write_text("0.png\ta\t0\t0\t8\t8\n")
    before = (folder / file).read_bytes()
    given_ = changed(before, changes) if lines is None else "\n".join(lines).encode("utf-8", "surrogatepass")
    (folder / file).write_bytes(given_)
    with bounded(folder):
        sources.load(SourceConfig(name="tinyimagenet", root=str(folder)))


SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "holdout": st.sampled_from([0.001, 0.5, 0.999]),
    "holdout_seed": st.sampled_from([0, 2**63]),
    "size": st.none() | st.integers(4, 64),
    "range": st.sampled_from([1, 4095, 65535]),
    "train": NAMES
    | st.sampled_from(["*", "[", "*" * 50 + "b", "**/*", "train*", "../*", "data/*", "train", "."]),
    "test": NAMES | st.sampled_from(["*", "train*", "test*", "val", "train", "train/a", ".."]),
    "image_column": st.sampled_from(["label", "image", "", "x", "image.bytes"]),
    "label_column": st.sampled_from(["label", "image", "", "path"]),
    "max_bad_fraction": st.sampled_from([0, 0.5, 1]),
    "follow_links": st.booleans(),
    "subset": st.sampled_from(["nette", "10"]),
    "space": st.sampled_from(["zca", "published"]),
}


@fuzzed
@given(
    name=st.sampled_from(["imagefolder", "parquet", "webdataset", "imagenet", "tinyimagenet", "cifar10"]),
    settings=st.fixed_dictionaries({}, optional=SETTINGS),
    sizes=st.lists(st.tuples(st.sampled_from(["L", "RGB", "I;16", "P"]), SIZES), max_size=3),
)
def test_settings_of_sources(
    tmp_path_factory: Folders, name: str, settings: dict[str, Any], sizes: list[Any]
) -> None:
    """Settings that do not fit the files, and images of several sizes and modes."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "train.parquet").write_bytes(table())
    (folder / "train.tar").write_bytes(shard())
    for split in ("train", "val"):
        for class_ in ("n00000001", "n00000002"):
            (folder / split / class_).mkdir(parents=True)
            (folder / split / class_ / "0.png").write_bytes(PICTURE)
    for number, (mode, side) in enumerate(sizes):
        Image.new(mode, (side % 300 + 1, side % 7 + 1)).save(
            folder / "train" / "n00000001" / f"{number}x.png"
        )
    try:
        config = SourceConfig.model_validate({"name": name, "root": str(folder), **settings})
    except ValidationError:
        return
    with bounded(folder):
        sources.load(config)
    with bounded(folder):
        sources.listing(config)


@fuzzed
@given(label=ANY, twice=st.booleans(), ending=st.sampled_from(["png", "PNG", "jpg.png", "heic", "0.png"]))
def test_labels_of_samples(tmp_path_factory: Folders, label: Any, twice: bool, ending: str) -> None:
    """Labels of shards as any JSON value, with names in ``classes.txt``."""
    import tarfile

    folder = tmp_path_factory.mktemp("labels")
    with tarfile.open(folder / "train.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for k, value in enumerate(("a", "b", label)):
            for end, content in ((ending, PICTURE), ("json", json.dumps({"label": value}).encode())):
                head = tarfile.TarInfo(f"{'x' * 150}{k}.{end}")
                head.size = len(content)
                for _ in range(1 + (twice and k == 2)):
                    tar.addfile(head, io.BytesIO(content))
    (folder / "classes.txt").write_text("a\nb\n")
    with bounded(folder):
        sources.load(
            SourceConfig(name="webdataset", root=str(folder), holdout=0.4, size=8, max_bad_fraction=1)
        )
