"""Tables of the results folder as single files: read, or written again without a slide."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cvm_batch.errors import ResultsError
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.parquet import parquet_bytes


def read_table(results: ResultsFolder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file, or some of its columns. Raises ResultsError where it is damaged or gone."""
    try:
        buffer = pa.BufferReader(results.read(name))
        with pq.ParquetFile(buffer, page_checksum_verification=True) as file:
            return file.read(columns=columns and list(columns))
    except (pa.ArrowException, OSError, RuntimeError, ValueError) as error:
        raise _unreadable(results, name, error) from error


def slides_in(results: ResultsFolder, name: str) -> set[str]:
    """The slides of which a file holds cells; reads no more than their names where it can.

    Raises ResultsError where it is damaged or gone.
    """
    try:
        with (
            results.filesystem.open_input_file(results.path_of(name)) as opened,
            pq.ParquetFile(opened, page_checksum_verification=True) as file,
        ):
            names = file.read(columns=["slide_id"])["slide_id"]
    except (pa.ArrowException, OSError, RuntimeError, ValueError, KeyError) as error:
        raise _unreadable(results, name, error) from error
    return set(pc.unique(names.cast(pa.string())).to_pylist())


def rewrite_without(results: ResultsFolder, name: str, slide_id: str) -> None:
    """Leave the slide's rows out of a file. Raises ResultsError, CommitError."""
    table = read_table(results, name)
    at = table.column_names.index("slide_id")
    # A dictionary, as files of earlier versions have one, would still list the slide.
    names = table.field(at).with_type(pa.string())
    table = table.set_column(at, names, table["slide_id"].cast(names.type))
    left = table.filter(pc.not_equal(table["slide_id"], slide_id))
    results.replace(name, parquet_bytes(left, row_groups=_runs(left["slide_id"])))


def _runs(column: pa.ChunkedArray) -> list[int]:
    """Lengths of what is equal in a row: a slide's cells stay a row group of their own."""
    ends = pc.run_end_encode(column.combine_chunks()).run_ends.to_pylist()
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _unreadable(results: ResultsFolder, name: str, error: Exception) -> ResultsError:
    return ResultsError(
        f"{results}/{name} cannot be read: {error}. `cvm-batch verify {results}` tells what "
        "else is damaged; copy the file back from a backup."
    )
