"""Tiles as PNG files that cost little to make: filtered, and left to Parquet to compress.

The file format's own compression takes ten times as long as the zstd of the table around it,
which finds as much once the pixels are differences.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Eight bits a channel, RGB, and the only methods of compression, filtering and no interlacing.
_RGB = (8, 2, 0, 0, 0)
#: The filter "Average": of all that are cheap, the one that leaves least.
_AVERAGE = 3


def png_files(tiles: Sequence[NDArray[np.uint8]]) -> list[bytes]:
    """A PNG file of the pixels of each tile uint8 [h, w, 3], not compressed."""
    if len({tile.shape for tile in tiles}) > 1:
        return [file for tile in tiles for file in png_files([tile])]
    if not tiles:
        return []
    count, (height, width, _) = len(tiles), tiles[0].shape
    # With the black border that the filter sees beyond the edges.
    framed = np.zeros((count, height + 1, 3 * (width + 1)), np.uint8)
    framed[:, 1:, 3:] = np.reshape(tiles, (count, height, -1))
    left, above = framed[:, 1:, :-3], framed[:, :-1, 3:]
    mean = (left & above) + ((left ^ above) >> 1)  # rounded down, and without a carry
    lines = np.empty((count, height, 1 + 3 * width), np.uint8)
    lines[:, :, 0] = _AVERAGE
    np.subtract(framed[:, 1:, 3:], mean, out=lines[:, :, 1:])
    begin = b"".join((_SIGNATURE, *_chunk(b"IHDR", struct.pack(">II5B", width, height, *_RGB))))
    end = b"".join(_chunk(b"IEND", b""))
    return [b"".join((begin, *_chunk(b"IDAT", zlib.compress(line.data, 0)), end)) for line in lines]


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, ...]:
    check = zlib.crc32(data, zlib.crc32(kind))
    return len(data).to_bytes(4), kind, data, check.to_bytes(4)
