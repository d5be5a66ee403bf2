"""A results folder that is read again: what was damaged is found, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision
from cvm_batch.results.schemas import NAMES, SLIDES
from cvm_batch.results.verifying import verify_results
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings
from tests.archives.making import write_zip
from tests.archives.reading import flip_bit
from tests.conftest import coloured_tiles


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Path:
    """Results of two slides of 30 cells."""
    folder = tmp_path_factory.mktemp("night")
    for name in ("a.zip", "b.zip"):
        write_zip(folder / "slides" / name, coloured_tiles(range(30), seed=ord(name[0])))
    run(
        Settings(
            inputs=(str(folder / "slides"),),
            model=str(tiny_bundle.path),
            out=folder / "results",
            precision=Precision.FP32,
            executor=ExecutorKind.LOCAL,
        )
    )
    return folder / "results"


@pytest.fixture
def results(whole: Path, tmp_path: Path) -> Path:
    """Without the audit log, which finds all changes alike (test_audit.py)."""
    path = shutil.copytree(whole, tmp_path / "results")
    shutil.rmtree(path / "audit")
    manifest = a_file(path, "runs/*.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"audit": None}))
    return path


def test_a_whole_folder_adds_up(whole: Path) -> None:
    found = verify_results(whole)
    assert (found.runs, found.slides, found.cells) == (1, 2, 60)
    assert found.findings == ()


def a_file(results: Path, pattern: str) -> Path:
    return sorted(results.glob(pattern))[0]


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.ParquetFile(path).read()), path)


def as_type(table: pa.Table, column: str, kind: pa.DataType) -> pa.Table:
    at = table.column_names.index(column)
    return table.set_column(at, table.field(at).with_type(kind), table[column].cast(kind))


def drop_last_row(table: pa.Table) -> pa.Table:
    return table.slice(0, table.num_rows - 1)


def repeat_first_row(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 1), table.slice(0, table.num_rows - 1)])


def reclassify(table: pa.Table) -> pa.Table:
    """The same number of cells, of other classes."""
    at = table.column_names.index("class")
    classes = table["class"].cast(pa.string()).to_pylist()
    rotated = pa.array(["NILM" if name != "NILM" else "SCC" for name in classes])
    return table.set_column(at, "class", rotated.cast(table["class"].type))


def cells_of_a(results: Path) -> Path:
    rows = pq.ParquetFile(a_file(results, "slides/**/*.parquet")).read().to_pylist()
    (name,) = (row["cells_files"][0] for row in rows if row["slide_id"] == "a.zip")
    return results / name


def split_off_a(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The cells of a.zip, and of what may share its file."""
    mine = pc.equal(table["slide_id"].cast(pa.string()), "a.zip")
    return table.filter(mine), table.filter(pc.invert(mine))


def rewrite_a(results: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    def change_a(table: pa.Table) -> pa.Table:
        mine, others = split_off_a(table)
        return pa.concat_tables([change(mine).cast(table.schema), others])

    rewrite(cells_of_a(results), change_a)


def renumber(table: pa.Table) -> pa.Table:
    """The last cell is one that the slide does not have."""
    at = table.column_names.index("index")
    return table.set_column(at, table.schema.field(at), pa.array([*range(29), 30]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (renumber, "expects 30 cells of 'a.zip'; its cells files hold one beyond"),
        (drop_last_row, "counts 30 cells of 'a.zip'; its cells files hold 29"),
        (repeat_first_row, "hold a cell twice"),
        (reclassify, "counts the classes of 'a.zip' otherwise"),
    ],
)
def test_cells_that_do_not_add_up_are_found(
    results: Path, change: Callable[[pa.Table], pa.Table], told: str
) -> None:
    rewrite_a(results, change)
    (finding,) = verify_results(results).findings
    assert told in finding.what


@pytest.mark.parametrize(
    "pattern", ["slides/**/*.parquet", "cells/**/*.parquet", "tops/**/*.parquet"]
)
def test_no_flipped_bit_changes_a_row_unnoticed(results: Path, pattern: str) -> None:
    path = a_file(results, pattern)
    whole, truth, rng = path.read_bytes(), pq.read_table(path), np.random.default_rng(0)
    found = 0
    for _ in range(60):
        flip_bit(path, rng)
        if verify_results(results).findings:
            found += 1
        else:  # in what Parquet does not protect: statistics, the name of its writer
            assert pq.read_table(path).equals(truth)
        path.write_bytes(whole)
    assert found >= 20


@pytest.mark.parametrize("pattern", ["cells/**/*.parquet", "tops/**/*.parquet", "runs/*.json"])
def test_a_file_that_is_gone_is_found(results: Path, pattern: str) -> None:
    a_file(results, pattern).unlink()
    assert verify_results(results).findings


def test_a_slide_with_two_rows_in_a_run_is_found(results: Path) -> None:
    batch = a_file(results, "slides/**/*.parquet")
    shutil.copy(batch, batch.with_name("again.parquet"))
    found = verify_results(results).findings
    assert {finding.what for finding in found} == {
        f"the slide {name!r} has 2 rows of run {a_file(results, 'runs/*.json').stem}"
        for name in ("a.zip", "b.zip")
    }


def test_a_manifest_that_is_cut_short_is_found(results: Path) -> None:
    manifest = a_file(results, "runs/*.json")
    manifest.write_bytes(manifest.read_bytes()[:-20])
    (finding,) = verify_results(results).findings
    assert finding.path == f"runs/{manifest.name}"


def set_of_a(results: Path, **values: Any) -> None:
    """Other values in the row of a.zip; it has no page checksums any more."""
    path = a_file(results, "slides/**/*.parquet")
    rows = pq.ParquetFile(path).read().to_pylist(maps_as_pydicts="strict")
    changed = [row | values if row["slide_id"] == "a.zip" else row for row in rows]
    pq.write_table(pa.Table.from_pylist(changed, schema=SLIDES), path)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"cells_expected": 31}, "expects 31 cells of 'a.zip', of which 30 are classified and 0"),
        ({"cells_expected": 31, "cells_unreadable": 1}, "calls 'a.zip' complete, though 1 cells"),
        ({"cells_expected": None}, "does not say how many cells of 'a.zip' are expected"),
        ({"status": "fine"}, "gives 'a.zip' the status 'fine'"),
        ({"cells_files": [None]}, "has nulls in the column 'cells_files'"),
    ],
)
def test_rows_that_do_not_add_up_are_found(
    results: Path, values: dict[str, Any], told: str
) -> None:
    set_of_a(results, **values)
    (finding,) = verify_results(results).findings
    assert told in finding.what


