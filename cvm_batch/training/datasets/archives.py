"""Slide archives with labels: DIR/labels.csv, and the archives it names beside it.

Columns: slide (a path below DIR), index (of the tile, from 0), label.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import SlideArchive
from cvm_batch.archives.formats import open_archive
from cvm_batch.errors import DataSetError, SlideError
from cvm_batch.training.datasets.labelled import LabelledCells, labelled
from cvm_batch.training.datasets.tables import read_table, whole_number

TABLE_FILE = "labels.csv"
_NEEDED = ("slide", "index", "label")
_KNOWN = frozenset({*_NEEDED, "cell_id"})


@dataclass(frozen=True, eq=False)
class ArchiveTile:
    """One tile of an archive that stays open."""

    archive: SlideArchive
    slide: str
    index: int

    @property
    def name(self) -> str:
        return f"{self.slide}#{self.index}"

    def read(self) -> NDArray[np.uint8]:
        try:
            block = self.archive.read(self.index, self.index + 1)
        except SlideError as error:
            raise DataSetError(f"{self.name}: {error}") from error
        if not block.readable[0]:
            raise DataSetError(
                f"{self.name} does not decode as an image. Pack the slide again, or take its "
                "row out of the table."
            )
        return np.array(block.tiles[0])

    def digest(self) -> str:
        return hashlib.sha256(self.read().tobytes()).hexdigest()


def takes(root: Path) -> bool:
    return (root / TABLE_FILE).is_file()


def load(root: Path) -> LabelledCells:
    """Raises DataSetError."""
    table = root / TABLE_FILE
    rows = read_table(table, _NEEDED, _KNOWN)
    named = defaultdict(list)
    for number, row in enumerate(rows, start=2):
        named[row["slide"]].append((whole_number(row, "index", table, number), row["label"]))
    images, names = [], []
    for slide, tiles in named.items():
        try:
            archive = open_archive(SlideAddress(uri=str(root / slide)))
            count = archive.describe().tiles
        except SlideError as error:
            raise DataSetError(f"{table} names {slide!r}: {error}") from error
        if outside := [index for index, _ in tiles if not 0 <= index < count]:
            raise DataSetError(
                f"{table} names tile {outside[0]} of {slide!r}, which has tiles 0 to {count - 1}. "
                "Put the row right."
            )
        images += [ArchiveTile(archive, slide, index) for index, _ in tiles]
        names += [label for _, label in tiles]
    return labelled(
        str(root),
        images,
        names,
        [image.slide for image in images],
        grouped_by="slide",
        cell_ids=[str(image.index) for image in images],
    )
