"""Cells tables as CSV and Parquet: what is read, how compactly, and what is refused."""

from __future__ import annotations

import csv
import io
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from cvm_batch.archives.tables import cells as cells_table
from cvm_batch.archives.tables.cells import (
    CellsTable,
    TableKind,
    is_table_name,
    names_beside,
    parse_table,
)
from cvm_batch.errors import BadFormatError, OverLimitError

Columns = Mapping[str, Sequence[Any]]


def as_csv(columns: Columns) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()


def as_parquet(columns: Columns | pa.Table, **settings: Any) -> bytes:
    packed = io.BytesIO()
    table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    parquet.write_table(table, packed, **settings)
    return packed.getvalue()


WRITERS: dict[str, Callable[[Columns], bytes]] = {".csv": as_csv, ".parquet": as_parquet}
SUFFIXES = pytest.mark.parametrize("suffix", WRITERS)


def crops(data: bytes, suffix: str) -> CellsTable:
    return parse_table(data, f"a{suffix}", f"/s/a{suffix}", of=TableKind.CROPS)


def slide(data: bytes, suffix: str) -> CellsTable:
    return parse_table(data, f"a{suffix}", f"/s/a{suffix}", of=TableKind.SLIDE)


# Names


def test_a_table_may_have_these_names() -> None:
    beside_crops = names_beside("a.b", of=TableKind.CROPS)
    beside_slide = names_beside("a.b", of=TableKind.SLIDE)
    assert beside_crops == ("a.b.cells.parquet", "a.b.cells.csv")
    assert beside_slide == (*beside_crops, "a.b.cells.geojson", "a.b.geojson")
    assert all(map(is_table_name, (*beside_slide, "cells.csv", "cells.parquet")))
    assert not any(map(is_table_name, ("night.csv", "a.parquet", "cells.txt", "a.json")))


