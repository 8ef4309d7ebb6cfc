"""Converts the labels of Parquet files, integers or text, to indices into class names.

The label -1 means "unlabelled": it is index -1, and never the name of a class.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayddl import json_text, limits
from rayddl.data.sources.refusals import shown
from rayddl.errors import SourceError

Labels = NDArray[np.int64]
UNLABELLED = "-1"
"""The label of an image without a label."""
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_DIGITS = re.compile(r"-?\d{1,1000}")
"""Numbers in text by which classes are sorted. Python takes no number of more than a few thousand digits."""


@dataclass(frozen=True)
class Column:
    """The labels of one file as indices into the file's own class names."""

    codes: Labels
    """-1 for unlabelled images."""
    vocabulary: tuple[str, ...]
    named: bool
    """True if the file's metadata give the class names in order."""
    text: bool = False
    """True if the file stores labels as text."""


def read(column: pa.ChunkedArray, metadata: dict[bytes, bytes], where: str, key: str) -> Column:
    """The label column ``key`` of the file ``where``, with class names from its ``metadata``.

    Raises :class:`SourceError` for empty labels and labels without a class name.
    """
    if column.null_count:
        raise SourceError(
            f"{where}: column {key!r} has {column.null_count:,} empty labels of {len(column):,}.",
            code="labels-empty",
        )
    places: Labels | None = None
    if pa.types.is_dictionary(column.type):
        column, places = _used(column)
    names, text = names_in(metadata, key, where), not pa.types.is_integer(column.type)
    if text:
        column = _readable(column)
    found = pc.unique(column)
    labelled = len(found) - int(pc.index(pc.cast(found, pa.large_string()), UNLABELLED).as_py() >= 0)
    if labelled > limits.CLASSES.value:
        raise SourceError(
            f"{where}: column {key!r} has {limits.CLASSES.exceeded(labelled, 'different labels')}. Class labels "
            "are expected; set source.label_column.",
            code="too-many-classes",
        )
    distinct = [label for label in sorted(found.to_pylist()) if str(label) != UNLABELLED]
    if names is None or text:
        codes = _numpy(pc.fill_null(pc.index_in(column, pa.array(distinct, column.type)), -1))
        codes = codes if places is None else codes[places]
        return replace(_ordered(codes, tuple(str(label) for label in distinct), names), text=text)
    if distinct and not (distinct[0] >= 0 and distinct[-1] < len(names)):
        raise SourceError(
            f"{where}: labels in column {key!r} run from {distinct[0]} to {distinct[-1]}, but there are "
            f"{len(names)} class names, so 0 to {len(names) - 1} are expected.",
            code="labels-beyond-class-names",
        )
    codes = _numpy(column)
    return Column(codes if places is None else codes[places], names, named=True)


def _used(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Labels]:
    """The different values of a dictionary column, and the place of each cell's among them."""
    chunks = column.unify_dictionaries().chunks
    indices = np.concatenate([np.zeros(0, np.int64), *(np.asarray(each.indices) for each in chunks)])
    held, places = np.unique(indices.astype(np.int64), return_inverse=True)
    values = chunks[0].dictionary.take(pa.array(held)) if chunks else pa.array([], column.type.value_type)
    return pa.chunked_array([values]), places.astype(np.int64)


def _readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    r"""Text labels, with bytes that are not UTF-8 written as ``\xe9``."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        cells = column.cast(pa.large_binary()).to_pylist()
        return pa.chunked_array([pa.array([decoded(cell) for cell in cells], pa.large_string())])
    return column


def decoded(data: bytes) -> str:
    r"""Text from a file: without a byte-order mark, and with bytes that are not UTF-8 written as ``\xe9``."""
    # Python's own codec for the mark, utf-8-sig, takes many times as long.
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="backslashreplace")


def _ordered(codes: Labels, vocabulary: tuple[str, ...], names: tuple[str, ...] | None) -> Column:
    """Text labels as indices into the file's class names, if all labels are among these."""
    if names is None or not set(vocabulary) <= set(names):
        return Column(codes, vocabulary, named=False)
    index = {name: position for position, name in reversed(list(enumerate(names)))}
    positions = np.array([index[name] for name in vocabulary], dtype=np.int64)
    return Column(_mapped(positions, codes), names, named=True)


