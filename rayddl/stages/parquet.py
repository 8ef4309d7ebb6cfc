"""Small tables as Parquet files in a stage's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayddl.storage import Folder


def write(folder: Folder, name: str, columns: Mapping[str, Sequence[Any]], types: Mapping[str, str]) -> None:
    """Write ``columns`` as the Parquet file ``name``; ``types`` are Arrow type names, one a column."""
    schema = pa.schema([(column, pa.type_for_alias(types[column])) for column in columns])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(columns), schema=schema), sink)
    folder.write(name, sink.getvalue().to_pybytes())


def read(folder: Folder, name: str) -> dict[str, list[Any]]:
    """The columns of the Parquet file ``name``."""
    columns: dict[str, list[Any]] = pq.read_table(pa.BufferReader(folder.read(name))).to_pydict()
    return columns
