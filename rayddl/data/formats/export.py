"""Writes a distilled set in the formats that other programs read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rayddl.errors import ArtifactError, UserError
from rayddl.storage import Folder

if TYPE_CHECKING:
    from rayddl.data.distilled import DistilledSet

Format: TypeAlias = Literal["imagefolder", "parquet", "webdataset", "pt", "hf"]
FORMATS: tuple[Format, ...] = ("imagefolder", "parquet", "webdataset", "pt", "hf")
SHARD_BYTES = 100 * 2**20
"""Bytes of images after which a new tar file is begun."""
NAMES = "classes.txt"
"""The file of an export that names the classes, a line each, in label order."""
_TABLE = "images.parquet"


def export_set(folder: Folder, form: str, to: Folder) -> list[str]:
    """Write the set in ``folder`` into ``to``; returns the paths of the files written.

    - ``imagefolder``: PNG files, ``<class>/<number>.png``, rounded to bytes; sorted folders are in label order.
    - ``parquet``: ``images.parquet`` with the columns ``image`` and ``label``, also rounded to bytes.
    - ``webdataset``: tar files with ``<number>.png`` and ``<number>.cls`` for each image, and
      ``<number>.soft_label.json`` for soft labels.
    - ``pt``: ``images_best.pt`` (float32 [N, C, H, W] in model space), ``labels_best.pt`` and ``lr_best.pt``,
      plain tensors in the layout that MTT's code saves and reads, not rounded; with ``set.json`` and
      ``space.safetensors``, which hold the pixel space. :func:`foreign_space` says if MTT's code has another one.
    - ``hf``: a folder for ``datasets.load_dataset``: the table, a card (``README.md``), and the
    unrounded tensors for ``rayddl.load_set``.

    Each has ``classes.txt``, the names of the classes in label order, one per line.

    Never overwrites a file: raises :class:`UserError` if ``to`` already has one of the names, and
    :class:`ArtifactError` if the set is incomplete, was altered, or has numbers that cannot be right.
    """
    from rayddl.data.distilled import DistilledSet

    if form not in FORMATS:
        raise UserError(f"unknown format {form!r}; known: {', '.join(FORMATS)}", code="unknown-format")
    forms = {"parquet": _table, "webdataset": _shards, "pt": _tensors, "hf": _hub}
    made = DistilledSet.load(folder)
    found = _pictures(made) if form == "imagefolder" else forms[form](folder)
    files = {**dict(found), NAMES: "\n".join([*made.classes, ""]).encode()}
    there = sorted(name for name in files if to.has(name))
    if there:
        raise UserError(
            f"{to.path(there[0])} exists already, and an export never writes over a file; "
            "choose another folder with --to, or remove it",
            code="export-exists",
        )
    for name, data in files.items():
        to.write(name, data)
    return [to.path(name) for name in files]


def foreign_space(folder: Folder) -> str:
    """A sentence on the pixel space of the set in ``folder``, if the published code scales pixels otherwise; else
    empty.
    """
    from rayddl.data.config import PUBLISHED
    from rayddl.data.distilled import KIND

    meta = KIND.read(folder)
    source = dict(meta["info"].get("source") or {})
    if meta["space"]["kind"] != "normalise" or source.get("space") == "published":
        return ""
    if source.get("name") not in PUBLISHED:
        return ""
    return (
        "the tensors are in the set's pixel space, scaled by the train split's own mean and deviation; the published "
        "code scales by constants. Set source.space=published before distilling to make a set for that code."
    )


def _pictures(made: DistilledSet) -> Iterator[tuple[str, bytes]]:
    # From the tensors, because the PNG files of a set of an earlier version may sort in another order.
    from rayddl.data import views

    folders = views.class_folders(made.classes)
    for picture in views.pictures(made.pixels().cpu(), made.hard_labels.cpu(), folders):
        yield picture.path, picture.png


def _table(folder: Folder) -> Iterator[tuple[str, bytes]]:
    if not folder.has(_TABLE):
        raise ArtifactError(
            f"the set in {folder} has no {_TABLE}; copy the whole set, or make it again",
            code="set-without-table",
        )
    yield _TABLE, folder.read(_TABLE)


def _shards(folder: Folder) -> Iterator[tuple[str, bytes]]:
    import pyarrow.parquet as pq

    (_, data), *_ = _table(folder)
    table = pq.read_table(io.BytesIO(data))
    shard, held, number = io.BytesIO(), 0, 0
    tar = tarfile.open(fileobj=shard, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed when full
    for index, row in enumerate(table.to_pylist()):
        if held >= SHARD_BYTES:
            tar.close()
            yield _shard_name(number), shard.getvalue()
            shard, held, number = io.BytesIO(), 0, number + 1
            tar = tarfile.open(fileobj=shard, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        held += len(row["image"]["bytes"])
        for name, content in _members(row):
            # No time and no owner, so that the same set gives the same bytes.
            head = tarfile.TarInfo(f"{index:09d}.{name}")
            head.size = len(content)
            tar.addfile(head, io.BytesIO(content))
    tar.close()
    yield _shard_name(number), shard.getvalue()


def _members(row: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    yield "png", row["image"]["bytes"]
    yield "cls", str(row["label"]).encode()
    if "soft_label" in row:
        yield "soft_label.json", json.dumps(row["soft_label"]).encode()


def _shard_name(number: int) -> str:
    return f"train-{number:06d}.tar"


def _tensors(folder: Folder) -> Iterator[tuple[str, bytes]]:
    import torch
    from safetensors.torch import save

    from rayddl.data.distilled import DistilledSet
    from rayddl.data.formats.pt import IMAGES, LABELS, META, RATE, SPACE

    loaded = DistilledSet.load(folder)
    rate = torch.tensor(loaded.lr_student)
    for name, tensor in ((IMAGES, loaded.images), (LABELS, loaded.labels), (RATE, rate)):
        stream = io.BytesIO()
        torch.save(tensor.detach().cpu().contiguous().clone(), stream)
        yield name, stream.getvalue()
    yield META, folder.read(META)
    yield SPACE, save({name: tensor.contiguous() for name, tensor in loaded.space.tensors().items()})


def _hub(folder: Folder) -> Iterator[tuple[str, bytes]]:
    from rayddl.data.distilled import DistilledSet
    from rayddl.data.formats.card import DATA, card, without_places

    (_, table), *_ = _table(folder)
    yield "README.md", card(DistilledSet.load(folder)).encode()
    yield DATA, table
    meta = folder.read_json("set.json")
    meta["info"] = without_places(meta["info"])
    yield "set.json", json.dumps(meta, indent=1, sort_keys=True).encode() + b"\n"
    yield "set.safetensors", folder.read("set.safetensors")