@pytest.mark.parametrize("name", ["a.txt", "a", "a.csv.gz", "a.geojson"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(BadFormatError, match="no cells table by its name"):
        parse_table(b"file\na.png\n", name, name, of=TableKind.CROPS)


def test_a_name_s_suffix_counts_in_any_case() -> None:
    assert len(crops(b"file\na.png\n", ".CSV")) == 1


# What is read

#: Text that a CSV can hold. "" is refused, a lone surrogate is no text.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
ROWS = st.lists(st.tuples(TEXTS, TEXTS, NUMBERS, NUMBERS), unique_by=lambda row: row[0], min_size=1)


@SUFFIXES
@given(rows=ROWS)
def test_crops_come_back_as_written(suffix: str, rows: list[Any]) -> None:
    files, ids, xs, ys = map(list, zip(*rows, strict=True))
    columns = {"y": ys, "file": files, "note": ids, "cell_id": ids, "x": xs}
    found = crops(WRITERS[suffix](columns), suffix)
    assert len(found) == len(rows)
    assert found.files is not None
    assert found.cell_ids is not None
    assert found.files.to_pylist() == files
    assert found.cell_ids.to_pylist() == ids
    np.testing.assert_array_equal(found.xy, np.array([xs, ys]).T)
    assert found.extent is None


@SUFFIXES
@given(
    rows=st.lists(
        st.tuples(NUMBERS, NUMBERS, *[st.floats(min_value=1e-3, max_value=1e9)] * 2),
        min_size=1,
        unique_by=lambda row: row[:2],
    )
)
def test_a_slide_s_cells_come_back_as_written(suffix: str, rows: list[Any]) -> None:
    columns = dict(zip(["x", "y", "width", "height"], zip(*rows, strict=True), strict=True))
    found = slide(WRITERS[suffix](columns), suffix)
    assert (found.files, found.cell_ids) == (None, None)
    np.testing.assert_array_equal(np.hstack([found.xy, found.extent]), np.array(rows))


@SUFFIXES
def test_a_cell_twice_at_one_place_is_refused(suffix: str) -> None:
    data = WRITERS[suffix]({"cell_id": ["a", "b", "c"], "x": [1, 5, 1], "y": [2, 2, 2]})
    with pytest.raises(BadFormatError, match="more than one cell at 1, 2, the first in data row 1"):
        slide(data, suffix)


@SUFFIXES
def test_a_slide_s_table_needs_no_images_and_crops_no_boxes(suffix: str) -> None:
    data = WRITERS[suffix](
        {"file": ["", ""], "x": [1, 2], "y": [3, 4], "width": [5, -1], "height": [0, 0]}
        if suffix == ".parquet"
        else {"file": ["", ""], "x": [1, 2], "y": [3, 4]}
    )
    if suffix == ".csv":
        assert slide(data, suffix).files is None
    with pytest.raises(BadFormatError, match="column 'file' has no value in data row 1"):
        crops(data, suffix)
    named = WRITERS[suffix]({"file": ["a", "b"], "width": [0, -1]})
    assert crops(named, suffix).extent is None


@SUFFIXES
def test_a_table_without_rows_has_no_cells(suffix: str) -> None:
    columns = {"file": pa.array([], pa.string()), "x": pa.array([], pa.float64())}
    columns["y"] = columns["x"]
    data = as_parquet(columns) if suffix == ".parquet" else b"file,x,y\n"
    assert len(crops(data, suffix)) == 0
    assert len(slide(data, suffix)) == 0
    assert slide(data, suffix).xy is not None


def test_what_pandas_writes() -> None:
    frame = pd.DataFrame({"file": ["a", "b"], "x": [1.5, 2.0], "y": [1, 2], "cell_id": [7, 8]})
    packed = io.BytesIO()
    frame.to_parquet(packed)
    for data, suffix in (
        (frame.to_csv(index=False).encode("utf-8-sig"), ".csv"),
        (frame.to_csv(index=False, lineterminator="\r\n").encode(), ".csv"),
        (packed.getvalue(), ".parquet"),
    ):
        found = crops(data, suffix)
        assert found.files is not None
        assert found.cell_ids is not None
        assert found.files.to_pylist() == ["a", "b"]
        assert found.cell_ids.to_pylist() == ["7", "8"]
        np.testing.assert_array_equal(found.xy, [[1.5, 1], [2, 2]])


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
)
@pytest.mark.parametrize("rows_in_group", [2, 100])
def test_every_kind_of_text_in_parquet(kind: pa.DataType, rows_in_group: int) -> None:
    names = ["b", "a", "d", "c", "e"]
    table = pa.table({"file": pa.array(names).cast(kind)})
    found = crops(as_parquet(table, row_group_size=rows_in_group), ".parquet").files
    assert isinstance(found, pa.LargeStringArray)
    assert found.to_pylist() == names


def test_columns_that_nobody_asks_for_may_hold_anything() -> None:
    assert len(crops(b"file,note\na.png,\xe9\n", ".csv")) == 1
    table = {"file": ["a"], "note": [{"of": [1, None]}], "x.y": [b"\xff"]}
    assert crops(as_parquet(table), ".parquet").xy is None


@SUFFIXES
def test_a_large_table_is_never_a_list_of_objects(suffix: str) -> None:
    count = 50_000
    data = WRITERS[suffix](
        {"file": [f"{i:020}.png" for i in range(count)], "x": range(count), "y": range(count)}
    )
    tracemalloc.start()
    found = crops(data, suffix)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == count
    # Coordinates as NumPy makes them, and nothing of the names.
    assert peak < 60 * count


# What is refused


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "cannot be read as a cells table: it is empty"),
        ("\n\n", "it is empty"),
        ("file", "cannot be read as a cells table"),
        ("name,x,y\na,1,2\n", "no column 'file'.*it has 'name', 'x', 'y'"),
        ("file,x\na,1\n", "one of the columns x and y"),
        ("file,note,note\na,1,1\n", "column 'note' twice"),
        ("file\na\nb\na\nb\n", "names 'a', 'b' more than once"),
        ("file,x,y\na,1,zwei\n", "cannot be read"),
        ("file,x,y\na,1,\n", "column 'y' has no value in data row 1"),
        ("file,x,y\na,1,2\nb,1,inf\n", "x or y of data row 2 is not finite"),
        ("file,x,y\na,1,1e999\n", "not finite"),
        ("file,x,y\na,1,nan\n", "column 'y' has no value"),
        ("file,x,y\na,1\n", "cannot be read"),
        ("file,cell_id\na,\n", "column 'cell_id' has no value"),
        ("\xff\xfe", "cannot be read"),
        ("file\n\xff\n", "cannot be read"),
        ('"file\na\n', "cannot be read"),
    ],
)
def test_a_senseless_csv(text: str, why: str) -> None:
    with pytest.raises(BadFormatError, match=why) as caught:
        crops(text.encode("latin-1"), ".csv")
    assert "/s/a.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("file\na\n", "no column 'x', which says where each nucleus lies"),
        ("x\n1\n", "no column 'y'"),
        ("x,y,width\n1,2,3\n", "one of the columns width and height"),
        ("x,y,width,height\n1,2,3,4\n1,2,3,0\n", "width or height of data row 2 is not above 0"),
        ("x,y,width,height\n1,2,-3,4\n", "data row 1 is not above 0"),
        ("x,y,width,height\n1,2,3,inf\n", "width or height of data row 1 is not finite"),
        ("x,y,width,height\n1,2,3,\n", "column 'height' has no value"),
    ],
)
def test_a_senseless_table_of_a_slide(text: str, why: str) -> None:
    with pytest.raises(BadFormatError, match=why):
        slide(text.encode(), ".csv")


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"file": [b"a"]}, "holds binary"),
        ({"file": [["a"]]}, "holds list"),
        ({"file": ["a", None]}, "no value in data row 2"),
        ({"file": ["a", ""]}, "no value in data row 2"),
        ({"file": ["a"], "x": ["1"], "y": ["2"]}, "not numbers"),
        ({"file": ["a"], "x": [True], "y": [True]}, "not numbers"),
        ({"file": ["a"], "x": [1.0], "y": [float("nan")]}, "not finite"),
        ({"file": ["a"], "x": [1.0], "y": [2**60 + 1]}, "cannot be read"),
        ({"file": ["a"], "cell_id": [1.5]}, "holds double"),
    ],
)
def test_a_senseless_parquet(columns: dict[str, list[Any]], why: str) -> None:
    with pytest.raises(BadFormatError, match=why):
        crops(as_parquet(columns), ".parquet")


