"""Opens Parquet files with bounded numbers of rows, and reads columns in portions of bounded size."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from rayddl import limits
from rayddl.errors import SourceError

ROWS_AT_ONCE = 512
FEW_ROWS = 1_000_000
"""Rows that a file of any size may have."""
PORTION_BYTES = 256 * 2**20
"""Bytes of images that are held at once, about."""


def opened(stream: pa.NativeFile, where: str) -> pq.ParquetFile:
    """Open a Parquet file, named ``where`` in messages; reads its footer only.

    Raises :class:`SourceError` for more rows than a limit or than the file has bytes, and Arrow's errors.
    """
    file = pq.ParquetFile(stream)
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


def batches(file: pq.ParquetFile, column: str, most: int = ROWS_AT_ONCE) -> Iterator[pa.ChunkedArray]:
    """Yield a column in portions of up to ``most`` rows, with fewer if they are large. Raises Arrow's errors.

    A dictionary stores equal cells once, so a small file can hold large cells many times: few rows are decoded at
    once where cells may be large.
    """
    at_once = max(1, min(most, PORTION_BYTES // max(1, _largest_cell(file, column))))
    held: list[pa.Array] = []
    for batch in file.iter_batches(at_once, columns=[column]):
        held.append(batch.column(0))
        if sum(map(len, held)) + at_once > most or sum(each.nbytes for each in held) >= PORTION_BYTES:
            yield pa.chunked_array(held)
            held = []
    if held:
        yield pa.chunked_array(held)


def _largest_cell(file: pq.ParquetFile, column: str) -> int:
    """Bytes that one cell of ``column`` has at most."""
    metadata = file.metadata
    places = [
        i for i in range(metadata.num_columns) if metadata.schema.column(i).path.split(".")[0] == column
    ]
    chunks = [
        metadata.row_group(group).column(place).total_uncompressed_size
        for group in range(metadata.num_row_groups)
        for place in places
    ]
    return min(max(chunks, default=1), limits.CELL_BYTES.value)
