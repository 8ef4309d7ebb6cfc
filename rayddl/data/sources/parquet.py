"""Images in Parquet files with an image column and a label column, also in Hugging Face's layout.

The image column holds encoded bytes, or ``struct<bytes, path>``, in which a null ``bytes`` refers to the
file ``path`` inside the root. Labels are integers or text. Class names come from the schema metadata
``classes`` (one per line, in label order), else from Hugging Face's ``ClassLabel`` metadata, else they
are the distinct labels in sorted order. Labels of several files are matched by class name, not by number.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayddl import limits
from rayddl.data.ahead import ahead
from rayddl.data.config import SourceConfig
from rayddl.data.sources import holdout, parquet_bounds, parquet_labels
from rayddl.data.sources.contents import Contents
from rayddl.data.sources.known import Listed
from rayddl.data.sources.listing import read_inside
from rayddl.data.sources.parquet_labels import Labels
from rayddl.data.sources.refusals import (
    open_root,
    refuse_absent_classes,
    refuse_all_unlabelled,
    refuse_one_class,
    shown,
    unlabelled,
)
from rayddl.data.sources.split_files import find
from rayddl.errors import SourceError
from rayddl.storage import Folder

if TYPE_CHECKING:
    from rayddl.data.dataset import Source
    from rayddl.data.pixels.decode import Encoded
    from rayddl.data.sources.listing import Listing

_NAMES_AT_ONCE = 1 << 16
_PART = 1 << 20
"""Bytes of a footer that are read at once."""


@dataclass(frozen=True)
class _Table:
    """One file: its identity and its labels."""

    name: str
    bytes: int
    footer: str
    labels: parquet_labels.Column
    groups: tuple[int, ...]
    """The first row of each row group, followed by the number of rows."""


@dataclass(frozen=True)
class _Survey:
    """Footers, labels and classes of all files, without images."""

    folder: Folder
    classes: tuple[str, ...]
    splits: dict[str, tuple[tuple[_Table, Labels], ...]]
    """``train`` and ``test``: each file with its labels as indices into ``classes``. ``test`` has no file where
    ``holdout`` makes that split."""
    follow_links: bool


def identity(config: SourceConfig) -> dict[str, Any]:
    """Names, sizes, footers, labels and class names. Raises the errors of :func:`_survey`."""
    survey = _survey(config)
    return {
        "columns": [config.image_column, config.label_column],
        "classes": survey.classes,
        "splits": {
            split: [
                [table.name, table.bytes, table.footer, hashlib.sha256(labels.tobytes()).hexdigest()]
                for table, labels in tables
            ]
            for split, tables in survey.splits.items()
        },
        **({} if survey.splits["test"] else {"holdout": [config.holdout, config.holdout_seed]}),
    }


def load(config: SourceConfig, fingerprint: str) -> Source:
    """Both splits in memory, decoded a few hundred rows at a time."""
    from rayddl.data.sources.splits import batches, build

    survey = _survey(config)
    if not survey.splits["test"]:
        parts = (batches(_part(survey, split, config)) for split in ("train", "test"))
        return build(config, fingerprint, survey.classes, *parts)
    splits = {split: _rows(survey, split, config.image_column) for split in survey.splits}
    return build(config, fingerprint, survey.classes, splits["train"], splits["test"], notes=_notes(survey))


def listing(config: SourceConfig, split: str) -> Listing:
    """The listing of a split; reads footers and labels, no image. Raises the errors of :func:`load` that
    concern columns and classes.
    """
    return _part(_survey(config), split, config)


def _part(survey: _Survey, split: str, config: SourceConfig) -> Listing:
    if not survey.splits["test"]:
        return holdout.part(_listing(survey, "train", config), split, config)
    return _listing(survey, split, config)


def _listing(survey: _Survey, split: str, config: SourceConfig) -> Listing:
    from rayddl.data.sources.listing import ParquetStore, sorted_listing

    tables = survey.splits[split]
    files = tuple(table.name for table, _ in tables)
    lengths = [len(labels) for _, labels in tables]
    at = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])
    file = np.repeat(np.arange(len(files), dtype=np.int32), lengths)
    parts = itertools.chain.from_iterable(map(_row_names, files, lengths))
    names = pa.concat_arrays([pa.array([], pa.large_string()), *parts])
    store = ParquetStore(
        survey.folder,
        files,
        config.image_column,
        tuple(table.groups for table, _ in tables),
        survey.follow_links,
        tuple(table.bytes for table, _ in tables),
    )
    labels = np.concatenate([labels for _, labels in tables]).astype(np.int32)
    return sorted_listing(names, labels, survey.classes, store, notes=_notes(survey), file=file, at=at)


def _row_names(file: str, rows: int) -> Iterator[pa.Array]:
    """``FILE#000000012`` for each row of a file, made by Arrow, as files may have millions of rows.

    A part of them at a time: fresh memory for all, in each step, costs several times the work.
    """
    large = partial(pa.scalar, type=pa.large_string())
    for start in range(0, rows, _NAMES_AT_ONCE):
        number = pc.cast(pa.array(np.arange(start, min(start + _NAMES_AT_ONCE, rows))), pa.large_string())
        yield pc.binary_join_element_wise(large(f"{file}#"), pc.utf8_lpad(number, 9, "0"), large(""))


def _notes(survey: _Survey) -> tuple[str, ...]:
    return unlabelled({split: [part for _, part in parts] for split, parts in survey.splits.items()})


def contents(config: SourceConfig, first: int) -> Contents:
    """Counts of both splits and the first few images; reads footers, labels and these images only."""
    survey = _survey(config)
    train, test = (sum(int((labels >= 0).sum()) for _, labels in survey.splits[s]) for s in ("train", "test"))
    present = np.concatenate([part[part >= 0] for _, part in survey.splits["train"]])
    fewest = int(np.bincount(present, minlength=len(survey.classes)).min())
    if not test:
        train, test, fewest = holdout.totals(present, survey.classes, config)
    with survey.folder.open(survey.splits["train"][0][0].name) as stream:
        file = parquet_bounds.reader(stream)
        cells = list(itertools.islice(parquet_bounds.batches(file, config.image_column, 1), first))
    images = []
    for read in (read for cell in cells for read in _readers(survey, cell)):
        with suppress(OSError, ValueError):
            images.append(read())
    return Contents(len(survey.classes), train, test, tuple(images), fewest)


def _groups(metadata: pq.FileMetaData) -> tuple[int, ...]:
    rows = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
    return tuple(np.concatenate([[0], np.cumsum(rows)]).astype(int).tolist())


def _survey(config: SourceConfig) -> _Survey:
    """Find the files and read footers and labels.

    Raises :class:`SourceError` for missing files or columns, wrong column types, no rows, labels without
    a class name, fewer than two classes, and classes without images in the train split.
    """
    folder = open_root(config, "Parquet files")
    found = find(config, folder, ".parquet")
    look = _table_once if isinstance(folder, Listed) else _table
    looks = [(split, partial(look, config, folder, name)) for split, names in found.items() for name in names]
    tables: dict[str, list[_Table]] = {split: [] for split in found}
    for (split, _), table in zip(
        looks, ahead(((each, 0) for _, each in looks), threaded=folder.far), strict=True
    ):
        tables[split].append(table)
    parquet_labels.refuse_mixed_types({folder.path(table.name): table.labels for table in tables["train"]})
    classes = parquet_labels.classes([table.labels for table in tables["train"]])
    where = f"source parquet in {config.root}"
    repeated = sorted({name for name in classes if classes.count(name) > 1})
    if repeated:
        raise SourceError(
            f"{where}: class names must differ, found more than once: {shown(repeated)}.",
            code="class-names-repeated",
        )
    refuse_one_class(
        classes, where, f"the labels in column {config.label_column!r} of {shown(found['train'])}"
    )
    splits = {split: _in(folder, classes, ts) for split, ts in tables.items()}
    survey = _Survey(folder, classes, splits, config.follow_links)
    for split, members in survey.splits.items():
        if (members or config.holdout is None) and not sum(len(labels) for _, labels in members):
            raise SourceError(
                f"{where}: the {split} split has no rows ({shown(found[split])}).", code="split-without-rows"
            )
    refuse_all_unlabelled(
        {split: [part for _, part in parts] for split, parts in survey.splits.items()}, where
    )
    present = np.unique(np.concatenate([labels for _, labels in survey.splits["train"]]))
    refuse_absent_classes(present.tolist(), classes, config)
    return survey


def _in(
    folder: Folder, classes: tuple[str, ...], tables: Sequence[_Table]
) -> tuple[tuple[_Table, Labels], ...]:
    return tuple((t, parquet_labels.by_name(t.labels, classes, folder.path(t.name))) for t in tables)


def _table(config: SourceConfig, folder: Folder, name: str) -> _Table:
    return folder.asked(lambda: _looked_at(config, folder, name))


def _looked_at(config: SourceConfig, folder: Folder, name: str) -> _Table:
    where = folder.path(name)
    with folder.open(name) as stream:
        try:
            size, footer = _footer(stream)
            file = parquet_bounds.opened(stream, where)
            _refuse_wrong_columns(config, where, file.schema_arrow)
            column = parquet_bounds.labels(file, stream, config.label_column, where)
        except (pa.ArrowException, OSError) as error:
            if folder.far and isinstance(error, OSError):
                raise  # it is of the storage, not of the file
            raise SourceError(
                f"{where} cannot be read as Parquet: {error}", code="parquet-unreadable"
            ) from error
    metadata = file.schema_arrow.metadata or {}
    labels = parquet_labels.read(column, metadata, where, config.label_column)
    return _Table(name, size, footer, labels, _groups(file.metadata))


_table_once = lru_cache(maxsize=4096)(_table)
"""For files that this command has listed, which are equal to no others."""


def _footer(stream: pa.NativeFile) -> tuple[int, str]:
    """The file's bytes, and a hash of its footer, which holds the schema and the extents of columns."""
    size = int(stream.size())
    stream.seek(max(0, size - 8))
    # A file may say that its footer is longer than itself, and a stream makes room for all that it is asked for.
    length = min(size, int.from_bytes(stream.read(4), "little") + 8)
    stream.seek(size - length)
    found = hashlib.sha256()
    for _ in range(0, length, _PART):
        found.update(stream.read(_PART))
    return size, found.hexdigest()


