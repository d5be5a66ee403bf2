"""Tables as the content of Parquet files. Without numpy, which questions do without."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_bytes(
    table: pa.Table, *, row_groups: Sequence[int] | None = None, **options: Any
) -> memoryview:
    """``table`` as the content of a Parquet file; ``options`` as `ParquetWriter` has them.

    ``row_groups``: the rows of each row group, one after the other; they sum to the table's.
    """
    sink = pa.BufferOutputStream()
    # Page checksums: pyarrow and DuckDB tell damage from data only where they are written.
    options = {"compression": "zstd", **options, "write_page_checksum": True}
    with pq.ParquetWriter(sink, table.schema, **options) as writer:
        start = 0
        # Equal ones in one call, as a night of small slides has them.
        for rows, alike in groupby([len(table)] if row_groups is None else row_groups):
            end = start + rows * len(list(alike))
            writer.write_table(table.slice(start, end - start), row_group_size=rows or None)
            start = end
    return memoryview(sink.getvalue())
