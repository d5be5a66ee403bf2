"""Labelled cells in their published layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvm_batch.errors import DataSetError
from cvm_batch.training.datasets import archives, cric, folders, tables
from cvm_batch.training.datasets.labelled import CellImage, LabelledCells, labelled

__all__ = ["LabelledCells", "load_cells"]


def load_cells(*roots: Path, least_classes: int = 2) -> LabelledCells:
    """Read the labelled sets in these folders as one.

    Each folder is in one of the layouts of this package's modules: a cells table, CRIC as
    published, archives with labels, or a folder for each class. Raises DataSetError, also
    where all of them together hold fewer classes than training takes.
    """
    found = [_load(root) for root in roots]
    cells = found[0] if len(found) == 1 else _together(found, roots)
    if len(cells.class_names) < least_classes:
        raise DataSetError(
            f"{cells.where} holds {len(cells)} images of {len(cells.class_names)} classes, and "
            f"{least_classes} at least are needed. Give a folder with {tables.TABLE_FILE} in it, "
            "or one with a sub-folder of images for each class."
        )
    return cells


def _load(root: Path) -> LabelledCells:
    if not root.is_dir():
        raise DataSetError(
            f"No data set at {root}: give a folder with {tables.TABLE_FILE} in it, "
            "or one with a sub-folder of images for each class."
        )
    for takes, load in (
        (tables.takes, tables.load),
        (cric.takes, cric.load),
        (archives.takes, archives.load),
    ):
        if takes(root):
            return load(root)
    return folders.load(root)


@dataclass(frozen=True)
class _Named:
    """An image of one of several sets: two sets may use the same names."""

    image: CellImage
    name: str

    def read(self) -> NDArray[np.uint8]:
        return self.image.read()

    def digest(self) -> str:
        return self.image.digest()


def _together(found: Sequence[LabelledCells], roots: Sequence[Path]) -> LabelledCells:
    parts = [
        (f"{number}-{root.name}", cells)
        for number, (root, cells) in enumerate(zip(roots, found, strict=True), start=1)
    ]
    return labelled(
        ", ".join(cells.where for cells in found),
        [_Named(image, f"{tag}/{image.name}") for tag, cells in parts for image in cells.images],
        [cells.class_names[label] for cells in found for label in cells.labels],
        [f"{tag}/{group}" for tag, cells in parts for group in cells.groups],
        grouped_by=" or ".join(sorted({cells.grouped_by for cells in found})),
        cell_ids=[cell for cells in found for cell in cells.cell_ids],
        skipped=[pair for cells in found for pair in cells.skipped],
    )
