"""Chunks inside of shards: an index in each file says where in it they lie."""

from __future__ import annotations

import math
from collections import OrderedDict
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.limits import MIB
from cvm_batch.archives.members.base import Members, check_member_size
from cvm_batch.archives.zarr.codecs import CHECKSUM_BYTES, DamagedChunkError, Data, decode_chunk
from cvm_batch.archives.zarr.metadata import ArraySpec, Sharding
from cvm_batch.errors import BadFormatError

#: Offset and length of a chunk that was not written.
_EMPTY = 2**64 - 1
_ENTRY_BYTES = 16
#: Indices that are kept: 2,000,000 chunks. Beyond that, those used last.
_KEPT_BYTES = 32 * MIB


class Shards:
    """The shards of one array. Only the chunks that are asked for are read."""

    def __init__(self, members: Members, spec: ArraySpec, sharding: Sharding) -> None:
        self._members = members
        self._spec = spec
        self._sharding = sharding
        self._entry_bytes = _ENTRY_BYTES * math.prod(spec.shard_grid)
        self._index_bytes = self._entry_bytes + CHECKSUM_BYTES * len(sharding.codecs)
        self._kept: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self._lock = Lock()

    def read(self, position: int, place: tuple[int, ...]) -> bytes | None:
        """The encoded chunk at a place inside of the shard that is the member ``position``.

        None where that chunk was not written. Raises DamagedChunkError, and what reading
        raises.
        """
        offset, size = self._index(position)[place].tolist()
        if offset < 0:
            return None
        check_member_size(size, f"a chunk of {self._members.names[position]!r}")
        return self._range(position, offset, size)

    def _range(self, position: int, offset: int, size: int) -> bytes:
        try:
            return self._members.read_at(position, offset, size)
        except BadFormatError:
            # Deflated in a zip, as `zip -r` does: no part of it can be read alone.
            return self._members.read(position)[offset : offset + size]

    def _index(self, position: int) -> NDArray[np.int64]:
        """Offset and length of each chunk of a shard [*shard_grid, 2]; -1 for none."""
        with self._lock:
            if position in self._kept:
                self._kept.move_to_end(position)
                return self._kept[position]
        # Outside of the lock: on object storage, threads would wait for one another.
        index = self._read_index(position)
        with self._lock:
            self._kept[position] = index
            while len(self._kept) > max(1, _KEPT_BYTES // self._entry_bytes):
                self._kept.popitem(last=False)
        return index

    def _read_index(self, position: int) -> NDArray[np.int64]:
        file_bytes = self._members.size(position)
        start = 0 if self._sharding.index_at_start else file_bytes - self._index_bytes
        if file_bytes < self._index_bytes:
            raise DamagedChunkError(f"{file_bytes} bytes, too few for its index")
        data: Data = self._range(position, start, self._index_bytes)
        data = decode_chunk(self._sharding.codecs, data, self._entry_bytes)
        if len(data) != self._entry_bytes:
            raise DamagedChunkError(f"its index has {len(data)} bytes, of {self._entry_bytes}")
        entries = np.frombuffer(data, f"{self._sharding.endian}u8").reshape(-1, 2)
        if self._sharding.index_at_start:
            checked = _checked(entries, self._index_bytes, file_bytes)
        else:
            checked = _checked(entries, 0, start)
        order = self._sharding.order
        turned = checked.reshape(*(self._spec.shard_grid[axis] for axis in order), 2)
        return turned.transpose(*np.argsort(order), len(order))


def _checked(entries: NDArray[Any], start: int, stop: int) -> NDArray[np.int64]:
    """Offsets and lengths [n, 2], found to lie in [start, stop) of the file, each by itself."""
    empty = (entries == _EMPTY).all(axis=1)
    offset, length = entries[~empty].T
    # In this order, as differences of unsigned numbers wrap around.
    if not ((start <= offset) & (offset <= stop) & (length <= stop - offset)).all():
        raise DamagedChunkError("its index points out of the file")
    by_offset = np.argsort(offset)
    if (np.diff(offset[by_offset]) < length[by_offset][:-1]).any():
        raise DamagedChunkError("its index tells of chunks that overlap")
    checked = entries.astype(np.int64)
    checked[empty] = -1
    return checked
