"""The per-cell tables, written by the replicas: one file per attempt at a part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName, part_name
from cvm_batch.results.parquet import parquet_bytes
from cvm_batch.results.png import png
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


class PartFiles:
    """Writes the cells and tops of parts of one run."""

    def __init__(self, results: ResultsFolder, run: RunName, class_names: Sequence[str]) -> None:
        self._results = results
        self._run = run
        self._class_names = list(class_names)

    def write_cells(self, slide_id: str, start: int, attempt: int, cells: CellColumns) -> str:
        """Commit the part's cells; return the file's path in the results folder."""
        classes = len(self._class_names)
        columns = self._columns(slide_id, cells)
        flat = pa.array(cells.probabilities.reshape(-1), pa.float32())
        columns["probabilities"] = pa.FixedSizeListArray.from_arrays(flat, classes)
        table = pa.table(columns, schema=cells_schema(classes))
        return self._publish(self._run.cells_folder / part_name(slide_id, start, attempt), table)

    def write_tops(
        self,
        slide_id: str,
        start: int,
        attempt: int,
        cells: CellColumns,
        tiles: Sequence[NDArray[np.uint8]],
    ) -> str:
        """Commit the part's most suspicious cells with their tiles uint8 [h, w, 3]."""
        columns = self._columns(slide_id, cells)
        columns["png"] = pa.array([png(tile) for tile in tiles], pa.binary())
        table = pa.table(columns, schema=TOPS)
        return self._publish(self._run.tops_folder / part_name(slide_id, start, attempt), table)

    def _columns(self, slide_id: str, cells: CellColumns) -> dict[str, pa.Array]:
        n = len(cells)
        best = cells.probabilities.argmax(axis=1).astype(np.int32)
        zeros = pa.array(np.zeros(n, np.int32))
        p_primary = pa.nulls(n, pa.float32()) if cells.p_primary is None else cells.p_primary
        return {
            "slide_id": pa.DictionaryArray.from_arrays(zeros, pa.array([slide_id])),
            "index": pa.array(cells.index),
            "cell_id": pa.array(cells.cell_id, pa.string()),
            "x": pa.array(cells.xy[:, 0], from_pandas=True),
            "y": pa.array(cells.xy[:, 1], from_pandas=True),
            "padded": pa.array(cells.padded),
            "class": pa.DictionaryArray.from_arrays(best, pa.array(self._class_names)),
            "confidence": pa.array(cells.probabilities.max(axis=1)),
            "p_primary": pa.array(p_primary, pa.float32()),
        }

    def _publish(self, path: object, table: pa.Table) -> str:
        # Tiles always, but of a few numbers there is nothing to gain.
        compression = "zstd" if len(table) >= _MANY_ROWS else {"png": "zstd"}
        data = parquet_bytes(table, compression=compression, use_dictionary=_REPEATING)
        self._results.publish(str(path), data)
        return str(path)
