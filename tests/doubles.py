"""Test doubles for the seams: an archive in memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.archive import ExpectedFrom, SlideInfo, TileBlock, TileFault


class MemoryArchive:
    """A `SlideArchive` over an array; faults and errors at chosen tiles."""

    def __init__(
        self,
        tiles: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
        *,
        identity: str = "memory",
        faults: Mapping[int, TileFault] | None = None,
        error_at: tuple[int, Exception] | None = None,
    ) -> None:
        self.tiles = tiles
        self.identity = identity
        self.faults = dict(faults or {})
        self.error_at = error_at
        self.reads: list[tuple[int, int]] = []
        self.closed = False
        self._lock = threading.Lock()

    @cached_property
    def info(self) -> SlideInfo:
        return self.describe()

    def describe(self) -> SlideInfo:
        return SlideInfo(
            identity=self.identity,
            tiles=len(self.tiles),
            expected_from=ExpectedFrom.LISTING,
            tile_px=None,
        )

    def read(self, start: int, stop: int) -> TileBlock:
        with self._lock:
            self.reads.append((start, stop))
        if self.error_at is not None and start <= self.error_at[0] < stop:
            raise self.error_at[1]
        index = np.arange(start, stop, dtype=np.int64)
        faults = {n - start: fault for n, fault in self.faults.items() if start <= n < stop}
        return TileBlock(
            tiles=self.tiles[start:stop],
            index=index,
            xy=np.stack([index * 10.0, index * 20.0], axis=1),
            cell_id=[f"cell-{n}" for n in index],
            readable=np.array([n - start not in faults for n in index]),
            faults=faults,
        )

    def close(self) -> None:
        self.closed = True
