"""The top cells of one slide after the other, of many slides, without a database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cvm_batch.errors import ResultsError
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.reading import NamesFiles
from cvm_batch.results.schemas import TOPS


def tops_of_each(results: ResultsFolder, slides: Sequence[NamesFiles]) -> Iterator[pa.Table]:
    """As `Results.tops_of`, of each of them in turn; holds all their files in memory.

    On object storage the files are read at once. Raises ResultsError where one is damaged.
    """
    names = list(dict.fromkeys(file for slide in slides for file in slide.tops_files))
    contents = zip(names, results.read_all(names), strict=True)
    tables = {name: _table(results, name, data) for name, data in contents}
    for slide in slides:
        pieces = [tables[name] for name in slide.tops_files]
        # A file may hold cells of several slides.
        mine = [piece.filter(pc.equal(piece["slide_id"], slide.slide_id)) for piece in pieces]
        table = pa.concat_tables(mine) if mine else _PLAIN.empty_table()
        yield table.sort_by([("p_primary", "descending"), ("index", "ascending")])


def _plain(field: pa.Field) -> pa.Field:
    """Without a dictionary, which each file has another of."""
    known = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return pa.field(field.name, known)


_PLAIN = pa.schema([_plain(field) for field in TOPS])


def _table(results: ResultsFolder, name: str, data: bytes | None) -> pa.Table:
    """Columns that a file of an earlier version lacks are null."""
    if data is None:
        raise ResultsError(f"{results}/{name} is gone: copy it back from a backup.")
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            table = file.read()
        lacking = [field for field in _PLAIN if field.name not in table.column_names]
        for field in lacking:
            table = table.append_column(field, pa.nulls(len(table), field.type))
        return table.select(_PLAIN.names).cast(_PLAIN)
    except (pa.ArrowException, OSError, RuntimeError, ValueError) as error:
        raise ResultsError(
            f"{results}/{name} cannot be read: {error}. `cvm-batch verify {results}` tells what "
            "else is damaged; copy the file back from a backup."
        ) from error
