"""A night of slides, one of them damaged: what must stand in its row, and in the others'."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cvm_batch.errors import ExitCode, Reason
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision
from cvm_batch.results.schemas import Status
from cvm_batch.screening.executor import Executor
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings
from cvm_batch.screening.summary import Progress
from tests.archives.making import Cells, write_zip
from tests.conftest import coloured_tiles

CELLS = 12
#: A whole slide beside the damaged one, which must not suffer.
NEIGHBOUR = "neighbour.zip"


@dataclass(frozen=True)
class Expected:
    """What the catalogue of faults demands of the damaged slide."""

    status: Status
    reason: Reason | None
    exit_code: ExitCode = ExitCode.NOT_ALL_COMPLETE


def slide_of(count: int = CELLS, *, side: int = 40, seed: int = 0) -> Cells:
    """A slide whose cells go through all classes in turn."""
    tiles = coloured_tiles([n % 11 for n in range(count)], side=side, seed=seed)
    xy = tiles.reshape(count, -1)[:, :2].astype(float) + 1000
    return Cells(tiles, xy, [f"cell-{n}" for n in range(count)])


class Night:
    """A folder of slides and its results."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.slides = folder / "slides"
        self.results = folder / "results"
        self._bundle = bundle
        write_zip(self.slides / NEIGHBOUR, slide_of(seed=99).tiles)

    def submit(
        self,
        *inputs: str | Path,
        executor: Executor | None = None,
        report: Callable[[Progress], None] = lambda progress: None,
        **settings: Any,
    ) -> Submitted:
        """Screen the whole folder, or only ``inputs``; in this process unless told otherwise."""
        usual = {
            "inputs": tuple(map(str, inputs or [self.slides])),
            "model": str(self._bundle.path),
            "out": self.results,
            "precision": Precision.FP32,
            "executor": ExecutorKind.LOCAL,
        }
        summary = run(Settings(**usual | settings), executor=executor, report=report)
        table = pq.read_table(self.results / "slides", partitioning=None).sort_by("finished_at")
        rows = {row["slide_id"]: row for row in table.to_pylist(maps_as_pydicts="strict")}
        return Submitted(summary.exit_code, rows)


@dataclass(frozen=True)
class Submitted:
    exit_code: ExitCode
    rows: Mapping[str, Mapping[str, Any]]
    """Each slide's newest row."""

    def assert_ends(self, slide_id: str, expected: Expected) -> Mapping[str, Any]:
        """The damaged slide's row is as it must be, and so are its neighbours'."""
        row = self.rows[slide_id]
        assert (row["status"], row["reason"]) == (expected.status, expected.reason), row["detail"]
        assert self.exit_code is expected.exit_code
        if expected.status is not Status.COMPLETE:
            assert row["class_counts"] is row["group_counts"] is row["abnormal_count"] is None
            assert row["detail"]
        if expected.status is Status.FAILED:
            assert row["counts_at_least"] is None
            assert row["cells_classified"] == 0
        neighbour = self.rows[NEIGHBOUR]
        assert neighbour["status"] == Status.COMPLETE
        assert sum(neighbour["class_counts"].values()) == CELLS
        return row
