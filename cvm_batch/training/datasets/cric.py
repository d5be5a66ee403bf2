"""CRIC Cervix as published: DIR/classifications.csv, and the microscope frames it names.

The frames lie anywhere below DIR. Each cell is cropped around its nucleus at 100 px, less at
a frame's edge.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvm_batch.errors import DataSetError
from cvm_batch.training.datasets.labelled import LabelledCells, labelled, read_tile
from cvm_batch.training.datasets.tables import read_table, whole_number

TABLE_FILE = "classifications.csv"
CROP_PX = 100
_NEEDED = ("image_filename", "cell_id", "bethesda_system", "nucleus_x", "nucleus_y")
_KNOWN = frozenset({*_NEEDED, "image_id", "image_doi"})
_NILM = "Negative for intraepithelial lesion"


@dataclass(frozen=True)
class FrameCrop:
    """A square around a nucleus, both in pixels of the frame."""

    frame: Path
    name: str
    x: int
    y: int

    def read(self) -> NDArray[np.uint8]:
        pixels = _frame(self.frame)
        top, left = (max(0, at - CROP_PX // 2) for at in (self.y, self.x))
        crop = pixels[top : self.y + CROP_PX // 2, left : self.x + CROP_PX // 2]
        if not crop.size:
            raise DataSetError(
                f"Cell {self.name} lies outside its frame {self.frame} "
                f"({pixels.shape[1]} x {pixels.shape[0]} px). Put its row right."
            )
        return crop.copy()

    def digest(self) -> str:
        return hashlib.sha256(self.read().tobytes()).hexdigest()


def takes(root: Path) -> bool:
    return (root / TABLE_FILE).is_file()


def load(root: Path) -> LabelledCells:
    """Cells whose frames are not there are skipped. Raises DataSetError."""
    table = root / TABLE_FILE
    frames = {path.name: path for path in root.rglob("*.png")}
    crops, names, skipped = [], [], []
    for number, row in enumerate(read_table(table, _NEEDED, _KNOWN), start=2):
        frame = frames.get(row["image_filename"])
        if frame is None:
            skipped.append((row["cell_id"], f"frame {row['image_filename']} is not there"))
            continue
        x, y = (whole_number(row, axis, table, number) for axis in ("nucleus_x", "nucleus_y"))
        crops.append(FrameCrop(frame, row["cell_id"], x, y))
        label = row["bethesda_system"]
        names.append("NILM" if label == _NILM else label)
    return labelled(
        str(root),
        crops,
        names,
        [crop.frame.stem for crop in crops],
        grouped_by="frame",
        cell_ids=[crop.name for crop in crops],
        skipped=skipped,
    )


@lru_cache(maxsize=32)
def _frame(path: Path) -> NDArray[np.uint8]:
    # Cells of one frame follow each other, so that each frame is decoded about once.
    return read_tile(path)
