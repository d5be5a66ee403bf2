"""The list of members of a tar file, and its members.

A tar has no list: a header stands before each member, under a checksum of its own. The
content has none, nor have the long names that come as content of their own. Read are V7,
ustar, GNU and pax, all in one pass; where two readers of tars could disagree on what a
member is, it is refused.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.limits import MAX_DIRECTORY_BYTES, MAX_MEMBER_BYTES, MAX_MEMBERS, MIB
from cvm_batch.archives.members.base import check_member_size, safe_name, sorted_names
from cvm_batch.archives.places.names import Names, decode
from cvm_batch.archives.places.place import OpenFile
from cvm_batch.archives.places.spans import read_spans
from cvm_batch.errors import BadFormatError, OverLimitError, UnsafeArchiveError

_BLOCK = 512
_END = bytes(_BLOCK)

#: Small members are passed over with reads of this size, so that thousands cost one read.
_WINDOW = MIB
#: Behind a member larger than `_FAR`, only its neighbour's headers are read.
_FAR, _PEEK = MIB // 4, 8 * _BLOCK

#: A long name with whatever else a pax header tells of a file.
_MAX_TEXT_BYTES = MIB
#: Zeros behind the end. Tapes want records of up to some 100 kB filled.
_MAX_PADDING_BYTES = MIB

#: From here on a size has no room in octal digits, and stands in a pax header alone.
_WIDE_SIZE = 8**11

_FILES, _FOLDER = (b"0", b"\0", b"7"), b"5"
_PAX, _PAX_GLOBAL, _LONG_NAME = (b"x", b"X"), b"g", b"L"
#: Headers that tell of the member behind them.
_TELLING = (*_PAX, _PAX_GLOBAL, _LONG_NAME)
_SPECIAL = {
    b"1": "link",
    b"2": "link",
    b"3": "device",
    b"4": "device",
    b"6": "pipe",
    b"K": "link",
    b"S": "sparse file",
}
_SPARSE_KEYS = (b"GNU.sparse.", b"SCHILY.realsize")

#: Of the length of a pax record. A text is shorter than ten million bytes.
_MOST_DIGITS = 8

_COMPRESSED = {
    b"\x1f\x8b": "gzip -d",
    b"BZh": "bzip2 -d",
    b"\xfd7zXZ\0": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}


@dataclass(frozen=True, eq=False)
class TarDirectory:
    """The files in a tar, in the order of their names."""

    names: Names
    data_at: NDArray[np.int64]
    """[n] Where their content begins, in bytes of the tar file."""
    size: NDArray[np.int64]
    """[n] Bytes."""


def read_directory(file: OpenFile, size: int, where: str) -> TarDirectory:
    """List a tar file of ``size`` bytes, which is passed over in reads of 1 MiB or less.

    Raises BadFormatError, OverLimitError, UnsafeArchiveError or what reading raises.
    """
    data_at, sizes = array("q"), array("q")

    def taken() -> Iterator[str]:
        for member in _Tar(file, size, where).files():
            data_at.append(member.data_at)
            sizes.append(member.size)
            yield member.name

    names, order = sorted_names(taken(), where)
    return TarDirectory(
        names, np.frombuffer(data_at, np.int64)[order], np.frombuffer(sizes, np.int64)[order]
    )


def read_members(
    file: OpenFile, directory: TarDirectory, positions: NDArray[np.int64], where: str
) -> Iterator[bytes]:
    """Whole members, in turn. No checksum covers them.

    Raises BadFormatError, OverLimitError or what reading raises.
    """
    data_at, size = directory.data_at[positions], directory.size[positions]
    for position in positions[size > MAX_MEMBER_BYTES]:
        check_member_size(int(directory.size[position]), _title(directory, int(position), where))
    spans = list(zip(data_at.tolist(), (data_at + size).tolist(), strict=True))
    blocks = read_spans(file, spans)
    for position, (start, stop), data in zip(positions, spans, blocks, strict=True):
        if len(data) != stop - start:
            name = _title(directory, int(position), where)
            raise _not_whole(where, f"it ends in the middle of {name}")
        yield bytes(data)


def _title(directory: TarDirectory, position: int, where: str) -> str:
    return f"{directory.names[position]!r} in {where}"


class _File(NamedTuple):
    name: str
    data_at: int
    size: int


class _Header(NamedTuple):
    at: int
    kind: bytes
    name: bytes
    size: int

    @property
    def data_at(self) -> int:
        return self.at + _BLOCK

    @property
    def ends_at(self) -> int:
        """Where the next header begins."""
        return self.data_at + -(-self.size // _BLOCK) * _BLOCK


@dataclass(frozen=True)
class _Told:
    """What headers before a member's own tell of it."""

    name: bytes | None = None
    size: int | None = None

    def and_(self, anew: _Told) -> _Told | None:
        """Both together; None where both tell the same thing, be it alike."""
        if None not in (self.name, anew.name) or None not in (self.size, anew.size):
            return None
        return _Told(
            anew.name if self.name is None else self.name,
            anew.size if self.size is None else self.size,
        )


