"""The members of a zip file, by ranges of the file.

What a member's own header says must agree with the list of members. Section numbers are
those of PKWARE's APPNOTE.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from cvm_batch.archives.places.names import Names
from cvm_batch.archives.places.place import OpenFile
from cvm_batch.archives.places.spans import read_spans
from cvm_batch.errors import BadFormatError, ChecksumMismatchError

STORED, DEFLATED = 0, 8
_SIZES_BEHIND = 0x8
_UTF8 = 0x800

#: In a field of 16 or 32 bits: the number is in a zip64 record instead.
WIDE_16, WIDE_32 = 0xFFFF, 0xFFFFFFFF

LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7

#: Read along with a member for the extra field before its data. What tools write there
#: (times, owners, zip64 sizes, padding) takes less.
_EXTRA_ROOM = 128


class Record(NamedTuple):
    """A row of `ZipDirectory.records`. Offsets are in bytes of the zip file."""

    size: int
    """Bytes, unpacked."""
    packed: int
    header_at: int
    """Where the local header begins."""
    ends_at: int
    """Where the next member begins, or the list of members."""
    crc: int
    name_crc: int
    """CRC-32 of the name as it was recorded, in UTF-8."""
    name_bytes: int
    method: int


RECORD = np.dtype(list(zip(Record._fields, ["<i8"] * 4 + ["<u4"] * 2 + ["<u2"] * 2, strict=True)))


@dataclass(frozen=True, eq=False)
class ZipDirectory:
    """The files in a zip, in the order of their names."""

    names: Names
    records: NDArray[Any]
    """[n] of `Record`."""
    data_at: NDArray[np.int64]
    """[n] Where their data begin; -1 until `check_member_name` has looked."""

    @property
    def size(self) -> NDArray[np.int64]:
        """[n] Bytes, unpacked."""
        sizes: NDArray[np.int64] = self.records["size"]
        return sizes


def read_members(
    file: OpenFile, directory: ZipDirectory, positions: NDArray[np.int64], where: str
) -> Iterator[bytes]:
    """Whole members, in turn: another read only where the extra field before one is long.

    Raises ChecksumMismatchError where anything is not as recorded, and what reading raises.
    """
    records = [Record._make(row) for row in directory.records[positions].tolist()]
    blocks = read_spans(file, [_span(record) for record in records])
    for position, record, block in zip(positions, records, blocks, strict=True):
        try:
            content = _content(file, record, block)
        except _DamageError as error:
            raise _damaged_member(directory, int(position), where, error) from error
        yield content


def _span(record: Record) -> tuple[int, int]:
    """Where a member lies with its header, and what may lie between."""
    least = LOCAL.size + record.name_bytes + record.packed
    return record.header_at, min(record.ends_at, record.header_at + least + _EXTRA_ROOM)


def _content(file: OpenFile, record: Record, block: memoryview) -> bytes:
    start = _data_start(block, record)
    data = block[start : start + record.packed]
    if len(data) < record.packed:
        data = memoryview(file.read_at(record.header_at + start, record.packed))
    content = bytes(data) if record.method == STORED else _inflated(data, record.size)
    if len(content) != record.size or zlib_ng.crc32(content) != record.crc:
        raise _DamageError(f"is not what was packed: Bad CRC-32 or {len(content)} bytes")
    return content


def read_member_at(
    file: OpenFile, directory: ZipDirectory, position: int, offset: int, size: int, where: str
) -> bytes:
    """``size`` bytes of a stored member, fewer only where it ends. No checksum covers them.

    Raises BadFormatError where the member is deflated, and as `read_member`.
    """
    record = record_at(directory.records[position])
    if record.method != STORED:
        raise BadFormatError(
            f"{directory.names[position]!r} in {where} is deflated, so that no part of it can be "
            "read alone. Pack the slide anew, its members stored."
        )
    if directory.data_at[position] < 0:
        check_member_name(file, directory, position, where)
    size = max(0, min(size, record.packed - offset))
    data = file.read_at(int(directory.data_at[position]) + offset, size)
    if len(data) != size:
        error = _DamageError(f"is cut short: {len(data)} bytes of {size}")
        raise _damaged_member(directory, position, where, error)
    return data


def check_member_name(file: OpenFile, directory: ZipDirectory, position: int, where: str) -> None:
    """Raise ChecksumMismatchError where a member's own header differs from the list."""
    record = record_at(directory.records[position])
    title = f"{directory.names[position]!r} in {where}"
    directory.data_at[position] = find_data(file, record, title)


