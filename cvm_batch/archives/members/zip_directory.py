"""The list of members of a zip file, by ranges of the file.

The standard library's zipfile takes 1 kB of memory for each member, and asks the file for
a few bytes at a time. Section numbers below are those of PKWARE's APPNOTE.
"""

from __future__ import annotations

import stat
import struct
from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.limits import (
    MAX_COMPRESSION_RATIO,
    MAX_DIRECTORY_BYTES,
    MAX_MEMBER_BYTES,
    MAX_MEMBERS,
    RATIO_EXEMPT_BYTES,
)
from cvm_batch.archives.members.base import safe_name, sorted_names
from cvm_batch.archives.members.zip_content import (
    DEFLATED,
    LOCAL,
    RECORD,
    STORED,
    WIDE_16,
    WIDE_32,
    ZipDirectory,
    as_text,
    crc_of,
    damaged,
    find_data,
    record_at,
)
from cvm_batch.archives.places.names import Names
from cvm_batch.archives.places.place import OpenFile
from cvm_batch.errors import (
    BadFormatError,
    ChecksumMismatchError,
    OverLimitError,
    SlideError,
    UnsafeArchiveError,
)

_ENCRYPTED = 0x1 | 0x40 | 0x2000
_DOS_FOLDER = 0x10

_WIDE_END = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
_LOCATOR = struct.Struct("<4sLQL")  # 4.3.15
_END = struct.Struct("<4s4H2LH")  # 4.3.16
_LONGEST_END = _WIDE_END.size + _LOCATOR.size + _END.size + 0xFFFF

_ENTRY = np.dtype(  # 4.3.12
    [
        ("signature", "S4"),
        *((field, "<u2") for field in ("made_by", "version", "flags", "method", "time", "date")),
        *((field, "<u4") for field in ("crc", "packed", "size")),
        *((field, "<u2") for field in ("name", "extra", "comment", "disk", "internal")),
        *((field, "<u4") for field in ("external", "header_at")),
    ]
)
_ENTRY_LENGTHS = struct.Struct("<28x3H12x")

#: In the order in which their zip64 numbers come (4.5.3).
_WIDE_FIELDS = ("size", "packed", "header_at")


def read_directory(file: OpenFile, where: str) -> ZipDirectory:
    """List a zip file: one read, or two where it has more than some hundred members.

    Raises BadFormatError, ChecksumMismatchError, OverLimitError, UnsafeArchiveError or
    what reading raises.
    """
    tail_at = max(0, file.opened.size - _LONGEST_END)
    tail = file.read_at(tail_at, _LONGEST_END)
    end = _find_end(tail, tail_at, where)
    names, rows, records = _read_entries(file, tail, tail_at, end, where)
    return ZipDirectory(names, records[rows], np.full(len(names), -1, np.int64))


def _read_entries(
    file: OpenFile, tail: bytes, tail_at: int, end: _End, where: str
) -> tuple[Names, NDArray[np.int64], NDArray[Any]]:
    """The names of all files, and for each the row of its record; the list itself is let go."""
    if end.directory_at < tail_at:
        listed = file.read_at(end.directory_at, end.directory_bytes)
    else:
        listed = tail[end.directory_at - tail_at :][: end.directory_bytes]
    entries = _Entries(listed, end, where)
    names, order = sorted_names(entries.files(), where)
    entries.check(file.opened.size)
    for row in entries.doubtful_folders():
        find_data(file, record_at(entries.records[row]), entries.title(row))
    return names, np.flatnonzero(~entries.is_folder)[order], entries.records


# The end of the file


class _End(NamedTuple):
    """What the records at the end say of the list of members."""

    directory_at: int
    directory_bytes: int
    shift: int
    """Bytes before the zip, as of a program that unpacks it; recorded offsets leave them out."""
    members: int
    is_wide: bool