class _Tar:
    """One pass over the headers."""

    def __init__(self, file: OpenFile, size: int, where: str) -> None:
        self._window = _Window(file)
        self._size = size
        self._where = where

    def files(self) -> Iterator[_File]:
        at, members, text_bytes = 0, 0, 0
        told, is_awaited = _Told(), False
        while header := self._header(at):
            if header.kind in _TELLING:
                text_bytes += header.size
                self._check_room(members, text_bytes)
                told = self._listen(header, told)
                is_awaited = is_awaited or header.kind != _PAX_GLOBAL
                at = header.ends_at
                continue
            member = self._amended(header, told)
            members += 1
            self._check_room(members, text_bytes)
            if self._is_file(member):
                name = safe_name(decode(member.name), self._where)
                yield _File(name, member.data_at, member.size)
            told, is_awaited = _Told(), False
            at = member.ends_at
        if is_awaited:
            raise _not_whole(self._where, "it ends behind the name of a member that is not there")

    def _header(self, at: int) -> _Header | None:
        """The header at ``at``, or None where the end is marked."""
        block = self._window.read(at, _BLOCK)
        if len(block) < _BLOCK:
            # GNU tar would take the file for whole, as it might be. It might as well be cut
            # between two members, and then the cells behind are missing.
            raise _not_whole(self._where, "the zeros that mark its end are missing")
        if block == _END:
            self._check_rest(at)
            return None
        size = _number(block[124:136])
        if not _is_summed(block) or size is None:
            raise self._no_header(at, block)
        return self._within(_Header(at, block[156:157], _own_name(block), size))

    def _within(self, header: _Header) -> _Header:
        if header.data_at + header.size > self._size:
            raise _not_whole(self._where, f"it ends in the middle of {decode(header.name)!r}")
        return header

    def _no_header(self, at: int, block: bytes) -> BadFormatError:
        for magic, command in _COMPRESSED.items():
            if at == 0 and block.startswith(magic):
                return BadFormatError(
                    f"{self._where} is compressed, so that no crop in it can be read alone. "
                    f"Unpack it with `{command}`, or pack it with `cvm-batch pack`."
                )
        if at == 0:
            return BadFormatError(f"{self._where} is no tar file. Check what it is and its name.")
        return BadFormatError(
            f"{self._where} has no member's header at byte {at}, where one should be, or a "
            "damaged one. Copy it again from its source."
        )

    def _check_rest(self, at: int) -> None:
        """What follows the end must be zeros: other members would go unnoticed there."""
        rest = self._size - at
        # A copy that is not finished has zeros as well, where the room is taken beforehand.
        if rest > _MAX_PADDING_BYTES or self._window.read(at, rest).strip(b"\0"):
            raise BadFormatError(
                f"{self._where} goes on for {rest} bytes behind the end that is marked in it. "
                "It may be several tars in one, or still being copied: pack it anew or copy it "
                "again."
            )

    def _check_room(self, members: int, text_bytes: int) -> None:
        if members > MAX_MEMBERS:
            raise OverLimitError(
                f"{self._where} has more than the {MAX_MEMBERS} members that a slide may have. "
                "Split it into slides."
            )
        if text_bytes > MAX_DIRECTORY_BYTES:
            raise OverLimitError(
                f"{self._where} has more than {MAX_DIRECTORY_BYTES} bytes of long names and pax "
                "headers. Pack the slide anew with shorter names."
            )

    def _listen(self, header: _Header, told: _Told) -> _Told:
        """``told``, and what the text under ``header`` tells of the member that follows."""
        if header.size > _MAX_TEXT_BYTES:
            raise OverLimitError(
                f"{self._where} has a name or pax header of {header.size} bytes, more than the "
                f"{_MAX_TEXT_BYTES} that one may have. Check how it was made."
            )
        text = self._window.read(header.data_at, header.size)
        if header.kind == _LONG_NAME:
            anew = _Told(name=_until_zero(text))
        else:
            anew = self._pax(header, text)
        both = told.and_(anew)
        if both is None or (header.kind == _PAX_GLOBAL and anew != _Told()):
            raise self._ambiguous(header.at, "has its name or size told more than once")
        return both

    def _pax(self, header: _Header, text: bytes) -> _Told:
        try:
            records = dict(_pax_records(text))
            size = records.get(b"size")
            told = _Told(records.get(b"path") or None, int(size) if size else None)
        except ValueError as error:
            raise BadFormatError(
                f"{self._where} has a pax header at byte {header.at} that cannot be read: {error}. "
                "Copy it again from its source."
            ) from error
        if any(key.startswith(_SPARSE_KEYS) for key in records):
            raise self._special(header.at, "sparse file")
        return told

    def _amended(self, header: _Header, told: _Told) -> _Header:
        """``header`` with what was told before it."""
        name = header.name if told.name is None else told.name
        size = header.size if told.size is None else told.size
        if size != header.size and not size >= _WIDE_SIZE:
            # Readers that trust one of them see other members than those that trust the other.
            raise self._ambiguous(header.at, f"has {header.size} or {size} bytes")
        return self._within(header._replace(name=name, size=size))

    def _is_file(self, header: _Header) -> bool:
        """Whether there is content to read. Raises UnsafeArchiveError for what is no file."""
        name = decode(header.name)
        if header.kind not in (*_FILES, _FOLDER):
            kind = _SPECIAL.get(header.kind, f"member of unknown kind {header.kind!r}")
            raise self._special(header.at, f"{kind}, {name!r}")
        if header.kind != _FOLDER and not name.endswith("/"):
            return True
        if header.size:
            raise self._ambiguous(header.at, f"is a folder, {name!r}, that has content")
        if name not in (".", "./"):
            safe_name(name, self._where)
        return False

    def _special(self, at: int, what: str) -> UnsafeArchiveError:
        return UnsafeArchiveError(
            f"{self._where} holds at byte {at} a {what}. Pack the files themselves, anew."
        )

    def _ambiguous(self, at: int, what: str) -> UnsafeArchiveError:
        return UnsafeArchiveError(
            f"{self._where} holds at byte {at} a member that {what}, and nothing says which is "
            "meant. Pack the slide anew."
        )