def _mapped(positions: Labels, codes: Labels) -> Labels:
    """``positions[codes]``, where -1 stays -1."""
    return np.append(positions, -1)[codes]


def names_in(metadata: dict[bytes, bytes], key: str, where: str) -> tuple[str, ...] | None:
    """The class names that ``metadata`` of the file ``where`` give for the column ``key``, in label order; ``None`` if
    they give none. Raises :class:`SourceError` for more than a limit.
    """
    names, lines = _features(metadata, key), metadata.get(b"classes")
    # A table of rayddl's has the names in both forms, and lines cannot hold every name.
    if lines is not None and (names is None or lines != "\n".join(names).encode()):
        names = names_of(lines)
    return None if names is None else _within_the_limit(names, where)


def _features(metadata: dict[bytes, bytes], key: str) -> list[str] | None:
    """The class names of the column ``key`` as Hugging Face's library stores them; ``None`` if there are none."""
    try:
        names = json_text.parse(metadata[b"huggingface"])["info"]["features"][key]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def names_of(data: bytes) -> list[str]:
    """The class names in a ``classes.txt``, a line each, without space around them and empty lines. Names that
    :func:`line_of` has written are as they were.
    """
    # What else Python takes for the end of a line may be part of a name.
    lines = (line.strip() for line in re.split(r"[\r\n]+", decoded(data)))
    return [_unquoted(line) for line in lines if line]


def line_of(name: str) -> str:
    """The line of ``classes.txt`` for the class ``name``: the name, or as JSON if that would be read as another one."""
    return name if names_of(name.encode()) == [name] else json.dumps(name)


def _unquoted(line: str) -> str:
    if not line.startswith('"'):
        return line
    try:
        name = json_text.parse(line.encode())
    except ValueError:
        return line
    # In files of others, quotes may be part of every name.
    return name if isinstance(name, str) and line_of(name) == line else line


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
    return tuple(
        sorted(found, key=lambda name: (0, int(name), name) if _DIGITS.fullmatch(name) else (1, 0, name))
    )


def whole(label: str) -> bool:
    """True if ``label`` is a whole number as it is written usually, up to 18 digits; ``007`` and ``1_1`` are text."""
    return _WHOLE.fullmatch(label) is not None


def refuse_mixed_types(columns: Mapping[str, Column]) -> None:
    """Raise :class:`SourceError` if files without class names, by name, store labels as numbers and as text."""
    kinds = {column.text: name for name, column in columns.items() if not column.named}
    if len(kinds) > 1:
        raise SourceError(
            f"labels are whole numbers in {kinds[False]} and text in {kinds[True]}, so that 7 and 007 could be one "
            "class or two. Store all labels as one type.",
            code="labels-of-mixed-types",
        )


def by_name(column: Column, names: tuple[str, ...], where: str) -> Labels:
    """The labels as indices into the source's class ``names``; ``where`` names the file.

    Raises :class:`SourceError` for a label that is not among them.
    """
    if column.vocabulary == names:
        return column.codes
    index = {name: position for position, name in enumerate(names)}
    used = [column.vocabulary[code] for code in np.unique(column.codes) if code >= 0]
    unknown = [name for name in used if name not in index]
    if unknown:
        raise SourceError(
            f"{where} has labels that are no class of the train split: {shown(unknown)}. The classes are: "
            f"{shown(names, 10)}.",
            code="labels-not-in-train",
        )
    positions = np.array([index.get(name, -1) for name in column.vocabulary], dtype=np.int64)
    return _mapped(positions, column.codes)
