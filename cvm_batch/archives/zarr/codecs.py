"""Decoding zarr chunks: a short list of codecs, each bounded in what it may unpack.

Chunks are decoded here rather than by zarr, since what a damaged or hostile chunk does
there cannot be told from its result: a truncated blosc chunk is read past its end and
gives noise or ends the process, a gzip chunk unpacks to any size, and codec names of the
metadata are looked up among all installed plug-ins. As a chunk needs no event loop on its
way, this is also twice as fast. zarr's own reading of the same data is what the tests
compare with.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numcodecs import LZ4, Blosc, Zstd, blosc  # type: ignore[import-untyped]
from numcodecs.checksum32 import CRC32, CRC32C, Adler32  # type: ignore[import-untyped]
from zlib_ng import zlib_ng

from cvm_batch.errors import BadFormatError, UnsafeArchiveError

# Reading threads share the cores already. zarr sets the same where it is imported.
blosc.use_threads = False

#: Bytes of a decoded or encoded chunk.
Data = bytes | memoryview
#: Where to put decoded bytes if there are just as many; else they go elsewhere.
Target = memoryview | None

CHECKSUM_BYTES = 4
_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_HAS_CHECKSUM = 0x04
#: The CRC-32C of any bytes that end with their own CRC-32C.
_CRC32C_RESIDUE = 0x48674BC7
#: What decoders raise for bytes that they do not take. In its stub, zlib_ng's is no class.
_DAMAGE = (RuntimeError, ValueError, TypeError, struct.error, cast(Any, zlib_ng.error))


class DamagedChunkError(ValueError):
    """Stored bytes that do not decode to a chunk, or not to this one."""


@dataclass(frozen=True)
class Codec:
    """One step from stored bytes towards a chunk."""

    name: str
    verifies: bool
    """Whether decoding compares a checksum."""
    decode: Callable[[Data, int, Target], Data]
    """(data, limit, into): decoded bytes, at most ``limit`` of them."""
    is_checksum: bool = False


def decode_chunk(codecs: Sequence[Codec], data: Data, limit: int, into: Target = None) -> Data:
    """Undo ``codecs``, outermost first. Raises DamagedChunkError.

    ``limit``: bytes of the decoded chunk, at most. Returns ``into`` itself where the last
    codec has filled that.
    """
    for step, codec in enumerate(codecs):
        rest = codecs[step + 1 :]
        inner = sum(codec.is_checksum for codec in rest)
        try:
            data = codec.decode(data, limit + CHECKSUM_BYTES * inner, None if rest else into)
        except DamagedChunkError:
            raise
        except _DAMAGE as error:
            raise DamagedChunkError(f"{codec.name}: {error}") from error
    return data


def parse_codec(name: str, settings: Mapping[str, Any], where: str) -> Codec:
    """Raises UnsafeArchiveError for a codec that is not on the list, else BadFormatError."""
    known = name.removeprefix("numcodecs.")
    if known in _COMPRESSORS:
        decode = _COMPRESSORS[known]
        if known == "zstd" and settings.get("checksum") is True:
            decode = _zstd_with_checksum
        verifies = known in ("gzip", "zlib") or (
            known == "zstd" and settings.get("checksum") is True
        )
        return Codec(known, verifies, decode)
    if known in _CHECKSUMS:
        return _checksum(known, settings, where)
    raise UnsafeArchiveError(
        f"{where} uses the codec {name!r}; read are {', '.join((*_COMPRESSORS, *_CHECKSUMS))}. "
        "Store it with one of these."
    )


def _blosc(data: Data, limit: int, into: Target) -> Data:
    # c-blosc trusts the sizes in its header: compare them with what is really there.
    size, _, stored = struct.unpack_from("<4xIII", data)
    _check_claim("blosc", size, limit)
    if stored != len(data):
        raise DamagedChunkError(f"blosc: {len(data)} bytes, of {stored} that it should have")
    out = _room(size, into)
    Blosc().decode(data, out)
    return out


def _lz4(data: Data, limit: int, into: Target) -> Data:
    (size,) = struct.unpack_from("<I", data)
    _check_claim("lz4", size, limit)
    out = _room(size, into)
    LZ4().decode(data, out)
    return out


def _zstd(data: Data, limit: int, into: Target) -> Data:
    size = _zstd_content_size(data)
    if size is None:
        # Written by a streaming encoder. Decoding fails unless it gives `limit` bytes,
        # which is what a chunk of numbers must have.
        size = limit
    _check_claim("zstd", size, limit)
    out = _room(size, into)
    Zstd().decode(data, out)
    return out


def _zstd_with_checksum(data: Data, limit: int, into: Target) -> Data:
    # What the metadata promise counts only where the frame keeps it.
    _, descriptor = struct.unpack_from("<IB", data)
    if not descriptor & _ZSTD_HAS_CHECKSUM:
        raise DamagedChunkError("zstd: it has no checksum, though the metadata say so")
    return _zstd(data, limit, into)


def _zstd_content_size(data: Data) -> int | None:
    """The decoded size that a zstd frame states, or None (RFC 8878, 3.1.1.1)."""
    magic, descriptor = struct.unpack_from("<IB", data)
    if magic != _ZSTD_MAGIC:
        raise DamagedChunkError("zstd: it does not begin as a zstd frame")
    single_segment = bool(descriptor & 0x20)
    start = 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 0x3]
    flag = descriptor >> 6
    if flag == 0 and not single_segment:
        return None
    (size,) = struct.unpack_from(("<B", "<H", "<I", "<Q")[flag], data, start)
    return int(size) + 256 if flag == 1 else int(size)


def _inflate(window_bits: int) -> Callable[[Data, int, Target], Data]:
    def decode(data: Data, limit: int, into: Target) -> Data:
        stream = zlib_ng.decompressobj(window_bits)
        # One byte more than allowed: it shows a bomb, and lets an honest stream reach its
        # end, where its checksum is compared.
        out = stream.decompress(data, limit + 1)
        if len(out) > limit:
            raise DamagedChunkError(f"deflate: it unpacks to more than {limit} bytes")
        if not stream.eof or stream.unused_data:
            raise DamagedChunkError("deflate: it is cut short, or has something behind it")
        return out

    return decode


def _room(size: int, into: Target) -> memoryview:
    # Not a bytearray, which is filled with zeros first.
    return into if into is not None and len(into) == size else np.empty(size, np.uint8).data


def _check_claim(name: str, size: int, limit: int) -> None:
    if size > limit:
        raise DamagedChunkError(f"{name}: it claims {size} bytes, at most {limit} can be")


def _checksum(name: str, settings: Mapping[str, Any], where: str) -> Codec:
    kind, usual_location = _CHECKSUMS[name]
    location = settings.get("location") or usual_location
    if location not in ("start", "end"):
        raise BadFormatError(f"{where}: codec {name!r} has the location {location!r}.")
    checker = kind(location=location)

    def decode(data: Data, limit: int, into: Target) -> Data:
        # What is left is in memory already, so that there is nothing to bound.
        return memoryview(checker.decode(data))

    if (name, location) == ("crc32c", "end"):
        decode = _crc32c_at_end
    return Codec(name, verifies=True, decode=decode, is_checksum=True)


def _crc32c_at_end(data: Data, limit: int, into: Target) -> Data:
    # Over all bytes, their own CRC included: only of whole `bytes` is it computed without
    # the interpreter's lock, and to cut the end off would be a copy.
    whole = data if isinstance(data, bytes) else np.frombuffer(data, np.uint8)
    if len(whole) < CHECKSUM_BYTES:
        raise DamagedChunkError(f"crc32c: {len(whole)} bytes, too few for a checksum")
    if CRC32C.checksum(whole, 0) != _CRC32C_RESIDUE:
        raise DamagedChunkError("crc32c: the stored checksum is not that of the data")
    return memoryview(data)[:-CHECKSUM_BYTES]


_COMPRESSORS: Mapping[str, Callable[[Data, int, Target], Data]] = {
    "blosc": _blosc,
    "zstd": _zstd,
    "lz4": _lz4,
    "gzip": _inflate(16 + zlib_ng.MAX_WBITS),
    "zlib": _inflate(zlib_ng.MAX_WBITS),
}
#: With where numcodecs puts them when nothing else is said. Not fletcher32: numcodecs
#: checks that with an assert, which `python -O` takes away.
_CHECKSUMS: Mapping[str, tuple[Any, str]] = {
    "crc32": (CRC32, "start"),
    "crc32c": (CRC32C, "end"),
    "adler32": (Adler32, "start"),
}
