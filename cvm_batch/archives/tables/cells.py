"""The cells table: which cells a slide has, where they lie, and which image is which.

Columns of a table about crops: ``file`` (a member's name, each once), and optionally
``cell_id`` and ``x`` with ``y``. Of a table about a whole slide: ``x`` and ``y``, and
optionally ``cell_id`` and ``width`` with ``height``, of a box around the cell. All numbers
are level-0 pixels, ``x`` and ``y`` those of the nucleus' centre. A given column has a
value in every row. Others are not looked at. A whole slide's table may also be GeoJSON.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import PurePath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from cvm_batch.archives.limits import MAX_MEMBERS, MAX_TABLE_BYTES
from cvm_batch.archives.tables.geojson import read_geojson
from cvm_batch.archives.tables.reading import (
    as_text,
    check_columns,
    check_rows,
    csv_header,
    is_text,
    parquet_columns,
    reading_table,
)
from cvm_batch.errors import BadFormatError, OverLimitError

#: Names of a table inside a folder, a zip or a tar.
INSIDE_NAMES = ("cells.parquet", "cells.csv")
_CROPS_SUFFIXES = (".cells.parquet", ".cells.csv")
#: The last is how QuPath names what it exports.
_SLIDE_SUFFIXES = (*_CROPS_SUFFIXES, ".cells.geojson", ".geojson")


class TableKind(Enum):
    """What a table is about."""

    CROPS = auto()
    SLIDE = auto()


_TEXT_COLUMNS = {TableKind.CROPS: ("file", "cell_id"), TableKind.SLIDE: ("cell_id",)}
_NUMBER_COLUMNS = {TableKind.CROPS: ("x", "y"), TableKind.SLIDE: ("x", "y", "width", "height")}
_NEEDED = {
    TableKind.CROPS: {"file": "names the image of each cell"},
    TableKind.SLIDE: dict.fromkeys("xy", "says where each nucleus lies"),
}


@dataclass(frozen=True, eq=False)
class CellsTable:
    """The rows of a table, in its order."""

    files: pa.LargeStringArray | None
    """Name of each crop, each once; None in a table about a whole slide."""
    cell_ids: pa.LargeStringArray | None
    xy: NDArray[np.float64] | None
    """Nucleus centres [n, 2] in level-0 pixels; never None in a table about a whole slide."""
    extent: NDArray[np.float64] | None
    """Width and height of a box around each cell [n, 2] in level-0 pixels."""

    def __len__(self) -> int:
        rows = self.xy if self.files is None else self.files
        assert rows is not None
        return len(rows)


def names_beside(stem: str, *, of: TableKind) -> tuple[str, ...]:
    """How a table beside a slide may be named, of which ``stem`` is the name's stem."""
    suffixes = _CROPS_SUFFIXES if of is TableKind.CROPS else _SLIDE_SUFFIXES
    return tuple(stem + suffix for suffix in suffixes)


def is_table_name(name: str) -> bool:
    return name.endswith(_SLIDE_SUFFIXES) or name in INSIDE_NAMES


