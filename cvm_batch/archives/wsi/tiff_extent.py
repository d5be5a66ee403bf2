"""Whether a TIFF was cut short, by what its directories say: OpenSlide opens it all the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.limits import MAX_DIRECTORY_BYTES
from cvm_batch.errors import OverLimitError

#: Little and big endian, with offsets of four and of eight bytes.
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: Bytes of one value, by the type's code.
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_VALUE_BYTES |= {13: 4, 16: 8, 17: 8, 18: 8}
#: Types that offsets and sizes are written in.
_INTEGERS = {3: "u2", 4: "u4", 16: "u8"}
#: Tags of where strips or tiles begin, and of how many bytes they take.
_STORED = ((273, 279), (324, 325))
#: In the slides of Hamamatsu's scanners, whose offsets exceed four bytes by rules of their own.
_NDPI = 65420
#: The richest slides have some dozens of levels and associated images.
_MOST_DIRECTORIES = 1000


class _CutError(Exception):
    """The file ends before something that it speaks of."""


class _Entry(NamedTuple):
    kind: int
    number: int
    value: bytes
    """The values themselves, or where they are if they do not fit."""


def is_whole(file: BinaryIO) -> bool:
    """Whether all that a TIFF's directories name lies inside of it.

    Raises OverLimitError or OSError.
    """
    tiff = _Tiff(file)
    try:
        at = tiff.number_at(tiff.first_at, tiff.word)
        for _ in range(_MOST_DIRECTORIES):
            if not at:
                break
            entries, at = tiff.directory(at)
            if _NDPI in entries:
                break
            tiff.check(entries)
    except _CutError:
        return False
    return True


class _Tiff:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        mark = self._read(0, 4)
        is_big = b"+" in mark
        self._order = "<" if mark.startswith(b"II") else ">"
        self._count = 8 if is_big else 2
        self.word = 8 if is_big else 4
        """Bytes of an offset."""
        self.first_at = 8 if is_big else 4
        """Where the offset of the first directory stands."""

    def number_at(self, offset: int, length: int) -> int:
        return self._number(self._read(offset, length))

    def directory(self, at: int) -> tuple[Mapping[int, _Entry], int]:
        """The entries by their tags, and where the next directory is, or 0."""
        count = self.number_at(at, self._count)
        entry_bytes = 4 + 2 * self.word
        at += self._count
        data = self._read(at, count * entry_bytes)
        entries = (data[start : start + entry_bytes] for start in range(0, len(data), entry_bytes))
        return dict(map(self._entry, entries)), self.number_at(at + len(data), self.word)

    def check(self, entries: Mapping[int, _Entry]) -> None:
        """Raises _CutError unless the values, strips and tiles are all inside of the file."""
        for entry in entries.values():
            length = entry.number * _VALUE_BYTES.get(entry.kind, 0)
            if length > self.word and self._number(entry.value) + length > self._size:
                raise _CutError
        for starts, sizes in _STORED:
            if starts in entries and sizes in entries:
                self._check_stored(self._values(entries[starts]), self._values(entries[sizes]))

    def _check_stored(self, starts: NDArray[np.uint64], sizes: NDArray[np.uint64]) -> None:
        sizes = sizes[: len(starts)]
        # One of no bytes stands for glass, wherever it is said to be.
        starts, sizes = starts[: len(sizes)][sizes > 0], sizes[sizes > 0]
        # Not added up: the sum of two hostile numbers begins anew at 0.
        if (starts > self._size).any() or (sizes > self._size - starts).any():
            raise _CutError

    def _entry(self, data: bytes) -> tuple[int, _Entry]:
        tag, kind = self._number(data[:2]), self._number(data[2:4])
        value = data[4 + self.word :]
        return tag, _Entry(kind, self._number(data[4 : 4 + self.word]), value)

    def _values(self, entry: _Entry) -> NDArray[np.uint64]:
        """None of a type that is no integer's, which OpenSlide refuses."""
        if entry.kind not in _INTEGERS:
            return np.empty(0, np.uint64)
        dtype = np.dtype(self._order + _INTEGERS[entry.kind])
        length = entry.number * dtype.itemsize
        data = entry.value
        if length > self.word:
            data = self._read(self._number(data), length)
        return np.frombuffer(data, dtype, entry.number).astype(np.uint64)

    def _number(self, data: bytes) -> int:
        return int.from_bytes(data, "little" if self._order == "<" else "big")

    def _read(self, offset: int, length: int) -> bytes:
        if offset + length > self._size:
            raise _CutError
        if length > MAX_DIRECTORY_BYTES:
            raise OverLimitError(
                f"{self._file.name} has a list of {length} bytes in its header, more than the "
                f"{MAX_DIRECTORY_BYTES} that one may have. Check how it was made."
            )
        self._file.seek(offset)
        return self._file.read(length)
