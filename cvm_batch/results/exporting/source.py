"""What exports of one slide are made of: its newest row, its cells, its model's classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from cvm_batch.errors import ResultsError
from cvm_batch.results.reading import Results
from cvm_batch.results.schemas import Status

#: Of the most suspicious cells, so many make a slide's score.
_TOP_CELLS = 20


@dataclass(frozen=True)
class SlideResult:
    """One slide as its newest row has it."""

    results: Results
    row: Mapping[str, Any]

    @classmethod
    def find(cls, results: Results, slide_id: str) -> SlideResult:
        """Raises ResultsError where no row names the slide."""
        found = results.query("FROM slides WHERE slide_id = ?", [slide_id])
        for row in found.to_pylist(maps_as_pydicts="strict"):
            return cls(results, row)
        raise ResultsError(
            f"The results hold no slide {slide_id!r}. Give its slide_id exactly, as the JSON of "
            "`cvm-batch query` shows it."
        )

    @property
    def slide_id(self) -> str:
        return str(self.row["slide_id"])

    @property
    def cells_files(self) -> Sequence[str]:
        files: Sequence[str] = self.row["cells_files"]
        return files

    @property
    def tops_files(self) -> Sequence[str]:
        files: Sequence[str] = self.row["tops_files"]
        return files

    def cells(self) -> pa.Table:
        """All classified cells, by index. Raises ResultsError, also of a failed slide."""
        self._check_not_failed()
        return self.results.cells_of(self)

    def top_cells(self) -> pa.Table:
        """The most suspicious cells without their tiles, the worst first. Raises ResultsError."""
        self._check_not_failed()
        if not self.tops_files:
            raise ResultsError(
                f"No top cells of {self.slide_id!r} are kept: its model has no primary group. "
                "Export all cells."
            )
        return self.results.tops_of(self).drop_columns(["png"])[:_TOP_CELLS]

    @property
    def class_names(self) -> Sequence[str]:
        names: Sequence[str] = self._bundle["class_names"]
        return names

    def classes_of(self, group: str) -> Sequence[str]:
        """The classes of a group. Raises ResultsError where the model does not define it."""
        groups: Mapping[str, Sequence[str]] = self._bundle["groups"]
        if group not in groups:
            known = ", ".join(groups) or "none"
            raise ResultsError(
                f"The model {self.row['bundle']} defines no group {group!r}; it defines: {known}."
            )
        return groups[group]

    @cached_property
    def _bundle(self) -> Mapping[str, Any]:
        """The model as the run's manifest has it."""
        run_id = self.row["run_id"]
        found = self.results.query("SELECT manifest FROM runs WHERE run_id = ?", [run_id])
        for manifest in found["manifest"].to_pylist():
            bundle: Mapping[str, Any] = json.loads(manifest)["bundle"]
            return bundle
        raise ResultsError(
            f"The run {run_id} has no manifest, which says what the classes of "
            f"{self.slide_id!r} are. Copy runs/{run_id}.json back from a backup."
        )

    def _check_not_failed(self) -> None:
        if self.row["status"] == Status.FAILED:
            raise ResultsError(
                f"{self.slide_id!r} failed ({self.row['reason']}): no cell of it is known."
            )