def record_at(row: Any) -> Record:
    return Record._make(row.item())


def find_data(file: OpenFile, record: Record, title: str) -> int:
    """Where a member's data begin. Raises ChecksumMismatchError."""
    block = file.read_at(record.header_at, LOCAL.size + record.name_bytes)
    try:
        return record.header_at + _data_start(memoryview(block), record)
    except _DamageError as error:
        raise damaged(f"{title} {error}") from error


class _DamageError(Exception):
    """What is wrong with a member, which the message names when it is known."""


def _damaged_member(
    directory: ZipDirectory, position: int, where: str, error: _DamageError
) -> ChecksumMismatchError:
    return damaged(f"{directory.names[position]!r} in {where} {error}")


def _data_start(block: memoryview, record: Record) -> int:
    """Length of the local header that ``block`` begins with, which must agree with the list."""
    names_at = LOCAL.size
    if len(block) < names_at + record.name_bytes:
        raise _DamageError("is not where the list of members says")
    mark, _, flags, method, _, _, crc, packed, size, name_bytes, extra = LOCAL.unpack_from(block)
    if mark != b"PK\3\4":
        raise _DamageError("is not where the list of members says")
    numbers = (crc, packed, size)
    recorded = (record.crc, record.packed, record.size)
    if (
        name_bytes != record.name_bytes
        or method != record.method
        or not _is_named(bytes(block[names_at : names_at + name_bytes]), flags, record)
        or not (numbers == recorded or flags & _SIZES_BEHIND or _are_wide(numbers, recorded))
    ):
        raise _DamageError(
            "differs between the list of members and its own header: name, method, sizes or CRC-32"
        )
    start: int = names_at + name_bytes + extra
    if start + record.packed > record.ends_at - record.header_at:
        raise _DamageError("runs into what follows it")
    return start


def _is_named(name: bytes, flags: int, record: Record) -> bool:
    # Nearly all names are ASCII, which is the same in either encoding.
    if zlib_ng.crc32(name) == record.name_crc:
        return True
    return crc_of(as_text(name, flags)) == record.name_crc


def _are_wide(numbers: tuple[int, ...], recorded: tuple[int, ...]) -> bool:
    """Whether what differs stands in a zip64 record instead."""
    return all(own in (its, WIDE_32) for own, its in zip(numbers, recorded, strict=True))


def _inflated(data: memoryview, size: int) -> bytes:
    stream = zlib_ng.decompressobj(-zlib_ng.MAX_WBITS)
    try:
        # One byte more than recorded: it shows a bomb, and lets an honest stream reach its end.
        content = stream.decompress(data, size + 1)
    except zlib_ng.error as error:  # type: ignore[misc]  # in its stub it is no class
        raise _DamageError(f"does not unpack: {error}") from error
    if len(content) <= size and (not stream.eof or stream.unused_data):
        raise _DamageError("does not unpack: it is cut short, or goes on behind its end")
    return content


def as_text(name: bytes, flags: int) -> str:
    # Backslashes are refused in names, so that no damaged one passes for another.
    return name.decode("utf-8" if flags & _UTF8 else "cp437", "backslashreplace")


def crc_of(name: str) -> int:
    return zlib_ng.crc32(name.encode())


def damaged(what: str) -> ChecksumMismatchError:
    return ChecksumMismatchError(f"{what}. The file is damaged: copy it again from its source.")