def _find_end(tail: bytes, tail_at: int, where: str) -> _End:
    at = _end_at(tail, where)
    _, disk, _, here, members, length, offset, _ = _END.unpack_from(tail, at)
    if disk not in (0, WIDE_16) or here != members:
        raise BadFormatError(f"{where} is one part of a split zip file. Join its parts first.")
    wide_at = at - _LOCATOR.size - _WIDE_END.size
    is_wide = wide_at >= 0 and tail.startswith(b"PK\6\7", at - _LOCATOR.size)
    if is_wide:
        narrow = (members, length, offset)
        signature, *_, members, length, offset = _WIDE_END.unpack_from(tail, wide_at)
        numbers = zip(narrow, (members, length, offset), (WIDE_16, WIDE_32, WIDE_32), strict=True)
        if signature != b"PK\6\6" or any(own not in (wide, top) for own, wide, top in numbers):
            raise damaged(f"{where} has two records at its end that differ, or lacks one")
        at = wide_at
    if length > MAX_DIRECTORY_BYTES:
        raise OverLimitError(
            f"{where} has a list of members of {length} bytes, more than the "
            f"{MAX_DIRECTORY_BYTES} that a slide may have. Split it into slides."
        )
    directory_at = tail_at + at - length
    shift = directory_at - offset
    if directory_at < 0 or shift < 0:
        raise _not_whole(where, "the list of its members would begin before the file")
    return _End(directory_at, length, shift, members, is_wide)


def _end_at(tail: bytes, where: str) -> int:
    at = len(tail)
    while (at := tail.rfind(b"PK\5\6", 0, at)) >= 0:
        rest = len(tail) - at - _END.size
        # A comment may hold the same bytes, but is not as long as they then say.
        if rest >= 0 and _END.unpack_from(tail, at)[-1] == rest:
            return at
    raise _not_whole(where, "it does not end as one")


def _not_whole(where: str, why: str) -> BadFormatError:
    return BadFormatError(
        f"{where} is not a whole zip file: {why}. It may be cut short or still being copied: "
        "copy it again."
    )


# The list of members