def test_a_cell_in_two_files_is_found(results: Path) -> None:
    """The counts add up, as a part was counted twice."""
    cells = cells_of_a(results)
    again = shutil.copy(cells, cells.with_name("again.parquet"))
    rewrite(again, lambda table: split_off_a(table)[0].slice(15, 10))
    rewrite_a(results, lambda table: table.slice(0, 20))
    set_of_a(results, cells_files=[str(path.relative_to(results)) for path in (cells, again)])
    (finding,) = verify_results(results).findings
    assert finding.what == "names cells files of 'a.zip' that hold a cell twice"


@pytest.mark.parametrize(
    ("pattern", "columns"),
    [
        ("slides/**/*.parquet", ["run_id", "slide_id", "status", "cells_files", "tops_files"]),
        ("slides/**/*.parquet", ["cells_expected", "class_counts", "cells_unreadable"]),
        ("cells/**/*.parquet", ["slide_id", "index", "class"]),
    ],
)
def test_a_column_that_is_missing_is_found(results: Path, pattern: str, columns: list[str]) -> None:
    path = a_file(results, pattern)
    whole = path.read_bytes()
    for column in columns:
        rewrite(path, lambda table, column=column: table.drop_columns([column]))
        found = [finding.what for finding in verify_results(results).findings]
        assert any(f"does not have one column {column!r}" in what for what in found)
        path.write_bytes(whole)


@pytest.mark.parametrize("column", ["run_id", "slide_id", "status", "cells_files", "tops_files"])
def test_a_column_of_nulls_is_found(results: Path, column: str) -> None:
    def clear(table: pa.Table) -> pa.Table:
        at = table.column_names.index(column)
        nothing = pa.nulls(table.num_rows, table.schema.field(at).type)
        return table.set_column(at, column, nothing)

    rewrite(a_file(results, "slides/**/*.parquet"), clear)
    (finding,) = verify_results(results).findings
    assert finding.what == f"has nulls in the column {column!r}"


def test_tables_of_the_first_version_are_whole(results: Path) -> None:
    later = {"slides": ["priority", "preparation", "listed"], "cells": ["padded"]}
    for folder, columns in later.items():
        for path in results.glob(f"{folder}/**/*.parquet"):
            rewrite(path, lambda table, columns=columns: table.drop_columns(columns))
    for path in [*results.glob("cells/**/*.parquet"), *results.glob("tops/**/*.parquet")]:
        rewrite(path, lambda table: as_type(table, "slide_id", NAMES))
    assert verify_results(results).findings == ()


@pytest.mark.parametrize(
    ("pattern", "column", "kind"),
    [
        ("cells/**/*.parquet", "class", pa.string()),
        ("cells/**/*.parquet", "cell_id", NAMES),
        ("slides/**/*.parquet", "run_id", NAMES),
    ],
)
def test_a_column_of_another_type_is_found(
    results: Path, pattern: str, column: str, kind: pa.DataType
) -> None:
    rewrite(a_file(results, pattern), lambda table: as_type(table, column, kind))
    findings = verify_results(results).findings
    assert findings
    for finding in findings:
        assert f"has a column {column!r} of {kind}, as no version has" in finding.what


def test_results_without_a_manifest_do_not_add_up(tmp_path: Path) -> None:
    (finding,) = verify_results(tmp_path).findings
    assert (finding.path, finding.what) == ("runs", "holds no manifest of a run")
