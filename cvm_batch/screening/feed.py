"""Reads tiles ahead of the device and cuts them into full batches.

Decoding threads read blocks of the lease's parts in order, at most ``ahead`` blocks
before the consumer, so that memory stays bounded whatever the slide's size. Batches run
across blocks, parts and slides: many small slides fill them as well as one large one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cvm_batch import signs
from cvm_batch.archives.archive import TileBlock
from cvm_batch.archives.places.files import as_slide_error
from cvm_batch.errors import SlideError
from cvm_batch.screening.quality import measure
from cvm_batch.screening.shelf import Shelf, Taken
from cvm_batch.screening.tally import PartTally, ReadableTiles
from cvm_batch.screening.work import Part
from cvm_batch.tiles import Tiles

#: Tiles read at once where the format stores them one by one.
_BLOCK_TILES = 64


@dataclass(frozen=True)
class _ReadBlock:
    """What a decoding thread made of one block: tiles, or the error that ends the part."""

    tally: PartTally
    block: TileBlock | None = None
    tiles: ReadableTiles | None = None
    integrity: str | None = None
    error: SlideError | None = None
    seconds: float = 0.0


class ReadAhead:
    """Reads the parts' blocks in order, ahead of who iterates. Reading starts at once."""

    def __init__(
        self,
        tallies: Sequence[PartTally],
        shelf: Shelf,
        pool: ThreadPoolExecutor,
        ahead: int,
    ) -> None:
        self._readers = [_PartReader(tally, shelf) for tally in tallies]
        self._blocks = (
            (reader, start, stop)
            for reader in self._readers
            for start, stop in _blocks(reader.tally.part)
        )
        self._pool = pool
        self._pending: deque[Future[_ReadBlock]] = deque()
        for _ in range(ahead):
            self._submit()

    def __iter__(self) -> Iterator[tuple[PartTally, ReadableTiles]]:
        """Yield each part's readable tiles; all else is noted in its tally."""
        while self._pending:
            read = self._pending.popleft().result()
            self._submit()
            read.tally.seconds += read.seconds
            if read.error is not None:
                read.tally.fail(read.error)
            elif read.block is not None and read.tiles is not None:
                read.tally.integrity = read.integrity
                read.tally.note_unreadable(read.block)
                if len(read.tiles):
                    yield read.tally, read.tiles

    def close(self) -> None:
        """Stop reading and give every archive back."""
        for future in self._pending:
            future.cancel()
        for reader in self._readers:
            reader.give_up()

    def _submit(self) -> None:
        block = next(self._blocks, None)
        if block is not None:
            reader, start, stop = block
            self._pending.append(self._pool.submit(reader.read, start, stop))


class _PartReader:
    """Reads one part's blocks from any thread, and gives its archive back after the last."""

    def __init__(self, tally: PartTally, shelf: Shelf) -> None:
        self.tally = tally
        self._slide = tally.part.slide
        self._shelf = shelf
        self._unread = len(tally.part)
        self._taken: Taken | None = None
        self._given_up = False
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> _ReadBlock:
        started = time.perf_counter()
        try:
            taken = self._take()
            if taken is None:
                return _ReadBlock(self.tally)
            block = taken.archive.read(start, stop)
            tiles = _readable(block)
            signs.note()
            self._after_block(stop - start)
        except Exception as error:
            if self._given_up:  # closed under this thread by another block's error
                return _ReadBlock(self.tally)
            self.give_up()
            return _ReadBlock(self.tally, error=_as_error_of(self.tally.part, error))
        seconds = time.perf_counter() - started
        return _ReadBlock(self.tally, block, tiles, str(taken.info.integrity), seconds=seconds)

    def give_up(self) -> None:
        """Read no more of the part. Calling it twice, or after the last block, is harmless."""
        self._give_back(spoiled=True)

    def _take(self) -> Taken | None:
        """The archive, or None where an earlier block has ended the part."""
        with self._lock:
            if self._given_up:
                return None
            if self._taken is None:
                self._taken = self._shelf.take(self._slide)
            return self._taken

    def _after_block(self, tiles: int) -> None:
        with self._lock:
            self._unread -= tiles
            last = self._taken if not self._unread else None
        if last is not None:
            # Bytes that changed while they were read belong to no one slide.
            self._shelf.check(last)
            self._give_back(spoiled=False)

    def _give_back(self, *, spoiled: bool) -> None:
        with self._lock:
            self._given_up = True
            taken, self._taken = self._taken, None
        if taken is not None:
            self._shelf.give_back(taken, spoiled=spoiled)


@dataclass(frozen=True)
class Batch:
    """Tiles for one call of the engine, and whose they are."""

    tiles: Tiles
    owners: tuple[tuple[PartTally, ReadableTiles], ...]


def batches(blocks: Iterable[tuple[PartTally, ReadableTiles]], size: int) -> Iterator[Batch]:
    """Cut blocks into batches of exactly ``size`` tiles; only the last may be smaller.

    A batch that fits into a block is a view of it. What is left of blocks waits for more of
    that kind: joining is a copy, and as dear as reading the tiles a third time.
    """
    waiting: list[tuple[PartTally, ReadableTiles]] = []
    room = size
    for tally, block in blocks:
        whole = len(block) // size * size
        for start in range(0, whole, size):
            piece = block.slice(start, start + size)
            yield Batch(piece.tiles, ((tally, piece),))
        rest = block.slice(whole, len(block))
        if whole:
            rest = rest.copy()  # while it waits, a view would keep the whole block alive
        if len(rest) >= room:
            waiting.append((tally, rest.slice(0, room)))
            yield Batch(_joined(waiting), tuple(waiting))
            rest = rest.slice(room, len(rest))
            waiting, room = [], size
        if len(rest):
            waiting.append((tally, rest))
            room -= len(rest)
    if waiting:
        yield Batch(_joined(waiting), tuple(waiting))


def _joined(owners: Sequence[tuple[PartTally, ReadableTiles]]) -> Tiles:
    pieces = [piece.tiles for _, piece in owners]
    if len(pieces) == 1:
        return pieces[0]
    arrays = [piece for piece in pieces if isinstance(piece, np.ndarray)]
    if len(arrays) == len(pieces) and len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    return [tile for piece in pieces for tile in piece]


def _blocks(part: Part) -> Iterator[tuple[int, int]]:
    """Ranges that cover the part, cut where the archive's chunks end."""
    step = part.slide.chunk_tiles if part.slide.chunk_tiles > 1 else _BLOCK_TILES
    start = part.start
    while start < part.stop:
        stop = min((start // step + 1) * step, part.stop)
        yield start, stop
        start = stop


def _as_error_of(part: Part, error: Exception) -> SlideError:
    return as_slide_error(error, f"{part.slide.uri} at tiles {part.start} to {part.stop}")


def _readable(block: TileBlock) -> ReadableTiles:
    rows = np.flatnonzero(block.readable)
    if len(rows) == len(block):
        tiles = block.tiles
    elif isinstance(block.tiles, np.ndarray):
        tiles = block.tiles[rows]
    else:
        tiles = [block.tiles[int(row)] for row in rows]
    return ReadableTiles(
        tiles=tiles,
        index=block.index[rows],
        xy=np.full((len(rows), 2), np.nan) if block.xy is None else block.xy[rows],
        cell_id=[None] * len(rows)
        if block.cell_id is None
        else [block.cell_id[row] for row in rows],
        padded=np.zeros(len(rows), np.bool_) if block.padded is None else block.padded[rows],
        quality=measure(tiles),
    )
