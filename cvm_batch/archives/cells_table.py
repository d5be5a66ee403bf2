"""The cells table: which image is which cell, and where its nucleus lies.

Columns: ``file`` (a member's name, each once), and optionally ``cell_id`` and ``x`` with
``y`` (level-0 pixels). A given column has a value in every row. Others are not looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv, parquet

from cvm_batch.archives.limits import MAX_MEMBERS, MAX_TABLE_BYTES
from cvm_batch.errors import BadFormatError, OverLimitError

#: Names of a table inside a folder or a zip.
INSIDE_NAMES = ("cells.parquet", "cells.csv")
_SUFFIXES = (".cells.parquet", ".cells.csv")
_TEXT_COLUMNS = ("file", "cell_id")
_NUMBER_COLUMNS = ("x", "y")


@dataclass(frozen=True)
class CellsTable:
    """The rows of a table, in its order."""

    files: list[str]
    cell_ids: list[str] | None
    xy: NDArray[np.float64] | None
    """Nucleus centres [n, 2] in level-0 pixels."""


def tables_beside(archive: Path) -> tuple[Path, ...]:
    """Where the table of ``archive`` could be beside it: ``<stem>.cells.parquet`` or ``.csv``.

    A folder's stem is its whole name, dots and all.
    """
    stem = archive.name if archive.is_dir() else archive.stem
    return tuple(archive.with_name(stem + suffix) for suffix in _SUFFIXES)


def is_table(path: Path) -> bool:
    return path.name.endswith(_SUFFIXES) or path.name in INSIDE_NAMES


def parse_table(data: bytes, name: str, where: str) -> CellsTable:
    """Read a table; ``name`` says by its suffix what it is, ``where`` is for messages.

    Raises BadFormatError or OverLimitError.
    """
    read = _read_parquet if name.endswith(".parquet") else _read_csv
    try:
        table = read(data, where)
    except (pa.ArrowException, OSError) as error:
        # OSError: Arrow's word for a file that is not what it should be; nothing is read
        # from a disk here.
        raise BadFormatError(
            f"{where} cannot be read as a cells table: {error}. Export it again."
        ) from error
    return _checked(table, where)


def _read_csv(data: bytes, where: str) -> pa.Table:
    types = dict.fromkeys(_TEXT_COLUMNS, pa.string()) | dict.fromkeys(_NUMBER_COLUMNS, pa.float64())
    table = csv.read_csv(
        BytesIO(data),
        read_options=csv.ReadOptions(use_threads=False),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=types),
    )
    _check_rows(table.num_rows, where)
    return table


def _read_parquet(data: bytes, where: str) -> pa.Table:
    file = parquet.ParquetFile(BytesIO(data))
    _check_rows(file.metadata.num_rows, where)
    groups = range(file.metadata.num_row_groups)
    unpacked = sum(file.metadata.row_group(group).total_byte_size for group in groups)
    if unpacked > MAX_TABLE_BYTES:
        raise OverLimitError(
            f"{where} unpacks to {unpacked} bytes, more than the {MAX_TABLE_BYTES} of a cells "
            "table. Leave out columns other than file, cell_id, x and y."
        )
    wanted = {*_TEXT_COLUMNS, *_NUMBER_COLUMNS}
    present = [name for name in file.schema_arrow.names if name in wanted]
    return file.read(columns=present, use_threads=False)


def _check_rows(rows: int, where: str) -> None:
    if rows > MAX_MEMBERS:
        raise OverLimitError(
            f"{where} has {rows} rows, more than the {MAX_MEMBERS} cells that a slide of "
            "crops may have. Split the slide, or pack it."
        )


def _checked(table: pa.Table, where: str) -> CellsTable:
    if repeated := [name for name, count in Counter(table.column_names).items() if count > 1]:
        raise BadFormatError(f"{where} has the column {repeated[0]!r} twice. Remove one.")
    if "file" not in table.column_names:
        raise BadFormatError(
            f"{where} has no column 'file', which names the image of each cell; its columns "
            f"are {', '.join(map(repr, table.column_names))}. Rename or add it."
        )
    if ("x" in table.column_names) != ("y" in table.column_names):
        raise BadFormatError(f"{where} has one of the columns x and y. Give both or none.")
    files = _texts(table, "file", where)
    if repeated := [name for name, count in Counter(files).items() if count > 1]:
        raise BadFormatError(
            f"{where} names {named(repeated)} more than once: a cell would count twice. "
            "Keep one row for each image."
        )
    return CellsTable(
        files=files,
        cell_ids=_texts(table, "cell_id", where) if "cell_id" in table.column_names else None,
        xy=_coordinates(table, where) if "x" in table.column_names else None,
    )


def _texts(table: pa.Table, name: str, where: str) -> list[str]:
    column = _filled(table, name, where)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
    ):
        raise BadFormatError(f"{where}: column {name!r} holds {kind}. Write it as text.")
    texts: list[str] = column.cast(pa.string()).to_pylist()
    if "" in texts:
        raise _empty(where, name, texts.index(""))
    return texts


def _coordinates(table: pa.Table, where: str) -> NDArray[np.float64]:
    xy = np.empty((table.num_rows, 2))
    for axis, name in enumerate(_NUMBER_COLUMNS):
        column = _filled(table, name, where)
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            raise BadFormatError(f"{where}: column {name!r} holds {column.type}, not numbers.")
        xy[:, axis] = column.cast(pa.float64()).to_numpy()
    finite = np.isfinite(xy).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise BadFormatError(
            f"{where}: x or y of data row {row + 1} is not finite. Correct the coordinate, or "
            "leave both columns out."
        )
    return xy


def _filled(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    column = table.column(name)
    if column.null_count:
        raise _empty(where, name, pc.index(column.is_null(), pa.scalar(True)).as_py())
    return column


def _empty(where: str, name: str, row: int) -> BadFormatError:
    return BadFormatError(
        f"{where}: column {name!r} has no value in data row {row + 1}. Fill it in, or leave "
        "the column out."
    )


def named(names: Iterable[str], most: int = 3) -> str:
    """Some names for a message: the first few, and how many more there are."""
    listed = list(names)
    text = ", ".join(map(repr, listed[:most]))
    return text if len(listed) <= most else f"{text} and {len(listed) - most} more"
