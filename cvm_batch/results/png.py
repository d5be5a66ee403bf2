"""Tiles as PNG files that cost little to make: filtered, and left to Parquet to compress.

The file format's own compression takes ten times as long as the zstd of the table around it,
which finds as much once the pixels are differences.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from zlib_ng import zlib_ng

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Eight bits a channel, RGB, and the only methods of compression, filtering and no interlacing.
_RGB = (8, 2, 0, 0, 0)
#: The filter "Average": of all that are cheap, the one that leaves least.
_AVERAGE = 3
_ZLIB = b"\x78\x01"
_MOST_STORED = 65_535
#: Before each block: whether it is the last, its bytes, and the same again with bits turned.
_BLOCK = struct.Struct("<BHH")
_SUM_BYTES = 4
#: Of more, zlib-ng as zlib lets other threads take the interpreter's lock. To get it back, among
#: threads that decode, takes longer than a checksum: with zlib, the files of twenty tiles took
#: 7 ms, and 1 alone.
_LOCKED_BYTES = 5_120
#: Tiles that are filtered together: enough that numpy gives the lock away a few times for all of
#: them, and few enough to stay in a core's cache and in memory that is used again.
_BYTES_AT_ONCE = 256 * 2**10


def png_files(tiles: Sequence[NDArray[np.uint8]]) -> pa.BinaryArray:
    """A PNG file of the pixels of each tile uint8 [h, w, 3], not compressed."""
    files = [
        _as_binary(_png_files(list(alike)))
        for _, alike in groupby(tiles, key=lambda tile: tile.shape)
    ]
    if len(files) == 1:
        return files[0]  # joining would be a copy
    return pa.concat_arrays(files or [pa.array([], pa.binary())])


def _png_files(tiles: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The files [n, bytes] of n tiles of one shape: all have one length."""
    height, width, _ = tiles[0].shape
    layout = _Layout(height, width)
    files = np.empty((len(tiles), layout.bytes), np.uint8)
    most = max(1, _BYTES_AT_ONCE // max(1, tiles[0].nbytes))
    framed = np.zeros((min(most, len(tiles)), height + 1, 1 + 3 * width), np.uint8)
    for start in range(0, len(tiles), most):
        several = tiles[start : start + most]
        frames = framed[: len(several)]
        for frame, tile in zip(frames, several, strict=True):
            frame[1:, 1:] = tile.reshape(height, -1)
        lines = _filtered(frames)
        layout.fill(files[start : start + most], lines.reshape(len(several), -1))
    return files


class _Layout:
    """Where what lies in the file of a tile: three chunks, the second a zlib stream (RFC 1950) of
    blocks that are not compressed (RFC 1951, 3.2.4)."""

    def __init__(self, height: int, width: int) -> None:
        lines = height * (1 + 3 * width)
        self._blocks = range(0, lines, _MOST_STORED)
        stored = len(_ZLIB) + len(self._blocks) * _BLOCK.size + lines + _SUM_BYTES
        header = struct.pack(">II5B", width, height, *_RGB)
        begin = _SIGNATURE + _chunk(b"IHDR", header)
        self._idat = len(begin) + _SUM_BYTES  # where its name begins, after its length
        self._begin = begin + stored.to_bytes(4) + b"IDAT" + _ZLIB
        self._end = _chunk(b"IEND", b"")
        self.bytes = self._idat + len(b"IDAT") + stored + _SUM_BYTES + len(self._end)

    def fill(self, files: NDArray[np.uint8], lines: NDArray[np.uint8]) -> None:
        """``files`` uint8 [n, bytes] with filtered ``lines`` uint8 [n, h * (1 + 3 w)]."""
        at = len(self._begin)
        files[:, :at] = _row(self._begin)
        for start in self._blocks:
            block = lines[:, start : start + _MOST_STORED]
            size = block.shape[1]
            last = start + size == lines.shape[1]
            files[:, at : at + _BLOCK.size] = _row(_BLOCK.pack(last, size, size ^ 0xFFFF))
            at += _BLOCK.size
            files[:, at : at + size] = block
            at += size
        files[:, at : at + _SUM_BYTES] = _sums(zlib_ng.adler32, 1, lines)
        at += _SUM_BYTES
        files[:, at : at + _SUM_BYTES] = _sums(zlib_ng.crc32, 0, files[:, self._idat : at])
        files[:, at + _SUM_BYTES :] = _row(self._end)


def _as_binary(files: NDArray[np.uint8]) -> pa.BinaryArray:
    count, size = files.shape
    ends = np.arange(count + 1, dtype=np.int32) * size
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(files)]
    return pa.Array.from_buffers(pa.binary(), count, buffers)


def _row(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib_ng.crc32(kind + data).to_bytes(4)


def _sums(
    add: Callable[[memoryview, int], int], value: int, rows: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """A checksum of each row, as bytes [n, 4]."""
    sums = np.array([_summed(add, row.data, value) for row in rows], ">u4")
    return sums.view(np.uint8).reshape(-1, _SUM_BYTES)


def _filtered(framed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The lines [n, h, 1 + 3 w] of tiles, as differences from their neighbours.

    ``framed`` [n, h + 1, 1 + 3 w]: the lines as they are, below the black line that the filter sees
    above them, and with zero for the filter's number. As one run of bytes, since numpy takes
    longer for a hundred short runs than for what is in them.
    """
    line = framed.shape[2]
    flat = framed.reshape(-1)
    filtered = np.empty_like(framed)
    differences = filtered.reshape(-1)[line:]
    left, above = flat[line - 3 : -3], flat[:-line]
    np.bitwise_xor(left, above, out=differences)
    np.right_shift(differences, 1, out=differences)
    differences += left & above  # the mean: rounded down, and without a carry
    np.subtract(flat[line:], differences, out=differences)
    lines = filtered[:, 1:]
    lines[:, :, 0] = _AVERAGE
    # To the left of the first pixel it is black, whatever ends the line above.
    first = slice(1, 4)
    np.subtract(framed[:, 1:, first], framed[:, :-1, first] >> 1, out=lines[:, :, first])
    return lines


def _summed(add: Callable[[memoryview, int], int], data: memoryview, value: int) -> int:
    for start in range(0, len(data), _LOCKED_BYTES):
        value = add(data[start : start + _LOCKED_BYTES], value)
    return value
