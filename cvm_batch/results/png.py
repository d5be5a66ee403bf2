"""Tiles as PNG files that cost little to make: filtered, and left to Parquet to compress.

The file format's own compression takes ten times as long as the zstd of the table around it,
which finds as much once the pixels are differences.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from math import prod

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Eight bits a channel, RGB, and the only methods of compression, filtering and no interlacing.
_RGB = (8, 2, 0, 0, 0)
#: The filter "Average": of all that are cheap, the one that leaves least.
_AVERAGE = 3
_ZLIB = b"\x78\x01"
_MOST_STORED = 65_535
#: Of more, zlib lets other threads take the interpreter's lock. To get it back, among threads
#: that decode, takes longer than a checksum: the files of twenty tiles took 7 ms, and 1 alone.
_LOCKED_BYTES = 5_120
#: Tiles that are filtered together: enough that numpy gives the lock away a few times for all of
#: them, and few enough to stay in a core's cache and in memory that is used again.
_BYTES_AT_ONCE = 256 * 2**10


def png_files(tiles: Sequence[NDArray[np.uint8]]) -> list[bytes]:
    """A PNG file of the pixels of each tile uint8 [h, w, 3], not compressed."""
    files: list[bytes] = []
    for shape, alike in groupby(tiles, key=lambda tile: tile.shape):
        waiting, most = list(alike), max(1, _BYTES_AT_ONCE // max(1, prod(shape)))
        for start in range(0, len(waiting), most):
            files += _png_files(np.stack(waiting[start : start + most]))
    return files


def _png_files(tiles: NDArray[np.uint8]) -> Iterator[bytes]:
    """Of tiles [n, h, w, 3]."""
    count, height, width, _ = tiles.shape
    header = struct.pack(">II5B", width, height, *_RGB)
    begin = b"".join((_SIGNATURE, *_chunk(b"IHDR", header)))
    end = b"".join(_chunk(b"IEND", b""))
    for lines in _filtered(tiles).reshape(count, -1):
        yield b"".join((begin, *_chunk(b"IDAT", _stored(lines.data)), end))


def _filtered(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The lines [n, h, 1 + 3 w] of tiles [n, h, w, 3], as differences from their neighbours."""
    count, height, width, _ = tiles.shape
    # With the black border that the filter sees beyond the edges.
    framed = np.zeros((count, height + 1, 3 * (width + 1)), np.uint8)
    framed[:, 1:, 3:] = tiles.reshape(count, height, -1)
    left, above = framed[:, 1:, :-3], framed[:, :-1, 3:]
    lines = np.empty((count, height, 1 + 3 * width), np.uint8)
    lines[:, :, 0] = _AVERAGE
    differences = lines[:, :, 1:]
    np.bitwise_xor(left, above, out=differences)
    np.right_shift(differences, 1, out=differences)
    differences += left & above  # the mean: rounded down, and without a carry
    np.subtract(framed[:, 1:, 3:], differences, out=differences)
    return lines


def _stored(data: memoryview) -> bytes:
    """A zlib stream (RFC 1950) of blocks that are not compressed (RFC 1951, 3.2.4)."""
    pieces: list[bytes | memoryview] = [_ZLIB]
    for start in range(0, len(data), _MOST_STORED):
        block = data[start : start + _MOST_STORED]
        last = start + len(block) == len(data)
        pieces += (struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block)
    return b"".join((*pieces, _summed(zlib.adler32, data, 1).to_bytes(4)))


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, ...]:
    check = _summed(zlib.crc32, memoryview(data), zlib.crc32(kind))
    return len(data).to_bytes(4), kind, data, check.to_bytes(4)


def _summed(add: Callable[[memoryview, int], int], data: memoryview, value: int) -> int:
    for start in range(0, len(data), _LOCKED_BYTES):
        value = add(data[start : start + _LOCKED_BYTES], value)
    return value
