"""Adds up one part: counts, quality, per-cell rows and the most suspicious cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.archive import TileBlock
from cvm_batch.errors import NonFiniteOutputError, Reason, SlideError
from cvm_batch.results.cells import CellColumns, FoundCells
from cvm_batch.screening.quality import Quality
from cvm_batch.screening.work import (
    FAULTS_TOLD,
    TOP_CELLS,
    Failure,
    Part,
    PartOutcome,
    QualitySums,
)
from cvm_batch.tiles import Tiles

#: Of a cell's row, and its share of the objects around it.
_CELL_BYTES = 200


@dataclass(frozen=True)
class ReadableTiles:
    """The readable tiles of a block, with their quality figures; n tiles."""

    tiles: Tiles
    index: NDArray[np.int64]
    xy: NDArray[np.float64]
    """[n, 2], NaN where unknown."""
    cell_id: Sequence[str | None]
    padded: NDArray[np.bool_]
    quality: Quality

    def __len__(self) -> int:
        return len(self.index)

    def slice(self, start: int, stop: int) -> ReadableTiles:
        rows = slice(start, stop)
        return ReadableTiles(
            self.tiles[rows],
            self.index[rows],
            self.xy[rows],
            self.cell_id[rows],
            self.padded[rows],
            self.quality.take(rows),
        )

    def copy(self) -> ReadableTiles:
        """With tiles in memory of their own."""
        if isinstance(self.tiles, np.ndarray):
            return replace(self, tiles=self.tiles.copy())
        return replace(self, tiles=[tile.copy() for tile in self.tiles])


class PartTally:
    """One part in the making. Not safe for several threads at once."""

    def __init__(self, part: Part, classes: int, primary: Sequence[int]) -> None:
        """``primary``: the output columns that make up the primary group, or none."""
        self.part = part
        self.failure: Failure | None = None
        self.integrity: str | None = None
        self.seconds = 0.0
        self.device_seconds = 0.0
        self._primary = list(primary)
        self._counts = np.zeros(classes, np.int64)
        self._rows: list[CellColumns] = []
        self._unreadable = 0
        self._missing = 0
        self._fault_details: list[str] = []
        self._quality = QualitySums()
        self._top_rows: CellColumns | None = None
        self._top_tiles: list[NDArray[np.uint8]] = []

    def fail(self, error: SlideError) -> None:
        """Give the part up; the first cause counts."""
        self.failure = self.failure or Failure.of(error)
        self.forget()

    def note_unreadable(self, block: TileBlock) -> None:
        self._unreadable += int(len(block) - block.readable.sum())
        for _, fault in sorted(block.faults.items()):
            self._missing += fault.reason is Reason.MISSING_TILES
            if len(self._fault_details) < FAULTS_TOLD:
                self._fault_details.append(fault.detail)

    def add(self, tiles: ReadableTiles, probabilities: NDArray[np.float32]) -> None:
        """Count tiles whose class probabilities [n, classes] are known."""
        if self.failure is not None:
            return
        finite = np.isfinite(probabilities).all(axis=1)
        if not finite.all():
            self.fail(self._non_finite(int(tiles.index[~finite][0])))
            return
        best = probabilities.argmax(axis=1)
        self._counts += np.bincount(best, minlength=len(self._counts))
        confidence = probabilities[np.arange(len(best)), best]
        self._quality += QualitySums(
            float(confidence.sum(dtype=np.float64)),
            float(tiles.quality.brightness.sum(dtype=np.float64)),
            float(np.square(tiles.quality.brightness, dtype=np.float64).sum()),
            float(tiles.quality.focus.sum(dtype=np.float64)),
        )
        rows = CellColumns(
            index=tiles.index,
            cell_id=tiles.cell_id,
            xy=tiles.xy,
            padded=tiles.padded,
            probabilities=probabilities,
            p_primary=probabilities[:, self._primary].sum(axis=1) if self._primary else None,
        )
        self._rows.append(rows)
        self._keep_tops(rows, tiles.tiles)

    @property
    def complete(self) -> bool:
        """Whether all tiles of the part are accounted for; then it changes no more."""
        accounted = int(self._counts.sum()) + self._unreadable
        return self.failure is None and accounted == len(self.part)

    @property
    def held_bytes(self) -> int:
        """About what waits here to be written."""
        return sum(tile.nbytes for tile in self._top_tiles) + _CELL_BYTES * int(self._counts.sum())

    def found(self) -> FoundCells | None:
        """The part's cells; None where none was classified, or the part failed."""
        if self.failure is not None or not self._rows:
            return None
        return FoundCells(
            slide_id=self.part.slide.slide_id,
            cells=_in_order(CellColumns.concatenate(self._rows)),
            tops=self._top_rows,
            top_tiles=self._top_tiles,
        )

    def outcome(
        self, *, cells_file: str | None = None, tops_file: str | None = None
    ) -> PartOutcome:
        """What is told of the part. The files: where what was found has been written."""
        if self.failure is not None:
            return PartOutcome(
                part=self.part,
                failure=self.failure,
                seconds=self.seconds,
                device_seconds=self.device_seconds,
            )
        classified = int(self._counts.sum())
        if classified + self._unreadable != len(self.part):
            raise AssertionError(
                f"{self.part}: {classified} classified and {self._unreadable} unreadable tiles"
            )
        return PartOutcome(
            part=self.part,
            class_counts=tuple(int(count) for count in self._counts),
            classified=classified,
            unreadable=self._unreadable,
            missing=self._missing,
            fault_details=tuple(self._fault_details),
            top_scores=tuple(_scores(self._top_rows)),
            top_classes=tuple(_classes(self._top_rows)),
            quality=self._quality,
            integrity=self.integrity,
            cells_file=cells_file,
            tops_file=tops_file,
            seconds=self.seconds,
            device_seconds=self.device_seconds,
        )

    def forget(self) -> None:
        """Let go of cells and tiles: they are written and told, or of no use."""
        self._rows = []
        self._top_rows = None
        self._top_tiles = []

    def _keep_tops(self, rows: CellColumns, tiles: Tiles) -> None:
        if rows.p_primary is None:
            return
        candidates = np.argsort(-rows.p_primary, kind="stable")[:TOP_CELLS]
        if len(self._top_tiles) == TOP_CELLS:
            worst = _scores(self._top_rows)[-1]
            candidates = candidates[rows.p_primary[candidates] >= worst]
        if not len(candidates):
            return
        found = rows.take(candidates)
        # Copies: a view would keep the whole decoded block alive.
        found_tiles = [tiles[i].copy() for i in candidates]
        if self._top_rows is not None:
            found = CellColumns.concatenate([self._top_rows, found])
            found_tiles = self._top_tiles + found_tiles
        # Equal scores go by index, so that the choice does not depend on how parts fell.
        assert found.p_primary is not None
        order = np.lexsort((found.index, -found.p_primary))[:TOP_CELLS]
        self._top_rows = found.take(order)
        self._top_tiles = [found_tiles[i] for i in order]

    def _non_finite(self, index: int) -> NonFiniteOutputError:
        return NonFiniteOutputError(
            f"The model returned NaN or infinity for tile {index} of {self.part.slide.uri}. "
            "Submit again with --precision fp32; if it stays, report the tile."
        )


def _in_order(cells: CellColumns) -> CellColumns:
    """By index: batches do not come in the order of their tiles."""
    if (np.diff(cells.index) > 0).all():
        return cells
    return cells.take(np.argsort(cells.index))


def _scores(rows: CellColumns | None) -> list[float]:
    if rows is None or rows.p_primary is None:
        return []
    scores: list[float] = rows.p_primary.tolist()
    return scores


def _classes(rows: CellColumns | None) -> list[int]:
    """The most probable of each cell."""
    if rows is None:
        return []
    classes: list[int] = rows.probabilities.argmax(axis=1).tolist()
    return classes
