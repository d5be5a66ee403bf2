"""Slide archives with labels: DIR/labels.csv, and the archives it names beside it.

Columns: slide (a path below DIR), index (of the tile, from 0), label.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import SlideArchive, TileBlock
from cvm_batch.archives.formats import open_archive
from cvm_batch.errors import DataSetError, SlideError, UnreadableImageError
from cvm_batch.training.datasets.kept import Kept
from cvm_batch.training.datasets.labelled import LabelledCells, labelled, pixel_digest
from cvm_batch.training.datasets.tables import read_table, whole_number

TABLE_FILE = "labels.csv"
#: Chunks kept of each archive, of some tens of MB each.
_MOST_CHUNKS = 4
_NEEDED = ("slide", "index", "label")
_KNOWN = frozenset({*_NEEDED, "cell_id"})


class OpenArchive:
    """One archive that stays open, read in the chunks that it stores: whole ones are decoded
    even where a single tile is asked for."""

    def __init__(self, archive: SlideArchive) -> None:
        """Raises SlideError."""
        info = archive.info
        self.tiles = info.tiles
        self._archive = archive
        self._together = max(1, info.chunk_tiles)
        self._chunks: Kept[TileBlock] = Kept(_MOST_CHUNKS)

    def read(self, index: int) -> NDArray[np.uint8] | None:
        """The tile uint8 [h, w, 3]; None where it does not decode. Raises SlideError."""
        start = index - index % self._together
        end = min(start + self._together, self.tiles)
        block = self._chunks.get(start, partial(self._archive.read, start, end))
        at = index - start
        return np.array(block.tiles[at]) if block.readable[at] else None


@dataclass(frozen=True, eq=False)
class ArchiveTile:
    archive: OpenArchive
    slide: str
    index: int

    @property
    def name(self) -> str:
        return f"{self.slide}#{self.index}"

    def read(self) -> NDArray[np.uint8]:
        try:
            tile = self.archive.read(self.index)
        except SlideError as error:
            raise DataSetError(f"{self.name}: {error}") from error
        if tile is None:
            raise UnreadableImageError(
                f"{self.name} does not decode as an image. Pack the slide again, or take its "
                "row out of the table."
            )
        return tile

    def digest(self) -> str:
        return self.pixel_digest()

    def pixel_digest(self) -> str:
        return pixel_digest(self.read())


def takes(root: Path) -> bool:
    return (root / TABLE_FILE).is_file()


def load(root: Path) -> LabelledCells:
    """Raises DataSetError."""
    table = root / TABLE_FILE
    rows = read_table(table, _NEEDED, _KNOWN)
    named = defaultdict(list)
    for number, row in enumerate(rows, start=2):
        named[row["slide"]].append((whole_number(row, "index", table, number), row["label"]))
    images, names, notes = [], [], []
    for slide, tiles in named.items():
        try:
            archive = OpenArchive(open_archive(SlideAddress(uri=str(root / slide))))
        except SlideError as error:
            raise DataSetError(f"{table} names {slide!r}: {error}") from error
        count, times = archive.tiles, Counter(index for index, _ in tiles)
        if outside := sorted(index for index in times if not 0 <= index < count):
            raise DataSetError(
                f"{table} names tile {outside[0]} of {slide!r}, which has tiles 0 to {count - 1}. "
                "Put the row right."
            )
        if twice := sorted(index for index, rows_of in times.items() if rows_of > 1):
            raise DataSetError(
                f"{table} names tile {twice[0]} of {slide!r} more than once. Keep one of its rows."
            )
        if without := count - len(tiles):
            notes.append(f"{without} of {count} tiles of {slide} have no label, and are left out")
        # In the order of the chunks, whatever that of the rows.
        tiles.sort()
        images += [ArchiveTile(archive, slide, index) for index, _ in tiles]
        names += [label for _, label in tiles]
    return labelled(
        str(root),
        images,
        names,
        [image.slide for image in images],
        grouped_by="slide",
        cell_ids=[str(image.index) for image in images],
        notes=notes,
    )
