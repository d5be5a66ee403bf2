"""How a slide is stored when it is packed: arrays of a zarr v3 group, and their chunks.

    tiles     uint8 [N, h, w, 3]; or bytes [N], RGB pixels [h, w, 3], where sizes vary
    size      int32 [N, 2], height and width, where sizes vary
    xy        float64 [N, 2], level-0 pixels, where known
    cell_id   text [N], where known
    readable  bool [N], where a tile could not be read
    padded    bool [N], where a tile reaches beyond the slide's border

Documents and chunks are made here, not by zarr: its documents differ from version to
version, and the same slide must give the same bytes. Every chunk is compressed, ends with
its CRC-32C, and is there even if all of it is zero: one that is not there was lost.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numcodecs import Blosc, blosc  # type: ignore[import-untyped]
from numcodecs.checksum32 import CRC32C  # type: ignore[import-untyped]
from numpy.typing import NDArray

from cvm_batch.archives.limits import MIB

# What it compresses to must not depend on how many threads it has.
blosc.use_threads = False

GROUP_DOCUMENT = "zarr.json"
CHECKSUM_BYTES = 4
#: Decoded. Two of them fit into a reader's limit together with what is around them.
MAX_PACKED_CHUNK_BYTES = 32 * MIB
_MOST_TILES = 256
_MOST_ROWS = 65_536
_LENGTH = struct.Struct("<I")

#: A chunk's content before it is compressed.
Raw = bytes | NDArray[Any]


class MisfitError(ValueError):
    """The tiles of a slide cannot be stored in this layout."""


@dataclass(frozen=True, kw_only=True)
class TileLayout:
    """How the tiles of one slide are stored."""

    tiles: int
    chunk: int
    """Tiles in a chunk."""
    px: tuple[int, int] | None
    """Height and width of every tile; None where sizes vary."""

    @classmethod
    def equal(cls, tiles: int, px: tuple[int, int]) -> TileLayout:
        fit = MAX_PACKED_CHUNK_BYTES // (px[0] * px[1] * 3)
        return cls(tiles=tiles, chunk=max(1, min(tiles, _MOST_TILES, fit)), px=px)

    @classmethod
    def varying(cls, tiles: int) -> TileLayout:
        return cls(tiles=tiles, chunk=min(tiles, _MOST_TILES), px=None)

    def next(self) -> TileLayout:
        """The layout for tiles that do not fit this one. A single tile always fits."""
        if self.px is not None:
            return TileLayout.varying(self.tiles)
        return replace(self, chunk=max(1, self.chunk // 4))

    @property
    def chunks(self) -> int:
        return -(-self.tiles // self.chunk)

    @property
    def chunks_of_rows(self) -> int:
        """Chunks of tiles whose other columns make one chunk."""
        return max(1, _MOST_ROWS // self.chunk)

    def span(self, chunk: int) -> tuple[int, int]:
        """The tiles [start, stop) of a chunk."""
        return chunk * self.chunk, min((chunk + 1) * self.chunk, self.tiles)

    def check(self, tile: NDArray[np.uint8], filled: int) -> None:
        """Raise MisfitError unless a chunk of ``filled`` bytes can take ``tile`` too."""
        if self.px is not None and tile.shape[:2] != self.px:
            raise MisfitError(f"a tile of {tile.shape[:2]}, not {self.px}")
        if filled + tile.nbytes > MAX_PACKED_CHUNK_BYTES and self.chunk > 1:
            raise MisfitError(f"{self.chunk} tiles have more than {MAX_PACKED_CHUNK_BYTES} bytes")


class Column(NamedTuple):
    """One array of the group."""

    name: str
    data_type: str
    """As zarr spells it."""
    sides: tuple[int, ...] = ()
    """Of one row; the array has these axes after the first."""
    compressor: Mapping[str, Any] | None = None

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """None for text and bytes."""
        return None if self.data_type in _VARYING else np.dtype(self.data_type)

    def chunk_name(self, number: int) -> str:
        # With dots, as a folder for each axis of each chunk would be thousands of folders.
        return f"{self.name}/c." + ".".join(map(str, (number, *(0 for _ in self.sides))))

    def document(self, rows: int, chunk: int) -> bytes:
        """The array's metadata: ``rows`` of them, ``chunk`` in each chunk."""
        grid = {"chunk_shape": [chunk, *self.sides]}
        return _json(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": [rows, *self.sides],
                "data_type": self.data_type,
                "chunk_grid": {"name": "regular", "configuration": grid},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                "fill_value": "" if self.dtype is None else self.dtype.type(0).item(),
                "codecs": [
                    self._first_codec(),
                    {"name": "blosc", "configuration": self._blosc()},
                    {"name": "crc32c"},
                ],
                "attributes": {},
            }
        )

    def encode(self, rows: Sequence[Any] | NDArray[Any], chunk: int) -> bytes:
        """A chunk of so many rows as it is stored; those that lack at the end are empty."""
        if self.dtype is None:
            items = [row.encode() if isinstance(row, str) else row for row in rows]
            return self.seal(_joined([*items, *[b""] * (chunk - len(items))]))
        values = np.zeros((chunk, *self.sides), self.dtype.newbyteorder("<"))
        values[: len(rows)] = rows
        return self.seal(values)

    def seal(self, raw: Raw) -> bytes:
        """Compress, and put the checksum behind it."""
        settings = self._blosc()
        blosc_codec = Blosc(**settings | {"shuffle": _SHUFFLES[settings["shuffle"]]})
        packed: bytes = blosc_codec.encode(raw)
        return packed + int(CRC32C.checksum(packed, 0)).to_bytes(CHECKSUM_BYTES, "little")

    def _first_codec(self) -> dict[str, Any]:
        if self.dtype is None:
            return {"name": _VARYING[self.data_type], "configuration": {}}
        if self.dtype.itemsize == 1:
            return {"name": "bytes"}
        return {"name": "bytes", "configuration": {"endian": "little"}}

    def _blosc(self) -> dict[str, Any]:
        if self.compressor is not None:
            return dict(self.compressor)
        itemsize = 1 if self.dtype is None else self.dtype.itemsize
        return {
            "cname": "zstd",
            "clevel": 5,
            "shuffle": "shuffle" if itemsize > 1 else "noshuffle",
            "typesize": itemsize,
            "blocksize": 0,
        }


