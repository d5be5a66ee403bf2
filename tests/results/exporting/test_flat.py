"""Slides and cells for spreadsheets: what is in the tables, and nothing that one would run."""

from __future__ import annotations

import csv
import io
from datetime import datetime

import pandas as pd
import pyarrow as pa
import pytest

from cvm_batch.cli import tables
from cvm_batch.cli.tables import as_csv
from cvm_batch.results.exporting.flat import flat_cells, flat_slides
from cvm_batch.results.exporting.source import SlideResult
from cvm_batch.results.reading import Results
from cvm_batch.results.schemas import SLIDES
from tests.results.nights import CELLS, HOSTILE


def written(table: pa.Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(as_csv(table), newline="")))


def cells_of(results: Results, slide: str) -> pa.Table:
    found = SlideResult.find(results, slide)
    return flat_cells(found.cells(), found.class_names)


def test_every_slide_is_a_line_with_its_counts(results: Results) -> None:
    table = results.table("slides")
    lines, rows = written(flat_slides(table)), table.to_pylist(maps_as_pydicts="strict")
    assert len(lines) == len(rows) == 7
    for line, row in zip(lines, rows, strict=True):
        assert line["status"] == row["status"]
        counts = row["class_counts"] or {}
        for name in ("HSIL", "NILM"):
            assert line[f"class_counts.{name}"] == str(counts.get(name, ""))
        assert datetime.fromisoformat(line["finished_at"]) == row["finished_at"]
        assert line["slide_score"] == (
            "" if row["slide_score"] is None else str(row["slide_score"])
        )
    empty = {"counts_at_least", "group_counts_at_least"}  # no slide is incomplete
    plain = set(SLIDES.names) - {"cells_files", "tops_files"} - empty
    assert plain == {name.partition(".")[0] for name in lines[0] if not name.startswith("'")}


def test_no_text_is_a_formula(results: Results) -> None:
    slides = written(flat_slides(results.table("slides")))
    cells = written(cells_of(results, HOSTILE[0]))
    for line in [*slides, *cells]:
        for text in (*line.keys(), *line.values()):
            try:
                float(text)
            except ValueError:
                assert not text.startswith(tuple("=+-@\t\r\n")), text
    assert cells[0]["cell_id"] == "'=cell <0>"
    listed = next(line for line in slides if line["slide_id"] == "'@listed")
    assert listed["listed.=ward"] == "'+1"


def test_every_cell_is_a_line_with_its_probabilities(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", 7)
    found = SlideResult.find(results, HOSTILE[2])
    frame = pd.read_csv(io.StringIO(as_csv(cells_of(results, HOSTILE[2]))))
    assert frame["index"].tolist() == list(range(CELLS))
    assert frame["class"].value_counts().to_dict() == {
        name: count for name, count in found.row["class_counts"].items() if count
    }
    probabilities = frame[[f"p.{name}" for name in found.class_names]]
    assert probabilities.sum(axis=1).tolist() == pytest.approx([1.0] * CELLS, abs=1e-5)
    best = [name.removeprefix("p.") for name in probabilities.idxmax(axis=1)]
    assert best == frame["class"].tolist()


def test_top_cells_have_no_probabilities(results: Results) -> None:
    found = SlideResult.find(results, HOSTILE[0])
    lines = written(flat_cells(found.top_cells(), found.class_names))
    assert len(lines) == 20
    assert not any(name.startswith("p.") for name in lines[0])


def test_no_slides_are_a_header() -> None:
    (header,) = as_csv(flat_slides(SLIDES.empty_table())).splitlines()
    assert header.startswith("schema_version,run_id,slide_id,uri,")
