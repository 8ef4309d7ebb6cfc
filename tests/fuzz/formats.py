"""Whole files of each format, and what reads a changed one: for :mod:`tests.fuzz.guided` and kept findings."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from PIL import Image

import rayddl
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels.decode import FORMATS as IMAGES
from rayddl.data.pixels.decode import Encoded, decode
from rayddl.data.pixels.space import fit
from rayddl.methods.trajectories import files as experts
from rayddl.storage import Folder
from tests.fuzz.test_fuzz import DEFINITION, encoded, looked_at, saved, shard, table, whole_run
from tests.fuzz.test_members import loaded, read_pt
from tests.fuzz.watch import bounded


@dataclass(frozen=True)
class Format:
    """A kind of file that may come from anybody."""

    files: Callable[[], list[bytes]]
    """Whole ones, from which changed ones are made."""
    read: Callable[[Path, bytes], None]
    """Reads one, with what belongs to it, in an empty folder. Raises ``AssertionError`` for a broken promise."""


def _pictures() -> list[bytes]:
    deep, turned, moving = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.new("I;16", (8, 8), 4095).save(deep, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("CMYK", (16, 8)).save(turned, "JPEG", exif=exif, progressive=True)
    frames = [Image.new("P", (8, 8), k) for k in range(3)]
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:], transparency=1)
    return [*map(encoded, IMAGES), *(sink.getvalue() for sink in (deep, turned, moving))]


def _decoded(folder: Path, data: bytes) -> None:
    for size in (None, 8):
        with bounded(folder):
            (found,) = decode([[Encoded("x", 0, lambda: data)]], size)
            assert found.pixels if isinstance(found.pixels, str) else found.pixels.ndim in (2, 3)


def _as_source(name: str, ending: str, make: Callable[[], bytes]) -> Callable[[Path, bytes], None]:
    def read(folder: Path, data: bytes) -> None:
        (folder / f"train.{ending}").write_bytes(data)
        (folder / f"test.{ending}").write_bytes(make())
        loaded(name, folder)

    return read


def _tensor_files() -> list[bytes]:
    values = [torch.tensor([0, 0, 1, 1]), {"model": {"w": torch.ones(2, 3).t()}}, [[torch.ones(2)] * 2]]
    return [saved(value, zipped=zipped) for value in values for zipped in (True, False)]


def _set() -> DistilledSet:
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    space = fit("normalise", images)
    return DistilledSet(space.encode(images), torch.tensor([0, 0, 1, 1]), 0.1, ("a", "b"), space, {})


def _sealed_files() -> list[bytes]:
    header = experts.Header((4, 2), (0, 3), {})
    return [
        _set().data(),
        experts.dump_snapshots(torch.zeros(4, 6), header, torch.float32, torch.zeros(4, 5)),
    ]


def _sealed(folder: Path, data: bytes) -> None:
    place, made = Folder(str(folder)), _set()
    document = made.document()
    document["files"] = {"set.safetensors": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}
    (folder / "set.json").write_text(json.dumps(document))
    for name in ("set.safetensors", "expert"):
        (folder / name).write_bytes(data)
    reads: list[Callable[[], object]] = [
        lambda: rayddl.load_set(folder).pixels(),
        lambda: experts.read_history(place, "expert"),
        lambda: experts.open_trajectory(place, "expert", "snapshots").at(1),
        lambda: experts.open_trajectory(place, "expert", "convex").at(1),
    ]
    for read in reads:
        with bounded(folder):
            read()


def _definitions() -> list[bytes]:
    anchors = (
        "x: &a {kind: experts, count: 1}\nname: x\nsource: {name: digits}\nstages: {e: {<<: *a, epochs: 1}}\n"
    )
    extending = "extends: other.yaml\nstages: {e: {epochs: ${N:-3}}}\n"
    return [
        yaml.safe_dump(DEFINITION).encode(),
        json.dumps(DEFINITION).encode(),
        anchors.encode(),
        extending.encode(),
    ]


def _planned(folder: Path, data: bytes) -> None:
    (folder / "other.yaml").write_text(yaml.safe_dump(DEFINITION))
    (folder / "d.yaml").write_bytes(data)
    with bounded(folder):
        rayddl.plan(folder / "d.yaml", out=folder / "runs")


RUN = ("x.run.json", "e-0123456789ab/manifest.json", "e-0123456789ab/set/set.json")


def _documents() -> list[bytes]:
    with tempfile.TemporaryDirectory() as place:
        whole_run(Path(place))
        return [(Path(place) / name).read_bytes() for name in RUN]


def _looked_at(folder: Path, data: bytes) -> None:
    whole_run(folder)
    keys = data[:4096]
    name = next(
        (n for n, key in zip(RUN, (b'"order"', b'"stage"', b'"space"'), strict=True) if key in keys), RUN[0]
    )
    (folder / name).write_bytes(data)
    for look in looked_at(folder):
        with bounded(folder):
            look()


FORMATS = {
    "images": Format(_pictures, _decoded),
    "tar": Format(lambda: [shard()], _as_source("webdataset", "tar", shard)),
    "parquet": Format(lambda: [table()], _as_source("parquet", "parquet", table)),
    "pt": Format(_tensor_files, read_pt),
    "safetensors": Format(_sealed_files, _sealed),
    "definitions": Format(_definitions, _planned),
    "documents": Format(_documents, _looked_at),
}
SEEDS = Path(__file__).with_name("seeds")
"""Files that once failed, in a folder for each format."""


def kept(name: str) -> Iterator[bytes]:
    """The files of a format that once failed."""
    for file in sorted((SEEDS / name).glob("*")):
        yield file.read_bytes()
