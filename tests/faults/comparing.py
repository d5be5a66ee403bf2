"""Results of one night, read as any reader would: what must be equal, and what may differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cvm_batch.results.schemas import Status

#: Columns in which two runs over the same slides differ, however undisturbed they are.
MAY_DIFFER = frozenset(
    {"run_id", "started_at", "finished_at", "seconds", "attempts", "cells_files", "tops_files"}
)
#: Batches fall differently, and with them the last bits of what the network returns.
PROBABILITY_TOLERANCE = 1e-3
SUSPICIOUS = 20


@dataclass(frozen=True)
class Found:
    """What stands of one slide."""

    row: Mapping[str, Any]
    cells: pa.Table
    """By index."""
    tops: list[float]
    """The most suspicious cells' primary-group probabilities, the highest first."""


def rows_of(results: Path) -> list[dict[str, Any]]:
    """All rows of the slides table, the oldest first."""
    batches = [
        pq.read_table(path, partitioning=None)
        for path in sorted((results / "slides").rglob("*.parquet"))
    ]
    if not batches:
        return []
    table = pa.concat_tables(batches).sort_by("finished_at")
    return list(table.to_pylist(maps_as_pydicts="strict"))


def read_night(results: Path) -> dict[str, Found]:
    """Each slide's only row, and its cells.

    Asserts that each row is complete and alone, and that the files that it names are there
    and hold each of its cells once.
    """
    found: dict[str, Found] = {}
    for row in rows_of(results):
        slide = row["slide_id"]
        assert slide not in found, f"two rows of {slide}"
        assert row["status"] == Status.COMPLETE, (slide, row["reason"], row["detail"])
        cells = _read(results, row["cells_files"], slide).sort_by("index")
        assert cells["index"].to_pylist() == list(range(row["cells_expected"])), slide
        assert len(cells) == row["cells_classified"] == sum(row["class_counts"].values()), slide
        tops = _read(results, row["tops_files"], slide)["p_primary"].to_pylist()
        found[slide] = Found(row, cells, sorted(tops, reverse=True)[:SUSPICIOUS])
    return found


def assert_equal(found: Mapping[str, Found], expected: Mapping[str, Found]) -> None:
    """One night's results are another's: all columns but times, attempts and names of files."""
    assert found.keys() == expected.keys()
    for slide, one in found.items():
        other = expected[slide]
        assert _plain(one.row) == {
            name: pytest.approx(value, abs=PROBABILITY_TOLERANCE)
            if isinstance(value, float)
            else value
            for name, value in _plain(other.row).items()
        }, slide
        assert one.tops == pytest.approx(other.tops, abs=PROBABILITY_TOLERANCE), slide
        for name in ("slide_id", "cell_id", "x", "y", "padded", "class"):
            assert one.cells[name].to_pylist() == other.cells[name].to_pylist(), (slide, name)
        apart = np.abs(_probabilities(one.cells) - _probabilities(other.cells))
        assert apart.max() <= PROBABILITY_TOLERANCE, slide


def assert_tidy(results: Path) -> None:
    """Nothing half-written stays, and nothing that only means something while a run runs."""
    assert not list((results / ".tmp").iterdir())
    assert not [path for path in (results / "runs").iterdir() if path.suffix != ".json"]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in MAY_DIFFER}


def _read(results: Path, names: list[str], slide_id: str) -> pa.Table:
    mine = [("slide_id", "==", slide_id)]
    return pa.concat_tables(
        [pq.read_table(results / name, partitioning=None, filters=mine) for name in names],
        promote_options="default",
    ).unify_dictionaries()


def _probabilities(cells: pa.Table) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(cells["probabilities"].to_pylist(), np.float32)
