"""Reads a chunk's worth of tiles from a slide, whatever its blocks are."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.archive import SlideArchive, SlideInfo, TileBlock
from cvm_batch.archives.packing.arrays import BLANK, TileLayout, encode_tiles
from cvm_batch.archives.packing.chunks import ChunkRecord, describe_file

#: What was wrong is told of so many tiles of a chunk, and of a slide.
FAULTS_TOLD = 3
#: Tiles read at once where a slide stores them one by one: none may be larger than 12 MiB.
_BLOCK_TILES = 16


def reading_step(info: SlideInfo) -> int:
    """Tiles to read at once, from multiples of it on: so that each is decoded once."""
    return info.chunk_tiles if info.chunk_tiles > 1 else _BLOCK_TILES


def read_chunk(
    archive: SlideArchive, step: int, layout: TileLayout, start: int, stop: int
) -> tuple[bytes, ChunkRecord]:
    """The tiles [start, stop), as they are stored, and what is known of them.

    Raises SlideError, or MisfitError where the layout cannot take them.
    """
    rows = _Rows(layout)
    for first, last in _spans(start, stop, step):
        rows.add(archive.read(first, last))
    data = encode_tiles(layout, rows.tiles)
    return data, rows.record(data)


def _spans(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """[start, stop), cut at the multiples of ``step``."""
    for at in range(start - start % step, stop, step):
        yield max(start, at), min(stop, at + step)


class _Rows:
    """The rows of one chunk, gathered block by block."""

    def __init__(self, layout: TileLayout) -> None:
        self.tiles: list[NDArray[np.uint8] | None] = []
        """None for those that could not be read."""
        self._layout = layout
        self._filled = 0
        self._faults: list[str] = []
        self._padded: list[bool] = []
        self._xy: list[list[float]] = []
        self._cell_id: list[str] = []
        self._has_xy = self._has_ids = False

    def add(self, block: TileBlock) -> None:
        """Raises MisfitError."""
        for tile, readable in zip(block.tiles, block.readable.tolist(), strict=True):
            self._add_tile(tile if readable else None)
        padded = [False] * len(block) if block.padded is None else block.padded.tolist()
        self._padded += padded
        self._faults += [fault.detail for _, fault in sorted(block.faults.items())]
        # A block of tiles that are not there can be without what the others have.
        self._has_xy |= block.xy is not None
        self._xy += [[math.nan, math.nan]] * len(block) if block.xy is None else block.xy.tolist()
        self._has_ids |= block.cell_id is not None
        self._cell_id += [""] * len(block) if block.cell_id is None else block.cell_id

    def record(self, data: bytes) -> ChunkRecord:
        """``data``: the chunk as it is stored."""
        return ChunkRecord(
            file=describe_file(data),
            readable=[tile is not None for tile in self.tiles],
            padded=self._padded,
            faults=self._faults[:FAULTS_TOLD],
            size=[list((BLANK if tile is None else tile).shape[:2]) for tile in self.tiles],
            xy=self._xy if self._has_xy else None,
            cell_id=self._cell_id if self._has_ids else None,
        )

    def _add_tile(self, tile: NDArray[np.uint8] | None) -> None:
        if tile is not None:
            self._layout.check(tile, self._filled)
            self._filled += tile.nbytes
        self.tiles.append(tile)
