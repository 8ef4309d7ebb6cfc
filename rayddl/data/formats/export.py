"""Writes a distilled set in the formats that other programs read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from rayddl import sealed, yaml_text
from rayddl.credentials import scrub
from rayddl.data.ahead import ahead
from rayddl.errors import UserError
from rayddl.storage import Folder

if TYPE_CHECKING:
    from torch import Tensor

    from rayddl.data.distilled import DistilledSet
    from rayddl.data.views import Picture

Format: TypeAlias = Literal["imagefolder", "parquet", "webdataset", "pt", "hf"]
FORMATS: tuple[Format, ...] = ("imagefolder", "parquet", "webdataset", "pt", "hf")
SHARD_BYTES = 100 * 2**20
"""Bytes of images after which a new tar file is begun."""
Content: TypeAlias = bytes | Callable[[], bytes]
NAMES = "classes.txt"
"""The file of an export that names the classes, a line each, in label order."""


@dataclass(frozen=True)
class More:
    """What an ``hf`` export has in addition to the set."""

    files: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    """By name, functions that return the content."""
    lacking: str = ""
    """Why nobody can train on the export as its figures were made, as a sentence; empty if they can."""


def export_set(folder: Folder, form: str, to: Folder, more: More | None = None) -> list[str]:
    """Write the set in ``folder`` into ``to``; returns the paths of the files written.

    - ``imagefolder``: PNG files, ``<class>/<number>.png``, rounded to bytes; sorted folders are in label order.
    - ``parquet``: ``images.parquet`` with the columns ``image`` and ``label``, also rounded to bytes.
    - ``webdataset``: tar files with ``<number>.png`` and ``<number>.cls`` for each image, and
      ``<number>.soft_label.json`` for soft labels.
    - ``pt``: ``images_best.pt`` (float32 [N, C, H, W] in model space), ``labels_best.pt`` and ``lr_best.pt``,
      plain tensors in the layout that MTT's code saves and reads, not rounded; with ``set.json`` and
      ``space.safetensors``, which hold the pixel space. :func:`foreign_space` says if MTT's code has another one.
    - ``hf``: a folder for ``datasets.load_dataset``: the table, a card (``README.md``), the unrounded tensors for
      ``rayddl.load_set``, and ``more``: a script that trains on the set, and what it reads.

    Each has ``classes.txt``, the names of the classes in label order, one per line; those that no line can hold, such
    as an empty one, as JSON.

    Never overwrites a file: raises :class:`UserError` if ``to`` already has one of the names, or other files (except
    hidden ones, as those of a clone), or cannot be written, and :class:`ArtifactError` if the set is incomplete, was
    altered, or has numbers that cannot be right.
    """
    from rayddl.data.distilled import DistilledSet

    # Everything is made from the checked tensors: the other files of a set are not read, nor what they link to.
    return export_loaded(DistilledSet.load(folder), form, to, more)


def export_loaded(made: DistilledSet, form: str, to: Folder, more: More | None = None) -> list[str]:
    """Write the set ``made``, as :func:`export_set`."""
    from rayddl.data.sources.parquet_labels import line_of

    if form not in FORMATS:
        raise UserError(f"unknown format {form!r}; known: {', '.join(FORMATS)}", code="unknown-format")
    forms: dict[str, Callable[[DistilledSet], Iterator[tuple[str, Content]]]]
    forms = {"imagefolder": _folders, "parquet": _table, "webdataset": _shards, "pt": _tensors}
    files = dict(_hub(made, more or More()) if form == "hf" else forms[form](made))
    files[NAMES] = "\n".join([*map(line_of, made.classes), ""]).encode()
    written: list[str] = []
    with _writing(to, written, len(files)):
        there = sorted(name for name in files if to.has(name))
        if there:
            raise UserError(
                f"{to.path(there[0])} exists already, and an export never writes over a file; choose another folder "
                f"with --to, or remove {scrub(to.uri)} with all its files if it is an earlier export",
                code="export-exists",
            )
        _refuse_others(to)

    contents = ahead(
        ((partial(_content, data), 0) for data in files.values()), threaded=form == "imagefolder"
    )
    with closing(contents):
        for name, content in zip(files, contents, strict=True):
            with _writing(to, written, len(files)):
                to.write(name, content)
            written.append(to.path(name))
    return written


def _content(data: Content) -> bytes:
    return data if isinstance(data, bytes) else data()


@contextmanager
def _writing(to: Folder, written: Sequence[str], count: int) -> Iterator[None]:
    """Raise :class:`UserError` if ``to`` cannot be read or written, with ``count`` files of which some are written."""
    try:
        yield
    except OSError as error:
        left = f"{len(written)} of {count} files are there; remove them, " if written else ""
        raise UserError(
            f"the export cannot be written to {scrub(to.uri)}: {scrub(error.strerror or str(error))}; {left}"
            "free space if it is full, or choose another folder with --to",
            code="export-not-writable",
        ) from error


def _refuse_others(to: Folder) -> None:
    """Raise :class:`UserError` if ``to`` has files that are not hidden: those of an export would be mixed with them."""
    own = [name for name in (*to.folders(), *to.names()) if not name.startswith(".")]
    if own:
        more = f" and {len(own) - 3} more" if len(own) > 3 else ""
        raise UserError(
            f"{scrub(to.uri)} is not empty: {', '.join(own[:3])}{more} would be mixed with the files of the export; "
            "choose a new or empty folder with --to",
            code="export-folder-not-empty",
        )


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


def _pictures(made: DistilledSet) -> Generator[Picture, None, None]:
    from rayddl.data import views

    return views.pictures(made.pixels().cpu(), made.hard_labels.cpu(), views.class_folders(made.classes))


def _folders(made: DistilledSet) -> Iterator[tuple[str, Content]]:
    from rayddl.data import views

    paths = views.paths(made.hard_labels, views.class_folders(made.classes))
    images = zip(paths, made.pixels().cpu(), strict=True)
    yield from ((path, partial(views.png, image)) for path, image in images)


def _table(made: DistilledSet) -> Iterator[tuple[str, Content]]:
    from rayddl.data import views

    sink = io.BytesIO()
    with closing(_pictures(made)) as pictures:
        views.write_table(sink, pictures, made.classes, _soft(made))
    yield "images.parquet", sink.getvalue()


def _soft(made: DistilledSet) -> Tensor | None:
    return made.labels if made.labels.ndim == 2 else None


def _shards(made: DistilledSet) -> Iterator[tuple[str, Content]]:
    shard, held, number = io.BytesIO(), 0, 0
    tar = tarfile.open(fileobj=shard, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed when full
    for index, picture in enumerate(_pictures(made)):
        if held >= SHARD_BYTES:
            tar.close()
            yield _shard_name(number), shard.getvalue()
            shard, held, number = io.BytesIO(), 0, number + 1
            tar = tarfile.open(fileobj=shard, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        held += len(picture.png)
        for name, content in _members(made, index, picture):
            # No time and no owner, so that the same set gives the same bytes.
            head = tarfile.TarInfo(f"{index:09d}.{name}")
            head.size = len(content)
            tar.addfile(head, io.BytesIO(content))
    tar.close()
    yield _shard_name(number), shard.getvalue()


def _members(made: DistilledSet, index: int, picture: Picture) -> Iterator[tuple[str, bytes]]:
    yield "png", picture.png
    yield "cls", str(picture.label).encode()
    soft = _soft(made)
    if soft is not None:
        yield "soft_label.json", json.dumps(soft[index].tolist()).encode()


def _shard_name(number: int) -> str:
    return f"train-{number:06d}.tar"


def _tensors(made: DistilledSet) -> Iterator[tuple[str, Content]]:
    import torch
    from safetensors.torch import save

    from rayddl.data.formats.pt_places import IMAGES, LABELS, META, RATE, SPACE

    rate = torch.tensor(made.lr_student)
    for name, tensor in ((IMAGES, made.images), (LABELS, made.labels), (RATE, rate)):
        stream = io.BytesIO()
        torch.save(tensor.detach().cpu().contiguous().clone(), stream)
        yield name, stream.getvalue()
    yield META, sealed.document(made.document())
    yield SPACE, save({name: tensor.contiguous() for name, tensor in made.space.tensors().items()})


def _hub(made: DistilledSet, more: More) -> Iterator[tuple[str, Content]]:
    from rayddl.data.formats.card import DATA, card, without_places

    (_, table), *_ = _table(made)
    yield from more.files.items()
    yield "README.md", card(made, tuple(more.files), more.lacking).encode()
    yield DATA, table
    shared = replace(made, info=without_places(made.info))
    if shared.info.get("definition"):
        yield "definition.yaml", yaml_text.dump(scrub(shared.info["definition"])).encode()
    yield "set.json", sealed.document(shared.document())
    yield "set.safetensors", shared.data()
