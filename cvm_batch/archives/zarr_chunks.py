"""From a stored zarr chunk to an array, and from all chunks of a small array to one.

A chunk that is not there is never filled in, as zarr does: that would be blank glass.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.archive import Integrity
from cvm_batch.archives.members import Members
from cvm_batch.archives.zarr_codecs import DamagedChunkError, Data, decode_chunk
from cvm_batch.archives.zarr_metadata import ArraySpec
from cvm_batch.errors import BadFormatError, ChecksumMismatchError, SlideError


def integrity_of(members: Members, spec: ArraySpec) -> Integrity:
    """Whether reading a chunk compares a checksum: of a codec, or of the zip around it."""
    if any(codec.verifies for codec in spec.codecs):
        return Integrity.VERIFIED
    return members.integrity


def read_chunk(members: Members, spec: ArraySpec, key: str) -> NDArray[Any]:
    """The chunk ``key``, of shape ``spec.chunks``; texts as objects.

    Raises ChecksumMismatchError where it does not decode and a checksum says what it
    should have been, BadFormatError where none does, and what reading raises.
    """
    try:
        data = decode_chunk(spec.codecs, members.read(key), spec.chunk_bytes)
        if spec.dtype is None:
            return _texts(data, spec.chunks)
        if len(data) != spec.chunk_bytes:
            raise DamagedChunkError(f"{len(data)} bytes, of {spec.chunk_bytes}")
        return np.frombuffer(data, spec.dtype).reshape(spec.chunks)
    except (DamagedChunkError, struct.error, UnicodeDecodeError) as error:
        raise _damaged(members, spec, key, error) from error


def read_whole(members: Members, spec: ArraySpec) -> NDArray[Any]:
    """All of an array. Raises BadFormatError where a chunk is missing, and as `read_chunk`."""
    whole = np.empty(spec.shape, object if spec.dtype is None else spec.dtype)
    for position in np.ndindex(*spec.grid):
        key = spec.key(position)
        if key not in members:
            raise BadFormatError(
                f"{members.path} lacks the chunk {key!r}: copy it again. If its values are all "
                "zero, write it with write_empty_chunks, to tell them from lost ones."
            )
        whole[_region(position, spec.chunks)] = _clipped(
            read_chunk(members, spec, key), position, spec
        )
    return whole


def _region(position: Sequence[int], chunks: Sequence[int]) -> tuple[slice, ...]:
    return tuple(
        slice(at * side, (at + 1) * side) for at, side in zip(position, chunks, strict=True)
    )


def _clipped(chunk: NDArray[Any], position: Sequence[int], spec: ArraySpec) -> NDArray[Any]:
    """The part of an edge chunk that lies inside the array."""
    sides = zip(position, spec.chunks, spec.shape, strict=True)
    return chunk[tuple(slice(0, length - at * side) for at, side, length in sides)]


def _texts(data: Data, shape: tuple[int, ...]) -> NDArray[Any]:
    """vlen-utf8: a count, then each text after its length; all little-endian uint32."""
    view = memoryview(data)
    (count,) = struct.unpack_from("<I", view)
    texts = []
    at = 4
    for _ in range(count):
        (length,) = struct.unpack_from("<I", view, at)
        at += 4 + length
        if at > len(view):
            raise DamagedChunkError("vlen-utf8: it is cut short")
        texts.append(str(view[at - length : at], "utf-8"))
    if at != len(view) or (count,) != shape:
        raise DamagedChunkError(f"vlen-utf8: {count} texts for a chunk of shape {shape}")
    return np.array(texts, dtype=object)


def _damaged(members: Members, spec: ArraySpec, key: str, why: Exception) -> SlideError:
    where = f"the chunk {key!r} in {members.path} does not decode: {why}."
    if integrity_of(members, spec) is Integrity.VERIFIED:
        return ChecksumMismatchError(f"Damaged: {where} Copy the archive again from its source.")
    return BadFormatError(
        f"Damaged or not what its metadata say: {where} Copy the archive again, or write it anew."
    )
