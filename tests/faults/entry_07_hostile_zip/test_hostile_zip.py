"""Damaged: a zip made to do harm: members that unpack to anything, overlap, or are too many.

Expected: ``failed`` with ``over_limit`` or ``unsafe_archive``, exit code 3.
"""

from __future__ import annotations

import struct
import zipfile

from cvm_batch.archives.members import zip_directory
from cvm_batch.errors import Reason
from cvm_batch.results.schemas import Status
from tests.archives.making import encode, write_zip, write_zip_members
from tests.faults.night import Expected, Night, slide_of


def test_zip_that_unpacks_to_anything(night: Night) -> None:
    members = {f"{n}.bmp": bytes(40 << 20) for n in range(3)}
    write_zip_members(night.slides / "slide.zip", members, zipfile.ZIP_DEFLATED)
    night.submit().assert_ends("slide.zip", Expected(Status.FAILED, Reason.OVER_LIMIT))


def test_zip_whose_members_overlap(night: Night) -> None:
    """Every entry of the list points at the same stored bytes."""
    path = write_zip(night.slides / "slide.zip", slide_of().tiles)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        data[at + 42 : at + 46] = struct.pack("<I", 0)
        at += 4
    path.write_bytes(data)
    night.submit().assert_ends("slide.zip", Expected(Status.FAILED, Reason.UNSAFE_ARCHIVE))


def test_zip_of_too_many_members(night: Night) -> None:
    """Its list of members alone would take 100 MiB."""
    path = write_zip_members(night.slides / "slide.zip", {"a.png": encode(slide_of().tiles[0])})
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\x05\x06")
    size = 100 << 20
    data[end + 12 : end + 16] = struct.pack("<I", size)
    path.write_bytes(data[:end] + bytes(size) + data[end:])
    night.submit().assert_ends("slide.zip", Expected(Status.FAILED, Reason.OVER_LIMIT))
    assert size > zip_directory.MAX_DIRECTORY_BYTES
