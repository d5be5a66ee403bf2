"""Slides and cells as tables without maps and lists, as spreadsheets know none."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc


def flat_slides(slides: pa.Table) -> pa.Table:
    """A column for each name in a map, as ``class_counts.HSIL``; lists of files are left out."""
    columns: list[tuple[str, pa.ChunkedArray | pa.Array]] = []
    for field, column in zip(slides.schema, slides.columns, strict=True):
        if pa.types.is_map(field.type):
            columns += _columns_of(field, column)
        elif not pa.types.is_list(field.type):
            columns.append((field.name, column))
    return _table(columns)


def flat_cells(cells: pa.Table, class_names: Sequence[str]) -> pa.Table:
    """A column of probabilities for each class, as ``p.HSIL``; top cells come without these."""
    columns = [(name, cells[name]) for name in cells.column_names if name != "probabilities"]
    if "probabilities" in cells.column_names:
        columns += [
            (f"p.{name}", pc.list_element(cells["probabilities"], at))
            for at, name in enumerate(class_names)
        ]
    return _table(columns)


def _columns_of(field: pa.Field, column: pa.ChunkedArray) -> list[tuple[str, pa.Array]]:
    rows = column.to_pylist(maps_as_pydicts="strict")
    names = sorted({name for row in rows for name in row or ()})
    return [
        (
            f"{field.name}.{name}",
            pa.array([(row or {}).get(name) for row in rows], field.type.item_type),
        )
        for name in names
    ]


def _table(columns: Sequence[tuple[str, pa.ChunkedArray | pa.Array]]) -> pa.Table:
    return pa.table([column for _, column in columns], names=[name for name, _ in columns])
