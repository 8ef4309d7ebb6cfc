"""Converts the labels of Parquet files, integers or text, to indices into class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayddl import documents, limits
from rayddl.data.sources.refusals import shown
from rayddl.errors import SourceError

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Column:
    """The labels of one file as indices into the file's own class names."""

    codes: Labels
    vocabulary: tuple[str, ...]
    named: bool
    """True if the file's metadata give the class names in order."""


def read(column: pa.ChunkedArray, metadata: dict[bytes, bytes], where: str, key: str) -> Column:
    """The label column ``key`` of the file ``where``, with class names from its ``metadata``.

    Raises :class:`SourceError` for empty labels and labels without a class name.
    """
    if column.null_count:
        raise SourceError(
            f"{where}: column {key!r} has {column.null_count:,} empty labels of {len(column):,}.",
            code="labels-empty",
        )
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    names = _names_in(metadata, key, where)
    distinct = sorted(pc.unique(column).to_pylist())
    if len(distinct) > limits.CLASSES.value:
        raise SourceError(
            f"{where}: column {key!r} has {limits.CLASSES.exceeded(len(distinct), 'different labels')}. Class labels "
            "are expected; set source.label_column.",
            code="too-many-classes",
        )
    if names is None or not pa.types.is_integer(column.type):
        codes = _numpy(pc.index_in(column, pa.array(distinct, column.type)))
        return _ordered(codes, tuple(str(label) for label in distinct), names)
    if distinct and not (distinct[0] >= 0 and distinct[-1] < len(names)):
        raise SourceError(
            f"{where}: labels in column {key!r} run from {distinct[0]} to {distinct[-1]}, but there are "
            f"{len(names)} class names, so 0 to {len(names) - 1} are expected.",
            code="labels-beyond-class-names",
        )
    return Column(_numpy(column), names, named=True)


def _ordered(codes: Labels, vocabulary: tuple[str, ...], names: tuple[str, ...] | None) -> Column:
    """Text labels as indices into the file's class names, if all labels are among these."""
    if names is None or not set(vocabulary) <= set(names):
        return Column(codes, vocabulary, named=False)
    index = {name: position for position, name in reversed(list(enumerate(names)))}
    positions = np.array([index[name] for name in vocabulary], dtype=np.int64)
    return Column(positions[codes], names, named=True)


def _names_in(metadata: dict[bytes, bytes], key: str, where: str) -> tuple[str, ...] | None:
    if b"classes" in metadata:
        try:
            text = metadata[b"classes"].decode()
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{where}: the class names in it are not UTF-8 text (byte {error.start}).",
                code="names-not-utf-8",
            ) from error
        return _within_the_limit([line.strip() for line in text.splitlines() if line.strip()], where)
    try:
        names = documents.parse(metadata[b"huggingface"])["info"]["features"][key]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return _within_the_limit(names, where)


def _within_the_limit(names: list[str], where: str) -> tuple[str, ...]:
    if len(names) > limits.CLASSES.value:
        raise SourceError(
            f"{where} has {limits.CLASSES.exceeded(len(names), 'class names')}.", code="too-many-classes"
        )
    return tuple(names)


def _numpy(column: pa.ChunkedArray) -> Labels:
    return np.asarray(column.to_numpy()).astype(np.int64)


def classes(train: Sequence[Column]) -> tuple[str, ...]:
    """The class names in the first file's metadata, else all labels in the train split, sorted."""
    for column in train:
        if column.named:
            return column.vocabulary
    found = {name for column in train for name in column.vocabulary}
    # Integers converted to text are sorted as integers.
    return tuple(sorted(found, key=lambda name: (0, int(name), "") if _whole(name) else (1, 0, name)))


def _whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def by_name(column: Column, names: tuple[str, ...], where: str) -> Labels:
    """The labels as indices into the source's class ``names``; ``where`` names the file.

    Raises :class:`SourceError` for a label that is not among them.
    """
    if column.vocabulary == names:
        return column.codes
    index = {name: position for position, name in enumerate(names)}
    used = [column.vocabulary[code] for code in np.unique(column.codes)]
    unknown = [name for name in used if name not in index]
    if unknown:
        raise SourceError(
            f"{where} has labels that are no class of the train split: {shown(unknown)}. The classes are: "
            f"{shown(names, 10)}.",
            code="labels-not-in-train",
        )
    positions = np.array([index.get(name, -1) for name in column.vocabulary], dtype=np.int64)
    return positions[column.codes]