def _refuse_wrong_columns(config: SourceConfig, where: str, schema: pa.Schema) -> None:
    columns = shown([f"{field.name} ({field.type})" for field in schema], 20)
    wanted: tuple[tuple[str, str, Callable[[pa.DataType], bool], str], ...] = (
        ("image_column", config.image_column, parquet_bounds.holds_images, "binary or struct<bytes, path>"),
        ("label_column", config.label_column, parquet_bounds.holds_labels, "whole numbers or text"),
    )
    for key, name, fits, expected in wanted:
        if name not in schema.names:
            raise SourceError(
                f"{where} has no column {name!r}; it has: {columns}. Set source.{key}.",
                code="parquet-column-missing",
            )
        type_ = parquet_bounds.type_of(schema, name, where)
        if not fits(type_):
            raise SourceError(
                f"{where}: column {name!r} must hold {expected}, it is {type_}. The "
                f"columns are: {columns}. Set source.{key}.",
                code="parquet-column-of-another-type",
            )


def _rows(survey: _Survey, split: str, column: str) -> Iterator[list[Encoded]]:
    from rayddl.data.pixels.decode import Encoded

    for table, labels in survey.splits[split]:
        with survey.folder.open(table.name) as stream:
            start = 0
            for cells in _batches(stream, column, survey.folder.path(table.name)):
                readers = _readers(survey, cells)
                yield [
                    Encoded(f"{table.name} row {row}", int(labels[row]), read)
                    for row, read in enumerate(readers, start)
                    if labels[row] >= 0
                ]
                start += len(readers)


def _batches(stream: pa.NativeFile, column: str, where: str) -> Iterator[pa.ChunkedArray]:
    try:
        yield from parquet_bounds.batches(parquet_bounds.reader(stream), column)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{where} is damaged in column {column!r}: {error}. Copy it again.", code="parquet-damaged"
        ) from error


def _readers(survey: _Survey, column: pa.ChunkedArray) -> list[Callable[[], bytes]]:
    most = limits.CELL_BYTES.value
    if not pa.types.is_struct(column.type):
        return [partial(_given, data, most) for data in column.to_pylist()]
    has_path = column.type.get_field_index("path") >= 0
    blobs = pc.struct_field(column, "bytes").to_pylist()
    paths = pc.struct_field(column, "path").to_pylist() if has_path else [None] * len(blobs)
    return [
        partial(read_inside, survey.folder, path, survey.follow_links)
        if data is None and path
        else partial(_given, data, most)
        for data, path in zip(blobs, paths, strict=True)
    ]


def _given(data: bytes | None, most: int) -> bytes:
    if data is None:
        raise ValueError("no bytes")
    if len(data) > most:
        raise ValueError(limits.CELL_BYTES.exceeded(len(data), "bytes"))
    return data
