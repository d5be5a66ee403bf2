"""Labelled cells in their published layouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvm_batch.errors import DataSetError
from cvm_batch.training.datasets import archives, cric, folders, tables
from cvm_batch.training.datasets.labelled import BY_FILE, CellImage, LabelledCells, labelled

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
            f"{cells.where} holds {len(cells)} images of {len(cells.class_names)} classes"
            f"{_skipped(cells)}, and {least_classes} at least are needed. Give a folder with "
            f"{tables.TABLE_FILE} in it, or one with a sub-folder of images for each class."
        )
    return cells


def _skipped(cells: LabelledCells) -> str:
    if not cells.skipped:
        return ""
    return f" ({len(cells.skipped)} were skipped, as {': '.join(cells.skipped[0])})"


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
    content: str
    pixels: str
    """Both digests, as found when its own set was read."""

    def read(self) -> NDArray[np.uint8]:
        return self.image.read()

    def digest(self) -> str:
        return self.content

    def pixel_digest(self) -> str:
        return self.pixels


def _together(found: Sequence[LabelledCells], roots: Sequence[Path]) -> LabelledCells:
    """One set. Groups of the same name are one: a frame whose cells were labelled in two rounds
    must not lie on both sides, and two frames that only share a name may lie on one."""
    parts = [
        (f"{number}-{root.name}", cells)
        for number, (root, cells) in enumerate(zip(roots, found, strict=True), start=1)
    ]
    groups_of = [
        # A file's name says nothing of a file elsewhere; its pixels do.
        [f"{tag}/{group}" for group in cells.groups]
        if cells.grouped_by == BY_FILE
        else list(cells.groups)
        for tag, cells in parts
    ]
    return labelled(
        ", ".join(cells.where for cells in found),
        [
            _Named(image, f"{tag}/{image.name}", content, pixels)
            for tag, cells in parts
            for image, content, pixels in zip(
                cells.images, cells.digests, cells.pixel_digests, strict=True
            )
        ],
        [cells.class_names[label] for cells in found for label in cells.labels],
        [group for groups in groups_of for group in groups],
        grouped_by=" or ".join(sorted({cells.grouped_by for cells in found})),
        cell_ids=[cell for cells in found for cell in cells.cell_ids],
        skipped=[pair for cells in found for pair in cells.skipped],
        notes=[*(note for cells in found for note in cells.notes), *_shared(groups_of)],
    )


def _shared(groups_of: Sequence[Sequence[str]]) -> Iterator[str]:
    times = Counter(group for groups in groups_of for group in set(groups))
    if shared := sorted(group for group, sets in times.items() if sets > 1):
        yield (
            f"{len(shared)} groups have the same name in more than one set and are taken as one: "
            f"{shared[0]}{' ...' if len(shared) > 1 else ''}"
        )
