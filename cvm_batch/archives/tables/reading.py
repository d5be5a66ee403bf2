"""Tables in CSV or Parquet: what cells tables and manifests have in common."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from cvm_batch.errors import BadFormatError, OverLimitError

#: The names of the columns of a CSV stand in so many bytes; Arrow asks the same of them.
_HEADER_BYTES = 1 << 20
_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


@contextmanager
def reading_table(where: str, kind: str) -> Iterator[None]:
    """Turn what the libraries say of a damaged table into BadFormatError.

    ``kind`` is for messages, ``a cells table``.
    """
    try:
        yield
    except (pa.ArrowException, OSError, RuntimeError, csv.Error, UnicodeDecodeError) as error:
        # OSError: Arrow's word for a file that is not what it should be; nothing is read
        # from a disk here. RuntimeError: what its Parquet reader throws at some metadata.
        raise BadFormatError(
            f"{where} cannot be read as {kind}: {error}. Export it again, a CSV as UTF-8."
        ) from error


def csv_rows(data: bytes, delimiter: str, *, strict: bool = True) -> Iterator[list[str]]:
    """All rows of a CSV in UTF-8, the header first; blank lines are empty rows.

    ``strict``: quotes in the wrong place are an error. Raises csv.Error or
    UnicodeDecodeError.
    """
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    # A space after the delimiter would hide the quote that opens a value.
    return csv.reader(text, delimiter=delimiter, skipinitialspace=True, strict=strict)


def csv_header(data: bytes) -> list[str]:
    """The names of the columns of a CSV. Raises csv.Error or UnicodeDecodeError."""
    # No further line is decoded: columns that nobody asks for may hold anything.
    lines = (found[0].decode("utf-8-sig") for found in _LINE.finditer(data, 0, _HEADER_BYTES))
    for row in csv.reader(lines, strict=True):
        if row:
            return row
    raise csv.Error("it is empty")


def check_columns(names: Sequence[str], where: str) -> None:
    """Raise BadFormatError where two columns share a name."""
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise BadFormatError(f"{where} has the column {repeated[0]!r} twice. Remove one.")


def check_rows(rows: int, most: int, where: str) -> None:
    if rows > most:
        raise OverLimitError(
            f"{where} has {rows} rows, more than the {most} it may have. Split it."
        )


def parquet_columns(
    data: bytes,
    where: str,
    *,
    wanted: Collection[str] | None = None,
    most_rows: int,
    most_bytes: int,
) -> Mapping[str, pa.ChunkedArray]:
    """Columns by name, in the table's order: those ``wanted`` that are there, or all.

    Columns of text are dictionary-encoded: a file of some kilobytes may repeat a long text
    a million times. Raises BadFormatError, OverLimitError or pa.ArrowException.
    """
    file = parquet.ParquetFile(pa.BufferReader(data))
    names = file.schema_arrow.names
    check_columns(names, where)
    check_rows(file.metadata.num_rows, most_rows, where)
    _check_groups(file.metadata, where)
    present = [name for name in names if wanted is None or name in wanted]
    unpacked = _unpacked_bytes(file.metadata, present, most_bytes)
    if unpacked > most_bytes:
        raise _too_large(unpacked, most_bytes, where)
    texts = [name for name in present if is_text(file.schema_arrow.field(name).type)]
    file = parquet.ParquetFile(pa.BufferReader(data), read_dictionary=texts)
    table = file.read(columns=present, use_threads=False)
    return dict(zip(table.column_names, table.columns, strict=True))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def as_text(column: pa.ChunkedArray, most_bytes: int, where: str) -> pa.LargeStringArray:
    """A column as text, whatever it holds.

    Raises OverLimitError, or pa.ArrowException where it cannot be written as text.
    """
    column.validate(full=True)  # Parquet does not warrant that text is UTF-8
    if is_text(column.type) and (size := _text_bytes(column)) > most_bytes:
        raise _too_large(size, most_bytes, where)
    return column.cast(pa.large_string()).combine_chunks()


def _text_bytes(column: pa.ChunkedArray) -> int:
    total = 0
    for chunk in column.chunks:
        if isinstance(chunk, pa.DictionaryArray):
            lengths = pc.binary_length(chunk.dictionary).take(chunk.indices)
        else:
            lengths = pc.binary_length(chunk)
        total += pc.sum(lengths.cast(pa.int64())).as_py() or 0
    return total


def _check_groups(metadata: parquet.FileMetaData, where: str) -> None:
    """Refuse groups of other rows than the file's: Arrow makes room for what they say."""
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if min(groups, default=0) < 0 or sum(groups) != metadata.num_rows:
        raise BadFormatError(
            f"{where} says it has {metadata.num_rows} rows, and its parts say {sum(groups)}: it is "
            "damaged. Export it again."
        )


def _unpacked_bytes(metadata: parquet.FileMetaData, names: Collection[str], most: int) -> int:
    """Of some columns; of all where those are not too many.

    Damaged metadata of a column may end the process (pyarrow does not catch what its
    constructor throws), so that it is asked for only where it matters.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    total: int = sum(group.total_byte_size for group in groups)
    if total <= most:
        return total
    columns = (group.column(at) for group in groups for at in range(group.num_columns))
    return sum(
        column.total_uncompressed_size
        for column in columns
        if column.path_in_schema in names or column.path_in_schema.split(".")[0] in names
    )


def _too_large(size: int, most: int, where: str) -> OverLimitError:
    return OverLimitError(
        f"{where} unpacks to {size} bytes, more than the {most} that such a table may have. "
        "Leave out columns that are not needed, or split it."
    )
