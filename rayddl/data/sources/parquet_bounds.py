"""Opens Parquet files with bounded numbers of rows, and reads columns in portions of bounded size."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from rayddl import limits
from rayddl.errors import SourceError

ROWS_AT_ONCE = 512
FEW_ROWS = 1_000_000
"""Rows that a file of any size may have."""
PORTION_BYTES = 160 * 2**20
"""Bytes of images that a portion holds at most, apart from one cell above :data:`limits.CELL_BYTES`. Three times as
many may be in memory: of a portion in use, of the next one, and of rows that are decoded for it.
"""


def opened(stream: pa.NativeFile, where: str) -> pq.ParquetFile:
    """Open a Parquet file, named ``where`` in messages; reads its footer only.

    Raises :class:`SourceError` for more rows than a limit or than the file has bytes, and Arrow's errors.
    """
    file = reader(stream)
    rows, size = file.metadata.num_rows, int(stream.size())
    if rows > limits.ROWS.value:
        raise SourceError(f"{where} has {limits.ROWS.exceeded(rows, 'rows')}.", code="parquet-too-many-rows")
    if rows > max(size, FEW_ROWS):
        raise SourceError(
            f"{where} has {rows:,} rows in {size:,} bytes, less than a byte each; they cannot all be images. Write it "
            "again with the rows that have one.",
            code="parquet-too-many-rows",
        )
    return file


def reader(stream: pa.NativeFile) -> pq.ParquetFile:
    """Open a Parquet file of any number of rows. Raises Arrow errors, also for columns whose names are not UTF-8."""
    try:
        return pq.ParquetFile(stream)
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid(f"the name of a column is not UTF-8: {error}") from error


def type_of(schema: pa.Schema, name: str, where: str) -> pa.DataType:
    """Return the type of a column. Raises ``KeyError`` if there is none, :class:`SourceError` for several of a name."""
    many = schema.names.count(name)
    if many > 1:
        raise SourceError(
            f"{where} has {many} columns named {name!r}. Write it again with one.",
            code="parquet-column-repeated",
        )
    return schema.field(name).type


def holds_images(type_: pa.DataType) -> bool:
    """True for a column of encoded images: their bytes, or a struct of their bytes and, if given, paths."""
    if not pa.types.is_struct(type_):
        return _is_bytes(type_)
    fields = {field.name: field.type for field in type_}
    path = _plain(fields.get("path", pa.null()))
    # Cells with two fields of one name cannot be read.
    return (
        len(fields) == type_.num_fields
        and _is_bytes(fields.get("bytes", pa.null()))
        and (pa.types.is_null(path) or _is_text(path))
    )


def holds_labels(type_: pa.DataType) -> bool:
    """True for a column of whole numbers or text, also as a dictionary."""
    return bool(pa.types.is_integer(_plain(type_)) or _is_text(_plain(type_)))


def _plain(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _is_bytes(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def labels(file: pq.ParquetFile, stream: pa.NativeFile, column: str, where: str) -> pa.ChunkedArray:
    """The column of labels, text as a dictionary, so that equal labels are held once.

    Raises :class:`SourceError` for more bytes than a limit, and Arrow's errors.
    """
    _refuse_large(file.metadata, column, where)
    # Arrow reads a column as a dictionary only if the file is opened for that.
    stream.seek(0)
    found = pq.ParquetFile(stream, metadata=file.metadata, read_dictionary=[column])
    values: pa.ChunkedArray = found.read(columns=[column]).column(column)
    refuse_other_rows(len(values), file.metadata, column)
    return values


def refuse_other_rows(found: int, metadata: pq.FileMetaData, column: str) -> None:
    """Raise Arrow's error if a column has more or fewer rows than the file says."""
    # Arrow compares the columns that are read together, and does not count the rows of one that is read alone.
    if found != metadata.num_rows:
        raise pa.ArrowInvalid(
            f"column {column!r} has {found:,} rows, and the file says {metadata.num_rows:,}"
        )


