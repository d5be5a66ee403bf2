"""From stored zarr chunks to arrays and tiles. A chunk that is not there is never filled in.

zarr itself would give the fill value for it, which is blank glass.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cvm_batch.archives.archive import Integrity
from cvm_batch.archives.limits import MAX_CHUNK_BYTES, MAX_TABLE_BYTES
from cvm_batch.archives.members.base import Members
from cvm_batch.archives.zarr.codecs import DamagedChunkError, Data, Target, decode_chunk
from cvm_batch.archives.zarr.metadata import ArraySpec
from cvm_batch.archives.zarr.shards import Shards
from cvm_batch.errors import BadFormatError, ChecksumMismatchError, OverLimitError, SlideError

_LENGTH = struct.Struct("<I")


def integrity_of(members: Members, spec: ArraySpec) -> Integrity:
    """Whether reading a chunk compares a checksum: of a codec, or of the zip around it."""
    verifies = any(codec.verifies for codec in spec.codecs)
    if spec.shards is None:
        return Integrity.VERIFIED if verifies else members.integrity
    # Only ranges of a shard are read, which no checksum of a whole zip member covers.
    both = verifies and any(codec.verifies for codec in spec.shards.codecs)
    return Integrity.VERIFIED if both else Integrity.UNVERIFIED


def file_names(spec: ArraySpec) -> pa.LargeStringArray:
    """The names of all files of an array, those of chunks or shards, in C order."""
    places = np.unravel_index(np.arange(np.prod(spec.file_grid)), spec.file_grid)
    numbers = [pa.array(axis).cast(pa.large_string()) for axis in places]
    joined = pc.binary_join_element_wise(*numbers, _text(spec.separator))
    return pc.binary_join_element_wise(_text(spec.key_prefix), joined, _text(""))


class Chunks:
    """The chunks of one array, found among the members once. Safe to use from threads."""

    def __init__(self, members: Members, spec: ArraySpec) -> None:
        self.spec = spec
        #: The member that is each file of the array [*file_grid]; -1 for what is not there.
        self.files = members.names.positions(file_names(spec)).reshape(spec.file_grid)
        self._members = members
        self._shards = Shards(members, spec, spec.shards) if spec.shards else None

    def numbers(self, place: tuple[int, ...]) -> NDArray[Any] | None:
        """A chunk of numbers, of shape ``spec.chunks``; None where it is not there.

        Raises ChecksumMismatchError where it does not decode and a checksum says what it
        should have been, BadFormatError where none does, and what reading raises.
        """
        data = self._numbers(place)
        if data is None:
            return None
        stored = np.frombuffer(data, self.spec.number)
        turned = stored.reshape([self.spec.chunks[axis] for axis in self.spec.order])
        return turned.transpose(np.argsort(self.spec.order))

    def bytes_into(self, place: tuple[int, ...], out: NDArray[np.uint8]) -> bool:
        """Put the bytes of a chunk of numbers, as they are stored, into contiguous ``out``.

        Returns whether the chunk is there. Raises as `numbers`.
        """
        into = out.reshape(-1).data
        data = self._numbers(place, into)
        if data is not None and data is not into:
            into[:] = data
        return data is not None

    def items(
        self, place: tuple[int, ...], limit: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """A chunk of varying items: bytes, and where in them each item starts and stops.

        ``limit``: bytes of the decoded chunk, at most. Raises as `numbers`.
        """
        with self._naming(place):
            data = self._decoded(place, limit)
            return None if data is None else split_items(data, self.spec.chunks[0])

    def where(self, place: Sequence[int]) -> str:
        """A chunk, for messages."""
        key = repr(self.spec.key(self._file(place)))
        return f"the chunk {key}" if self._shards is None else f"a chunk of the shard {key}"

    def count_missing(self) -> int:
        """Rows of the array's first axis of which a file is known not to be there."""
        lacking = np.flatnonzero((self.files < 0).reshape(len(self.files), -1).any(axis=1))
        side = self.spec.file_shape[0]
        return int(np.minimum(side, self.spec.shape[0] - lacking * side).sum())

    def lacks(self, place: Sequence[int]) -> bool:
        """Whether the file that a chunk lies in is not there."""
        return int(self.files[self._file(place)]) < 0

    @contextmanager
    def _naming(self, place: tuple[int, ...]) -> Iterator[None]:
        try:
            yield
        except (DamagedChunkError, struct.error) as error:
            raise self._damaged(place, error) from error

    def _numbers(self, place: tuple[int, ...], into: Target = None) -> Data | None:
        with self._naming(place):
            data = self._decoded(place, self.spec.chunk_bytes, into)
            if data is not None and len(data) != self.spec.chunk_bytes:
                raise DamagedChunkError(f"{len(data)} bytes, of {self.spec.chunk_bytes}")
            return data

    def _decoded(self, place: tuple[int, ...], limit: int, into: Target = None) -> Data | None:
        data = self._stored(place)
        return None if data is None else decode_chunk(self.spec.codecs, data, limit, into)

    def _stored(self, place: tuple[int, ...]) -> bytes | None:
        file = self._file(place)
        position = int(self.files[file])
        if position < 0:
            return None
        if self._shards is None:
            return self._members.read(position)
        inside = (at % side for at, side in zip(place, self.spec.shard_grid, strict=True))
        return self._shards.read(position, tuple(inside))

    def _file(self, place: Sequence[int]) -> tuple[int, ...]:
        return tuple(at // side for at, side in zip(place, self.spec.shard_grid, strict=True))

    def _damaged(self, place: Sequence[int], why: Exception) -> SlideError:
        where = f"{self.where(place)} in {self._members.place} does not decode: {why}."
        if integrity_of(self._members, self.spec) is Integrity.VERIFIED:
            return ChecksumMismatchError(
                f"Damaged: {where} Copy the archive again from its source."
            )
        return BadFormatError(
            f"Damaged or not what its metadata say: {where} Copy the archive again, or write it "
            "anew."
        )


class EqualTiles:
    """Tiles of one size: an array of four axes, in chunks of any shape."""

    def __init__(self, chunks: Chunks, axes: tuple[int, int, int]) -> None:
        """``axes``: those of height, width and channels."""
        spec = chunks.spec
        self._chunks = chunks
        self._spec = spec
        self._shape = tuple(spec.shape[axis] for axis in axes)
        # From [n, h, w, 3] to the axes of the array.
        self._turn = np.argsort((0, *axes))
        plain = (0, *axes) == spec.order == (0, 1, 2, 3)
        self._is_whole = plain and spec.chunks[1:] == spec.shape[1:]

    def read(self, start: int, stop: int) -> tuple[NDArray[np.uint8], list[tuple[slice, str]]]:
        """Tiles [n, h, w, 3]; and which of those are missing, for want of what.

        Raises as `Chunks.numbers`, and BadFormatError for pixels beyond the array's edge.
        """
        tiles = np.empty((stop - start, *self._shape), np.uint8)
        lost = []
        for row, span, within in _rows(start, stop, self._spec.chunks[0]):
            lacking = self._read_row(row, within, tiles[span])
            if lacking is not None:
                tiles[span] = 0
                lost.append((span, self._chunks.where(lacking)))
        return tiles, lost

    def _read_row(self, row: int, within: slice, out: NDArray[np.uint8]) -> tuple[int, ...] | None:
        """Fill ``out`` from all chunks of some tiles. Returns the first that is not there."""
        places = [(row, *rest) for rest in np.ndindex(*self._spec.grid[1:])]
        # Before the others are decoded in vain.
        lacking = next(filter(self._chunks.lacks, places), None)
        if lacking is not None:
            return lacking
        if self._is_whole and len(out) == self._spec.chunks[0]:
            return None if self._chunks.bytes_into(places[0], out) else places[0]
        turned = out.transpose(self._turn)
        for place in places:
            chunk = self._chunks.numbers(place)
            if chunk is None:
                return place
            _, *sides = region_of(place, self._spec.chunks)
            part = turned[:, *sides]
            part[...] = self._inside(chunk, place, part.shape[1:])[within]
        return None

    def _inside(
        self, chunk: NDArray[np.uint8], place: tuple[int, ...], sides: tuple[int, ...]
    ) -> NDArray[np.uint8]:
        """The part of a chunk that lies inside the array; beyond it nothing may have been written.

        Else a damaged shape would cut tiles smaller than they are, or some of them off.
        """
        tiles = self._spec.shape[0] - place[0] * self._spec.chunks[0]
        fill = self._spec.fill_value
        for axis, side in enumerate((tiles, *sides)):
            beyond = chunk[(slice(None),) * axis + (slice(side, None),)]
            if type(fill) is int and (beyond != fill).any():
                raise BadFormatError(
                    f"{self._chunks.where(place)} of {self._spec.name!r} holds pixels beyond the "
                    f"shape {list(self._spec.shape)}: the metadata are damaged, or the array was "
                    "made smaller. Write it anew."
                )
        return chunk[(slice(tiles), *map(slice, sides))]


class UnequalTiles:
    """Tiles of varying size: their pixels as bytes, their sizes from another array."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._spec = chunks.spec

    def read(
        self, start: int, stop: int, sizes: NDArray[np.int64]
    ) -> tuple[list[NDArray[np.uint8]], list[tuple[slice, str]]]:
        """Tiles [h, w, 3]; and which of those are missing, for want of what.

        ``sizes``: height and width of all the slide's tiles [N, 2]. Raises OverLimitError,
        BadFormatError where pixels and sizes do not agree, and as `Chunks.numbers`.
        """
        tiles: list[NDArray[np.uint8]] = []
        lost = []
        for row, span, within in _rows(start, stop, self._spec.chunks[0]):
            found = self._read_row(row, sizes)
            if found is None:
                lost.append((span, self._chunks.where((row,))))
                tiles += [np.zeros((1, 1, 3), np.uint8)] * (span.stop - span.start)
            else:
                tiles += found[within]
        return tiles, lost

    def _read_row(self, row: int, sizes: NDArray[np.int64]) -> list[NDArray[np.uint8]] | None:
        (side,) = self._spec.chunks
        own = sizes[row * side : (row + 1) * side]
        # Nothing lies behind the last tile.
        lengths = np.zeros(side, np.int64)
        lengths[: len(own)] = own.prod(axis=1) * 3
        limit = _LENGTH.size * (1 + side) + int(lengths.sum())
        if limit > MAX_CHUNK_BYTES:
            raise OverLimitError(
                f"{self._chunks.where((row,))} has {limit} bytes by the sizes of its tiles, more "
                f"than {MAX_CHUNK_BYTES}. Write it with fewer tiles in a chunk."
            )
        found = self._chunks.items((row,), limit)
        if found is None:
            return None
        data, bounds = found
        if (np.diff(bounds)[:, 0] != lengths).any():
            raise BadFormatError(
                f"{self._chunks.where((row,))} holds tiles of other lengths than their sizes say: "
                "height x width x 3 bytes. Write the archive anew."
            )
        data = np.require(data, requirements="W")
        return [
            data[first:last].reshape(height, width, 3)
            for (first, last), (height, width) in zip(bounds.tolist(), own.tolist(), strict=False)
        ]


def read_numbers(members: Members, spec: ArraySpec) -> NDArray[Any]:
    """All of an array. Raises BadFormatError where a chunk is missing, and as `Chunks.numbers`."""
    chunks = Chunks(members, spec)
    whole = np.empty(spec.shape, spec.number)
    for place in np.ndindex(*spec.grid):
        chunk = chunks.numbers(place)
        if chunk is None:
            raise _missing(chunks, place, members)
        region = whole[region_of(place, spec.chunks)]
        region[...] = chunk[tuple(slice(side) for side in region.shape)]
    return whole


def read_texts(members: Members, spec: ArraySpec) -> pa.LargeStringArray:
    """All of an array of texts [n]. Raises OverLimitError, and as `read_numbers`."""
    chunks = Chunks(members, spec)
    pieces: list[pa.LargeStringArray] = []
    room = MAX_TABLE_BYTES
    for row in range(spec.grid[0]):
        found = chunks.items((row,), spec.chunk_bytes)
        if found is None:
            raise _missing(chunks, (row,), members)
        data, bounds = found
        try:
            pieces.append(_texts(data, bounds[: spec.shape[0] - row * spec.chunks[0]]))
        except pa.ArrowInvalid as error:
            raise BadFormatError(
                f"{chunks.where((row,))} in {members.place} holds text that is not UTF-8: "
                f"{error}. Write it anew."
            ) from error
        room -= pieces[-1].nbytes
        if room < 0:
            raise OverLimitError(
                f"{spec.name!r} in {members.place} takes more than {MAX_TABLE_BYTES} bytes. "
                "Shorten its texts."
            )
    return pa.concat_arrays(pieces)


def _rows(start: int, stop: int, side: int) -> Iterator[tuple[int, slice, slice]]:
    """The rows of chunks under [start, stop): row, positions in the block, tiles in the row."""
    for row in range(start // side, -(-stop // side)):
        first, last = max(start, row * side), min(stop, (row + 1) * side)
        base = row * side
        yield row, slice(first - start, last - start), slice(first - base, last - base)


def region_of(place: Sequence[int], chunks: Sequence[int]) -> tuple[slice, ...]:
    """What a chunk covers of its array."""
    return tuple(slice(at * side, (at + 1) * side) for at, side in zip(place, chunks, strict=True))


def split_items(data: Data, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The items of vlen-utf8 or vlen-bytes: their bytes, and [count, 2] start and stop of each.

    Stored are a count, then each item after its length, all as little-endian uint32. Raises
    DamagedChunkError or struct.error.
    """
    (stored,) = _LENGTH.unpack_from(data)
    if stored != count:
        raise DamagedChunkError(f"{stored} items in a chunk of {count}")
    bounds = array("q")
    at = _LENGTH.size
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        bounds.extend((at, at + length))
        at += length
        if at > len(data):
            raise DamagedChunkError("its items are cut short")
    if at != len(data):
        raise DamagedChunkError(f"{len(data) - at} bytes behind its items")
    return np.frombuffer(data, np.uint8), np.frombuffer(bounds, np.int64).reshape(-1, 2)


def _texts(data: NDArray[np.uint8], bounds: NDArray[np.int64]) -> pa.LargeStringArray:
    offsets = np.concatenate([[0], np.cumsum(bounds[:, 1] - bounds[:, 0])])
    is_text = np.ones(bounds[-1, 1], np.bool_)
    is_text[: _LENGTH.size] = False
    is_text[bounds[:, :1] - range(1, _LENGTH.size + 1)] = False
    joined = data[: len(is_text)][is_text]
    texts = pa.LargeStringArray.from_buffers(
        len(bounds), pa.py_buffer(offsets), pa.py_buffer(joined)
    )
    texts.validate(full=True)
    return texts


def _missing(chunks: Chunks, place: Sequence[int], members: Members) -> BadFormatError:
    return BadFormatError(
        f"{members.place} lacks {chunks.where(place)}: copy it again. If its values are all "
        "zero, write it with write_empty_chunks, to tell them from lost ones."
    )


def _text(value: str) -> pa.LargeStringScalar:
    return pa.scalar(value, pa.large_string())