class _Window:
    """A part of the file, which moves on with what is asked for."""

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        self._data, self._at = b"", 0
        self._asked_to = 0

    def read(self, at: int, size: int) -> bytes:
        """As `OpenFile.read_at`."""
        start = at - self._at
        if start < 0 or start + size > len(self._data):
            ahead = _PEEK if at - self._asked_to > _FAR else _WINDOW
            self._data, self._at = self._file.read_at(at, max(size, ahead)), at
            start = 0
        self._asked_to = at + size
        return self._data[start : start + size]


def _is_summed(block: bytes) -> bool:
    """Whether a header's checksum is right: its bytes' sum, its own field taken as blanks."""
    recorded = _number(block[148:156])
    others = block[:148] + b" " * 8 + block[156:]
    total = sum(others)
    # Some old tars add up signed bytes.
    return recorded in (total, total - 256 * sum(byte > 127 for byte in others))


def _number(field: bytes) -> int | None:
    """Octal digits, or base 256 where the first bit is set; None for anything else."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = _until_zero(field).strip(b" ")
    if digits.strip(b"01234567"):
        return None
    return int(digits or b"0", 8)


def _own_name(block: bytes) -> bytes:
    """The name in a header itself."""
    name = _until_zero(block[:100])
    # GNU's headers have times where POSIX has the folders of long names.
    prefix = _until_zero(block[345:500]) if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _until_zero(text: bytes) -> bytes:
    return text.split(b"\0", 1)[0]


def _pax_records(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values. Raises ValueError."""
    at = 0
    while at < len(text):
        digits, _, _ = text[at : at + _MOST_DIGITS].partition(b" ")
        if not digits.isdigit():
            raise ValueError("a record has no length")
        record = text[at : at + int(digits)]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if len(record) != int(digits) or not record.endswith(b"\n") or not equals:
            raise ValueError("a record has another length than it says")
        yield key, value
        at += len(record)


def _not_whole(where: str, why: str) -> BadFormatError:
    return BadFormatError(
        f"{where} is not a whole tar file: {why}. It may be cut short or still being copied: "
        "copy it again."
    )
