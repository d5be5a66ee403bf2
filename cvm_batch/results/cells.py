"""The per-cell tables, written by the replicas: a file for one or several parts of a lease."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.parquet import parquet_bytes
from cvm_batch.results.png import png_files
from cvm_batch.results.schemas import TOPS, cells_schema

#: The columns with a dictionary. One of numbers that hardly ever repeat takes three times as
#: long to write as the numbers, and half as much room again.
_REPEATING = ["slide_id", "class"]
_MANY_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class CellColumns:
    """Classified cells of one part, column by column; n rows."""

    index: NDArray[np.int64]
    cell_id: Sequence[str | None]
    xy: NDArray[np.float64]
    """[n, 2] level-0 pixels, NaN where unknown."""
    padded: NDArray[np.bool_]
    """[n] tiles that reach beyond the slide's border."""
    probabilities: NDArray[np.float32]
    """[n, classes] in the bundle's class order."""
    p_primary: NDArray[np.float32] | None
    """[n], or None where the bundle has no primary group."""

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: NDArray[np.int64]) -> CellColumns:
        return CellColumns(
            index=self.index[rows],
            cell_id=[self.cell_id[row] for row in rows],
            xy=self.xy[rows],
            padded=self.padded[rows],
            probabilities=self.probabilities[rows],
            p_primary=None if self.p_primary is None else self.p_primary[rows],
        )

    @classmethod
    def concatenate(cls, pieces: Sequence[CellColumns]) -> CellColumns:
        """Join at least one piece; all have, or all lack, ``p_primary``."""
        p_primary = [piece.p_primary for piece in pieces if piece.p_primary is not None]
        return cls(
            index=np.concatenate([piece.index for piece in pieces]),
            cell_id=[value for piece in pieces for value in piece.cell_id],
            xy=np.concatenate([piece.xy for piece in pieces]),
            padded=np.concatenate([piece.padded for piece in pieces]),
            probabilities=np.concatenate([piece.probabilities for piece in pieces]),
            p_primary=np.concatenate(p_primary) if p_primary else None,
        )


@dataclass(frozen=True, kw_only=True)
class FoundCells:
    """What was found in one part of a slide."""

    slide_id: str
    cells: CellColumns
    """By index; at least one."""
    tops: CellColumns | None
    """The most suspicious of them, k rows; None where the bundle has no primary group."""
    top_tiles: Sequence[NDArray[np.uint8]]
    """[k] of [h, w, 3]."""


class PartFiles:
    """Writes the cells and tops of parts of one run, several parts to a file.

    A file for each would cost a part of a hundred cells more than its classification. Each part
    is a row group, so that one slide's cells are read without the others'.
    """

    def __init__(self, results: ResultsFolder, run: RunName, class_names: Sequence[str]) -> None:
        self._results = results
        self._run = run
        self._class_names = list(class_names)

    def write_cells(self, name: str, found: Sequence[FoundCells]) -> str:
        """Commit the cells of at least one part; return the file's path in the results folder."""
        classes = len(self._class_names)
        pieces = [one.cells for one in found]
        cells = CellColumns.concatenate(pieces)
        columns = self._columns(found, pieces, cells)
        flat = pa.array(cells.probabilities.reshape(-1), pa.float32())
        columns["probabilities"] = pa.FixedSizeListArray.from_arrays(flat, classes)
        table = pa.table(columns, schema=cells_schema(classes))
        return self._publish(self._run.cells_folder / name, table, pieces)

    def write_tops(self, name: str, found: Sequence[FoundCells]) -> str | None:
        """Commit the parts' most suspicious cells with their tiles; None where they have none."""
        pieces = [one.tops for one in found if one.tops is not None]
        if not pieces:
            return None
        columns = self._columns(found, pieces, CellColumns.concatenate(pieces))
        tiles = [tile for one in found for tile in one.top_tiles]
        columns["png"] = png_files(tiles)
        return self._publish(self._run.tops_folder / name, pa.table(columns, schema=TOPS), pieces)

    def _columns(
        self, found: Sequence[FoundCells], pieces: Sequence[CellColumns], cells: CellColumns
    ) -> dict[str, pa.Array]:
        """``pieces``: of each that was found, in turn; ``cells``: all of them."""
        n = len(cells)
        best = cells.probabilities.argmax(axis=1).astype(np.int32)
        owner = np.repeat(np.arange(len(pieces), dtype=np.int32), [len(piece) for piece in pieces])
        names = pa.array([one.slide_id for one in found], pa.string())
        p_primary = pa.nulls(n, pa.float32()) if cells.p_primary is None else cells.p_primary
        return {
            "slide_id": names.take(pa.array(owner)),
            "index": pa.array(cells.index),
            "cell_id": pa.array(cells.cell_id, pa.string()),
            "x": pa.array(cells.xy[:, 0], from_pandas=True),
            "y": pa.array(cells.xy[:, 1], from_pandas=True),
            "padded": pa.array(cells.padded),
            "class": pa.DictionaryArray.from_arrays(best, pa.array(self._class_names)),
            "confidence": pa.array(cells.probabilities.max(axis=1)),
            "p_primary": pa.array(p_primary, pa.float32()),
        }

    def _publish(self, path: object, table: pa.Table, pieces: Sequence[CellColumns]) -> str:
        # Tiles always, but of a few numbers there is nothing to gain.
        many = len(table) >= _MANY_ROWS * len(pieces)
        data = parquet_bytes(
            table,
            row_groups=list(map(len, pieces)),
            compression="zstd" if many else {"png": "zstd"},
            use_dictionary=_REPEATING,
        )
        self._results.publish(str(path), data)
        return str(path)