def parse_table(data: bytes, name: str, where: str, *, of: TableKind) -> CellsTable:
    """Read a table; ``name`` says by its suffix what it is, ``where`` is for messages.

    Raises BadFormatError or OverLimitError.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix not in (".parquet", ".csv") and (suffix, of) != (".geojson", TableKind.SLIDE):
        raise BadFormatError(
            f"{where} is no cells table by its name, which must end in .parquet or .csv, or, "
            "of a whole slide, .geojson. Export it as one of them."
        )
    if len(data) > MAX_TABLE_BYTES:
        raise OverLimitError(
            f"{where} has {len(data)} bytes, more than the {MAX_TABLE_BYTES} of a cells table. "
            "Leave out measurements and columns that are not needed."
        )
    if suffix == ".geojson":
        found = read_geojson(data, where, most_cells=MAX_MEMBERS)
        table = CellsTable(None, found.cell_ids, found.xy, found.extent)
    else:
        with reading_table(where, "a cells table"):
            columns = (_parquet if suffix == ".parquet" else _csv)(data, where, of)
            table = _checked(columns, where, of)
    if of is TableKind.SLIDE:
        _check_distinct(table, where)
    return table


Columns = Mapping[str, pa.ChunkedArray]


def _csv(data: bytes, where: str, of: TableKind) -> Columns:
    names = csv_header(data)
    check_columns(names, where)
    _check_needed(names, where, of)
    types = dict.fromkeys(_TEXT_COLUMNS[of], pa.large_string())
    types |= dict.fromkeys(_NUMBER_COLUMNS[of], pa.float64())
    table = csv.read_csv(
        pa.BufferReader(data),
        read_options=csv.ReadOptions(use_threads=False),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types=types, include_columns=[name for name in names if name in types]
        ),
    )
    check_rows(table.num_rows, MAX_MEMBERS, where)
    return dict(zip(table.column_names, table.columns, strict=True))


def _parquet(data: bytes, where: str, of: TableKind) -> Columns:
    wanted = (*_TEXT_COLUMNS[of], *_NUMBER_COLUMNS[of])
    columns = parquet_columns(
        data, where, wanted=wanted, most_rows=MAX_MEMBERS, most_bytes=MAX_TABLE_BYTES
    )
    _check_needed(columns, where, of)
    return columns


def _check_needed(names: Collection[str], where: str, of: TableKind) -> None:
    for needed, what in _NEEDED[of].items():
        if needed not in names:
            raise BadFormatError(
                f"{where} has no column {needed!r}, which {what}; it has "
                f"{named(names) if names else 'no column that counts'}. Rename or add it."
            )
    for one, other in (("x", "y"), ("width", "height")):
        if one in _NUMBER_COLUMNS[of] and (one in names) != (other in names):
            raise BadFormatError(
                f"{where} has one of the columns {one} and {other}. Give both or none."
            )


def _check_distinct(table: CellsTable, where: str) -> None:
    """Refuse a cell at the same place twice, as where an export was appended to itself."""
    assert table.xy is not None
    places, first, counts = np.unique(table.xy, axis=0, return_index=True, return_counts=True)
    if len(places) < len(table.xy):
        x, y = places[np.argmax(counts > 1)].tolist()
        raise BadFormatError(
            f"{where} has more than one cell at {x:g}, {y:g}, the first in data row "
            f"{int(first[np.argmax(counts > 1)]) + 1}: it would count twice. Remove one."
        )


def _checked(columns: Columns, where: str, of: TableKind) -> CellsTable:
    files = _texts(columns, "file", where) if of is TableKind.CROPS else None
    if files is not None:
        counts = pc.value_counts(files)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        if len(repeated):
            raise BadFormatError(
                f"{where} names {named(repeated.to_pylist())} more than once: a cell would count "
                "twice. Keep one row for each image."
            )
    extent = _pairs(columns, "width", "height", where) if "width" in columns else None
    if extent is not None and not (extent > 0).all():
        row = int(np.argmin((extent > 0).all(axis=1)))
        raise BadFormatError(
            f"{where}: width or height of data row {row + 1} is not above 0. Correct the box, or "
            "leave both columns out."
        )
    return CellsTable(
        files=files,
        cell_ids=_texts(columns, "cell_id", where) if "cell_id" in columns else None,
        xy=_pairs(columns, "x", "y", where) if "x" in columns else None,
        extent=extent,
    )


def _texts(columns: Columns, name: str, where: str) -> pa.LargeStringArray:
    column = _filled(columns, name, where)
    if not (is_text(column.type) or pa.types.is_integer(column.type)):
        raise BadFormatError(f"{where}: column {name!r} holds {column.type}. Write it as text.")
    texts = as_text(column, MAX_TABLE_BYTES, where)
    empty = pc.index(texts, pa.scalar("", pa.large_string())).as_py()
    if empty >= 0:
        raise _empty(where, name, empty)
    return texts


def _pairs(columns: Columns, one: str, other: str, where: str) -> NDArray[np.float64]:
    """Two columns of numbers side by side, [n, 2]."""
    pairs = np.stack([_numbers(columns, name, where) for name in (one, other)], axis=1)
    finite = np.isfinite(pairs).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise BadFormatError(
            f"{where}: {one} or {other} of data row {row + 1} is not finite. Correct it, or leave "
            "both columns out."
        )
    return pairs


def _numbers(columns: Columns, name: str, where: str) -> NDArray[np.float64]:
    column = _filled(columns, name, where)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise BadFormatError(f"{where}: column {name!r} holds {column.type}, not numbers.")
    numbers: NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
    return numbers


def _filled(columns: Columns, name: str, where: str) -> pa.ChunkedArray:
    column = columns[name]
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