def _refuse_large(metadata: pq.FileMetaData, column: str, where: str) -> None:
    held = sum(each.total_uncompressed_size for each in _chunks(metadata, column))
    if held > limits.LABEL_BYTES.value:
        raise SourceError(
            f"{where}: column {column!r} has {limits.LABEL_BYTES.exceeded(held, 'bytes')}.",
            code="labels-too-large",
        )


def values(metadata: pq.FileMetaData, column: str) -> int:
    """The number of values in a column, with those in its lists."""
    return sum(each.num_values for each in _chunks(metadata, column))


def batches(file: pq.ParquetFile, column: str, most: int = ROWS_AT_ONCE) -> Iterator[pa.ChunkedArray]:
    """Yield a column in portions of up to ``most`` rows, with fewer if they are large. Raises Arrow's errors, also for
    more or fewer rows than the file says.

    A dictionary stores equal cells once, so a small file can hold large cells many times: few rows are decoded at
    once where cells may be large.
    """
    at_once, count = rows_at_once(file.metadata, column, most=most), 0
    for part in portions(file.iter_batches(at_once, columns=[column]), at_once, most):
        count += len(part)
        if count > file.metadata.num_rows:
            break
        yield part
    refuse_other_rows(count, file.metadata, column)


def portions(
    found: Iterable[pa.RecordBatch], at_once: int, most: int = ROWS_AT_ONCE
) -> Iterator[pa.ChunkedArray]:
    """The first column of batches of up to ``at_once`` rows, in portions of up to ``most``, or fewer large ones."""
    held: list[pa.Array] = []
    rows = size = 0
    for batch in found:
        part = batch.column(0)
        if held and size + part.nbytes > PORTION_BYTES:
            yield pa.chunked_array(held)
            held, rows, size = [], 0, 0
        held.append(part)
        rows, size = rows + len(part), size + part.nbytes
        if rows + at_once > most:
            yield pa.chunked_array(held)
            held, rows, size = [], 0, 0
    if held:
        yield pa.chunked_array(held)


def rows_at_once(
    metadata: pq.FileMetaData, column: str, group: int | None = None, most: int = ROWS_AT_ONCE
) -> int:
    """Rows of ``column`` that are decoded at once, up to ``most``; of one row group, or of all."""
    largest = max((each.total_uncompressed_size for each in _chunks(metadata, column, group)), default=1)
    if largest > limits.CELL_BYTES.value:  # a cell may be as large, and is refused once it is decoded
        return 1
    return int(max(1, min(most, PORTION_BYTES // max(1, largest))))


def _chunks(
    metadata: pq.FileMetaData, column: str, group: int | None = None
) -> Iterator[pq.ColumnChunkMetaData]:
    groups = range(metadata.num_row_groups) if group is None else [group]
    _refuse_broken(metadata, column, groups)
    for place in range(metadata.num_columns):
        if metadata.schema.column(place).path.split(".")[0] == column:
            for number in groups:
                yield metadata.row_group(number).column(place)


class _NoData(io.BufferedIOBase):
    """A file none of whose bytes can be read: ``read`` is that of the base class, which refuses.

    Arrow keeps the error as long as the file. One that is raised by Python code would hold the frames of all callers,
    and through them the file, which so would never be freed.
    """

    _at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (2**62 if whence == io.SEEK_END else self._at if whence == io.SEEK_CUR else 0)
        return self._at

    def tell(self) -> int:
        return self._at


def _refuse_broken(metadata: pq.FileMetaData, column: str, groups: Sequence[int]) -> None:
    """Raise Arrow's error if what the footer says of a column contradicts itself.

    Arrow checks that when it looks a part of the column up, and ends the process where a program asks for the part, but
    raises an error where it begins to read, which is also before the first byte of data.
    """
    file = pq.ParquetFile(_NoData(), metadata=metadata, pre_buffer=True)
    try:
        file.read_row_groups(groups, columns=[column], use_threads=False)
    except io.UnsupportedOperation as error:
        error.__traceback__ = None  # it would hold this frame, see _NoData
