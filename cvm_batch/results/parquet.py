"""Tables as the content of Parquet files. Without numpy, which questions do without."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_bytes(table: pa.Table, **options: Any) -> memoryview:
    """``table`` as the content of a Parquet file; ``options`` as `write_table` has them."""
    sink = pa.BufferOutputStream()
    # Page checksums: pyarrow and DuckDB tell damage from data only where they are written.
    pq.write_table(table, sink, **{"compression": "zstd", **options}, write_page_checksum=True)
    return memoryview(sink.getvalue())