_VARYING = {"string": "vlen-utf8", "variable_length_bytes": "vlen-bytes"}
_SHUFFLES = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}
#: The fastest to decode of those that pay for noisy pixels.
_PIXELS = {
    "cname": "lz4",
    "clevel": 5,
    "shuffle": "bitshuffle",
    "typesize": 1,
    "blocksize": 0,
}

XY = Column("xy", "float64", (2,))
CELL_ID = Column("cell_id", "string")
SIZE = Column("size", "int32", (2,))
READABLE = Column("readable", "bool")
PADDED = Column("padded", "bool")

#: Stands for a tile that could not be read, where sizes vary.
BLANK = np.zeros((1, 1, 3), np.uint8)


def tiles_column(layout: TileLayout) -> Column:
    if layout.px is None:
        return Column("tiles", "variable_length_bytes", (), _PIXELS)
    return Column("tiles", "uint8", (*layout.px, 3), _PIXELS)


def encode_tiles(layout: TileLayout, tiles: Sequence[NDArray[np.uint8] | None]) -> bytes:
    """A chunk of tiles that passed `TileLayout.check`; None is one that could not be read."""
    column = tiles_column(layout)
    if layout.px is None:
        shown = [BLANK if tile is None else tile for tile in tiles]
        return column.encode([tile.tobytes() for tile in shown], layout.chunk)
    pixels = np.zeros((layout.chunk, *layout.px, 3), np.uint8)
    for position, tile in enumerate(tiles):
        if tile is not None:
            pixels[position] = tile
    return column.seal(pixels)


def group_document(mpp: tuple[float, float] | None) -> bytes:
    attributes = {} if mpp is None else {"mpp": list(mpp)}
    return _json({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def _joined(items: Sequence[bytes]) -> bytes:
    """As vlen-utf8 and vlen-bytes have it: their number, and each after its length."""
    lengths = (_LENGTH.pack(len(item)) for item in items)
    pairs = (part for pair in zip(lengths, items, strict=True) for part in pair)
    return b"".join((_LENGTH.pack(len(items)), *pairs))


def _json(value: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(value, indent=1, sort_keys=True)}\n".encode()
