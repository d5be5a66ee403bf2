"""Whether a DICOM file was cut short, and which slide it belongs to, by its header."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from cvm_batch.archives.limits import MAX_METADATA_BYTES, MIB

#: After a preamble that may hold anything.
DICOM_MARK_AT, DICOM_MARK = 128, b"DICM"
_SERIES = 0x0020_000E
_PIXELS = 0x7FE0_0010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD
_UNTOLD = 0xFFFF_FFFF
#: Kinds of values with a length of four bytes, after two that mean nothing.
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
#: Where pixels end that are stored frame by frame.
_END_OF_FRAMES = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
#: Nothing but padding may follow them.
_MOST_PADDING = MIB


def series_of(file: BinaryIO) -> str | None:
    """The unique id of the series, or None where the file ends before its pixels do.

    Raises OSError.
    """
    size = file.seek(0, 2)
    series = ""
    try:
        for tag, length, at in _elements(file, size):
            if tag == _SERIES:
                series = _read(file, at, min(length, MAX_METADATA_BYTES)).decode("latin-1")
            elif tag == _PIXELS:
                return series.strip("\0 ") if _holds_pixels(file, at, length, size) else None
    except struct.error:  # the file ends in the middle of a number
        pass
    return None


def _holds_pixels(file: BinaryIO, at: int, length: int, size: int) -> bool:
    if length != _UNTOLD:
        return at + length <= size
    start = max(at, size - _MOST_PADDING)
    return _END_OF_FRAMES in _read(file, start, size - start)


def _elements(file: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    """Tag, length and offset of the values that are not nested in others.

    Whole slides are stored with explicit kinds of values, in little endian.
    """
    at, depth = DICOM_MARK_AT + len(DICOM_MARK), 0
    while at < size:
        group, element, kind, length = struct.unpack("<HH2sH", _read(file, at, 8))
        tag, at = group << 16 | element, at + 8
        if tag in (_ITEM, _ITEM_END, _SEQUENCE_END):
            (length,) = struct.unpack("<I", _read(file, at - 4, 4))
        elif kind in _LONG:
            (length,) = struct.unpack("<I", _read(file, at, 4))
            at += 4
        if tag in (_ITEM_END, _SEQUENCE_END):
            depth -= 1
        elif not depth and tag != _ITEM:
            yield tag, length, at
        if length == _UNTOLD:
            depth += 1
        else:
            at += length


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)