def test_a_parquet_with_a_column_twice() -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["file", "file"])
    with pytest.raises(BadFormatError, match="'file' twice"):
        crops(as_parquet(table), ".parquet")


def test_text_in_parquet_that_is_not_utf_8() -> None:
    offsets, text = pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe")
    table = pa.table({"file": pa.StringArray.from_buffers(1, offsets, text)})
    for use_dictionary in (True, False):
        with pytest.raises(BadFormatError, match="UTF8"):
            crops(as_parquet(table, use_dictionary=use_dictionary), ".parquet")


def test_a_parquet_cut_short() -> None:
    whole = as_parquet({"file": ["a", "b"]})
    for damaged in (b"", whole[:-9], whole[:40], bytes(len(whole))):
        with pytest.raises(BadFormatError, match="cannot be read as a cells table"):
            crops(damaged, ".parquet")


# Limits


@pytest.mark.parametrize("limit", ["MAX_MEMBERS", "MAX_TABLE_BYTES"])
@pytest.mark.parametrize("suffix", [*WRITERS, ".geojson"])
def test_a_table_beyond_the_limits(
    suffix: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = (
        b'{"type":"Feature","geometry":{"type":"MultiPoint","coordinates":[[1,2],[3,4],[5,6]]}}'
    )
    columns = {"x": [1, 3, 5], "y": [2, 4, 6]}
    data = points if suffix == ".geojson" else WRITERS[suffix](columns)
    assert len(slide(data, suffix)) == 3
    monkeypatch.setattr(cells_table, limit, 2)
    with pytest.raises(OverLimitError, match=f"/s/a{suffix}"):
        slide(data, suffix)


@pytest.mark.parametrize("column", ["file", "cell_id"])
def test_a_small_parquet_with_gigabytes_of_text(column: str) -> None:
    """2,000 times one name of 200 kB, which takes a few kilobytes."""
    columns = {"file": [str(i) for i in range(2000)]} | {column: ["x" * 200_000] * 2000}
    data = as_parquet(columns)
    assert len(data) < 100_000
    with pytest.raises(OverLimitError, match="unpacks to 400000000 bytes"):
        crops(data, ".parquet")


def test_a_header_of_a_million_columns() -> None:
    with pytest.raises(BadFormatError):
        crops(b"file" + b",a" * 1_000_000 + b"\n", ".csv")
