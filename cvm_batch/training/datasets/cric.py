"""CRIC Cervix as published: DIR/classifications.csv, and the microscope frames it names.

The frames lie anywhere below DIR. Each cell is cropped around its nucleus at 100 px, less at
a frame's edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvm_batch.errors import DataSetError
from cvm_batch.training.datasets.kept import Kept
from cvm_batch.training.datasets.labelled import (
    LabelledCells,
    labelled,
    pixel_digest,
    read_tile,
)
from cvm_batch.training.datasets.tables import read_table, whole_number

TABLE_FILE = "classifications.csv"
CROP_PX = 100
_NEEDED = ("image_filename", "cell_id", "bethesda_system", "nucleus_x", "nucleus_y")
_KNOWN = frozenset({*_NEEDED, "image_id", "image_doi"})
#: Frames that are kept, each of some 7 MB.
_FRAMES: Kept[NDArray[np.uint8]] = Kept(32)
_NILM = "Negative for intraepithelial lesion"


@dataclass(frozen=True)
class FrameCrop:
    """A square around a nucleus, both in pixels of the frame."""

    frame: Path
    name: str
    x: int
    y: int

    def read(self) -> NDArray[np.uint8]:
        pixels = _FRAMES.get(self.frame, partial(read_tile, self.frame))
        top, left = (max(0, at - CROP_PX // 2) for at in (self.y, self.x))
        crop = pixels[top : self.y + CROP_PX // 2, left : self.x + CROP_PX // 2]
        if not crop.size:
            raise DataSetError(
                f"Cell {self.name} lies outside its frame {self.frame} "
                f"({pixels.shape[1]} x {pixels.shape[0]} px). Put its row right."
            )
        return crop.copy()

    def digest(self) -> str:
        return self.pixel_digest()

    def pixel_digest(self) -> str:
        return pixel_digest(self.read())


def takes(root: Path) -> bool:
    return (root / TABLE_FILE).is_file()


def load(root: Path) -> LabelledCells:
    """Cells whose frames are not there are skipped. Raises DataSetError."""
    table = root / TABLE_FILE
    frames = {path.name: path for path in root.rglob("*.png")}
    crops, names, skipped = [], [], list[tuple[str, str]]()
    for number, row in enumerate(read_table(table, _NEEDED, _KNOWN), start=2):
        frame = frames.get(row["image_filename"])
        if frame is None:
            skipped.append((row["cell_id"], f"frame {row['image_filename']} is not there"))
            continue
        x, y = (whole_number(row, axis, table, number) for axis in ("nucleus_x", "nucleus_y"))
        crops.append(FrameCrop(frame, row["cell_id"], x, y))
        label = row["bethesda_system"]
        names.append("NILM" if label == _NILM else label)
    named = {crop.frame for crop in crops}
    skipped += [
        (path.relative_to(root).as_posix(), f"a frame that {TABLE_FILE} does not name")
        for path in sorted(frames.values())
        if path not in named
    ]
    return labelled(
        str(root),
        crops,
        names,
        [crop.frame.stem for crop in crops],
        grouped_by="frame",
        cell_ids=[crop.name for crop in crops],
        skipped=skipped,
    )