class _Entries:
    """The entries of the list, folders among them: a row each, as they come."""

    def __init__(self, listed: bytes, end: _End, where: str) -> None:
        self._listed = listed
        self._where = where
        self._starts, fields = _walk(listed, where)
        _check_count(len(self._starts), end, where)
        # Copies: all fields together would take 10 MB more for 200,000 members.
        self._flags, self._external = fields["flags"].copy(), fields["external"].copy()
        self._kind = (self._external >> 16) & stat.S_IFMT(0xFFFF)
        """From the Unix mode; zero where the packing system had none."""
        self.is_folder = np.zeros(len(self._starts), np.bool_)
        self.records = self._numbers(fields, end)

    def title(self, row: int) -> str:
        return f"{self._name(row)!r} in {self._where}"

    def files(self) -> Iterator[str]:
        """Names as ``sub/name``; afterwards `is_folder` and all of `records` are known."""
        crcs = array("I")
        for row in range(len(self._starts)):
            name = self._name(row)
            crcs.append(crc_of(name))
            self.is_folder[row] = name.endswith("/")
            if name == "./":
                continue
            plain = safe_name(name, self._where)
            if not name.endswith("/"):
                yield plain
        self.records["name_crc"] = crcs

    def doubtful_folders(self) -> Iterator[int]:
        """Rows that only their name makes folders: a damaged name could end in a slash."""
        marked = (self._kind == stat.S_IFDIR) | (self._external & _DOS_FOLDER != 0)
        yield from np.flatnonzero(self.is_folder & ~marked).tolist()

    def check(self, zip_bytes: int) -> None:
        """Raise what speaks against reading the members of a zip of ``zip_bytes``."""
        for wrong, error, why in self._refusals():
            if wrong.any():
                raise error(f"{self.title(int(wrong.argmax()))} {why}")
        unpacked = int(self.records["size"].sum())
        if unpacked > max(RATIO_EXEMPT_BYTES, MAX_COMPRESSION_RATIO * zip_bytes):
            raise OverLimitError(
                f"{self._where} would unpack from {zip_bytes} to {unpacked} bytes, more than "
                f"{MAX_COMPRESSION_RATIO} times its size, as in a zip bomb. Check its origin."
            )

    def _refusals(self) -> Iterator[tuple[NDArray[np.bool_], type[SlideError], str]]:
        """Which rows are wrong, and how."""
        size, packed, kind = self.records["size"], self.records["packed"], self._kind
        special = ~np.isin(kind, (0, stat.S_IFREG, stat.S_IFDIR))
        yield special, UnsafeArchiveError, "is a link or a device. Pack the files themselves."
        encrypted = self._flags & _ENCRYPTED != 0
        yield encrypted, UnsafeArchiveError, "is encrypted. Pack it anew, without a password."
        other = ~np.isin(self.records["method"], (STORED, DEFLATED))
        yield other, BadFormatError, "must be packed anew: stored and deflated members are read."
        giant = np.maximum(size, packed) > MAX_MEMBER_BYTES
        most = f"the {MAX_MEMBER_BYTES} that a part of a slide may have"
        yield giant, OverLimitError, f"has more bytes than {most}. Check how it was made."
        least = LOCAL.size + self.records["name_bytes"].astype(np.int64) + packed
        long = least > self.records["ends_at"] - self.records["header_at"]
        yield long, UnsafeArchiveError, "and what follows it overlap, as in a zip bomb. Pack anew."
        as_file = (kind == stat.S_IFREG) | (size > 0)
        odd = np.where(self.is_folder, as_file, kind == stat.S_IFDIR)
        yield odd, ChecksumMismatchError, "is listed as a file and as a folder. Copy the zip again."

    def _name(self, row: int) -> str:
        """As it was recorded."""
        start = self._starts[row] + _ENTRY.itemsize
        name = self._listed[start : start + int(self.records["name_bytes"][row])]
        return as_text(name, int(self._flags[row]))

    def _numbers(self, fields: NDArray[Any], end: _End) -> NDArray[Any]:
        """All of a record but the name's CRC-32."""
        records = np.zeros(len(fields), RECORD)
        for field in (*_WIDE_FIELDS, "crc", "method"):
            records[field] = fields[field]
        records["name_bytes"] = fields["name"]
        wide = np.logical_or.reduce([fields[field] == WIDE_32 for field in _WIDE_FIELDS])
        for row in np.flatnonzero(wide).tolist():
            self._widen(records[row], self._starts[row], fields[row])
        records["header_at"] += end.shift
        order = records["header_at"].argsort()
        following = np.append(records["header_at"][order], end.directory_at)[1:]
        records["ends_at"][order] = following
        return records

    def _widen(self, record: Any, start: int, fields: Any) -> None:
        start += _ENTRY.itemsize + int(fields["name"])
        numbers = _wide_numbers(self._listed[start : start + int(fields["extra"])])
        for field in _WIDE_FIELDS:
            if record[field] == WIDE_32:
                record[field] = next(numbers, -1)
                if record[field] < 0:
                    raise _not_whole(self._where, "a zip64 number of a member is missing")


def _walk(listed: bytes, where: str) -> tuple[array[int], NDArray[Any]]:
    """Where each entry of the list starts in it, and its fields."""
    starts, fields = array("q"), bytearray()
    at = 0
    while at < len(listed):
        entry = listed[at : at + _ENTRY.itemsize]
        if len(entry) < _ENTRY.itemsize or not entry.startswith(b"PK\1\2"):
            raise _not_whole(where, "the list of its members is damaged")
        starts.append(at)
        fields += entry
        at += _ENTRY.itemsize + sum(_ENTRY_LENGTHS.unpack(entry))
    if at != len(listed):
        raise _not_whole(where, "the list of its members is cut short")
    return starts, np.frombuffer(fields, _ENTRY)


def _check_count(listed: int, end: _End, where: str) -> None:
    if listed > MAX_MEMBERS:
        raise OverLimitError(
            f"{where} has {listed} members, more than the {MAX_MEMBERS} that a slide may have. "
            "Split it into slides."
        )
    # A damaged length in the list swallows the entries that follow, and their tiles with
    # them. Where there is no zip64 record, some tools let the number run over.
    if end.members != (listed if end.is_wide else listed % 0x10000):
        raise damaged(f"{where} records {end.members} members and lists {listed}")


def _wide_numbers(extra: bytes) -> Iterator[int]:
    """What the zip64 field holds, or nothing where there is none."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        at += 4
        if tag == 1:
            yield from struct.unpack_from(f"<{len(extra[at : at + length]) // 8}q", extra, at)
        at += length
