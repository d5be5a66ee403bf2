"""Zip files that are damaged, made to do harm, or merely odd."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cvm_batch.archives.limits import MAX_MEMBER_BYTES
from cvm_batch.archives.members import zip_directory
from cvm_batch.archives.members.packed import ZipMembers
from cvm_batch.archives.places.disk import DiskPlace
from cvm_batch.errors import (
    BadFormatError,
    ChecksumMismatchError,
    EmptyArchiveError,
    OverLimitError,
    ReadError,
    SlideError,
    UnsafeArchiveError,
)
from tests.archives.making import (
    Cells,
    cells,
    encode,
    write_zarr,
    write_zip,
    write_zip_members,
)
from tests.archives.reading import assert_honest, describe, flip_bit, read_all

PNG = encode(cells(1).tiles[0])


@pytest.fixture(scope="module")
def slide() -> Cells:
    return cells(23)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_no_flipped_bit_gives_a_wrong_tile(slide: Cells, tmp_path: Path, compression: int) -> None:
    path = write_zip(tmp_path / "slide.zip", slide.tiles, ".bmp", compression)
    _flip_and_judge(path, slide, 60)


def test_no_flipped_bit_of_a_packed_zarr_gives_a_wrong_tile(slide: Cells, tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "slide.zarr.zip", slide.tiles, zarr_format=2, chunk=7)
    _flip_and_judge(path, slide, 60)


def test_no_flipped_bit_in_the_list_of_members_loses_a_tile(slide: Cells, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "slide.zip", slide.tiles)
    whole = path.read_bytes()
    start = whole.index(b"PK\x01\x02")
    for bit in range(8 * start, 8 * len(whole), 29):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        _judge(path, slide)


def _flip_and_judge(path: Path, slide: Cells, times: int) -> None:
    rng = np.random.default_rng(7)
    whole = path.read_bytes()
    refused = 0
    for _ in range(times):
        path.write_bytes(whole)
        flip_bit(path, rng)
        refused += not _judge(path, slide)
    assert refused > times // 2


def _judge(path: Path, slide: Cells) -> bool:
    """Whether a damaged slide was read all the same; then nothing in it may be wrong."""
    try:
        assert_honest(read_all(path), slide)
    except SlideError:
        return False
    return True


def test_a_bad_crc_names_the_member(slide: Cells, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "slide.zip", slide.tiles, ".bmp")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as packed:
        data[packed.getinfo("00003.bmp").header_offset + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChecksumMismatchError, match=r"00003\.bmp.*slide\.zip.*Bad CRC-32"):
        read_all(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_zip_is_bad_format(slide: Cells, tmp_path: Path, share: float) -> None:
    path = write_zip(tmp_path / "slide.zip", slide.tiles)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(BadFormatError, match=r"slide\.zip is not a whole zip file"):
        read_all(path)


def test_a_foreign_file_is_bad_format(tmp_path: Path) -> None:
    path = tmp_path / "slide.zip"
    path.write_bytes(PNG)
    with pytest.raises(BadFormatError, match="not a whole zip"):
        read_all(path)


@pytest.mark.parametrize("members", [{}, {"readme.txt": b"no tiles", "sub/": b""}])
def test_a_zip_without_an_image_is_empty(tmp_path: Path, members: dict[str, bytes]) -> None:
    with pytest.raises(EmptyArchiveError, match="holds no image"):
        read_all(write_zip_members(tmp_path / "slide.zip", members))


@pytest.mark.parametrize(
    "name", ["../up.png", "sub/../../up.png", "/etc/passwd.png", "C:/a.png", "sub\\a.png"]
)
def test_names_that_reach_outside_are_refused(tmp_path: Path, name: str) -> None:
    path = write_zip_members(tmp_path / "slide.zip", {"a.png": PNG, name: PNG})
    with pytest.raises(UnsafeArchiveError, match="absolute names"):
        read_all(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["a.png", "./a.png", "sub/../a.png"])
def test_duplicate_members_are_refused(tmp_path: Path, second: str) -> None:
    path = tmp_path / "slide.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("a.png", PNG)
        packed.writestr(second, PNG)
    with pytest.raises(UnsafeArchiveError):
        read_all(path)


def test_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = tmp_path / "slide.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("a.png", PNG)
        packed.writestr(link, "/etc/passwd")
    with pytest.raises(UnsafeArchiveError, match=r"link\.png.*is a link"):
        read_all(path)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = write_zip_members(tmp_path / "slide.zip", {"a.png": PNG})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 0x1
    path.write_bytes(data)
    with pytest.raises(UnsafeArchiveError, match="encrypted"):
        read_all(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_is_refused(tmp_path: Path, method: int) -> None:
    # Their decoders unpack without a bound.
    path = write_zip_members(tmp_path / "slide.zip", {"a.png": PNG}, method)
    with pytest.raises(BadFormatError, match="stored and deflated"):
        read_all(path)


def test_a_zip_bomb_is_refused_before_unpacking(tmp_path: Path) -> None:
    bomb = {f"{number}.bmp": bytes(10_000_000) for number in range(4)}
    path = write_zip_members(tmp_path / "slide.zip", bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 50_000
    with pytest.raises(OverLimitError, match="zip bomb"):
        describe(path)


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    """The trick of 42.zip's successors: many entries in the list, one stored stream."""
    path = write_zip_members(tmp_path / "slide.zip", {"a.png": PNG * 40})
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entries = [data[start:end].replace(b"a.png", name) for name in (b"a.png", b"b.png", b"c.png")]
    listed = b"".join(entries)
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 3, 3, len(listed), start, 0)
    path.write_bytes(data[:start] + listed + tail)
    with pytest.raises(UnsafeArchiveError, match="overlap"):
        describe(path)


def test_a_giant_member_is_refused_from_its_header(tmp_path: Path) -> None:
    path = write_zip_members(tmp_path / "slide.zip", {"a.png": PNG})
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, MAX_MEMBER_BYTES + 1)
    path.write_bytes(data)
    with pytest.raises(OverLimitError, match=str(MAX_MEMBER_BYTES)):
        describe(path)


def test_a_member_that_unpacks_to_more_than_it_says_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "slide.zip"
    write_zip_members(path, {"a.png": bytes(5_000_000)}, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, 1000)
    path.write_bytes(data)
    members = ZipMembers(DiskPlace.of(path))
    with pytest.raises(ChecksumMismatchError, match="CRC-32"):
        members.read(0)
    members.close()


def test_too_many_members_are_refused(
    slide: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "slide.zip", slide.tiles)
    monkeypatch.setattr(zip_directory, "MAX_MEMBERS", len(slide) - 1)
    with pytest.raises(OverLimitError, match="23 members, more than the 22"):
        describe(path)


def test_a_huge_list_of_members_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "slide.zip"
    size = 100 << 20
    with path.open("wb") as file:
        file.truncate(size)  # sparse: takes no room
        file.seek(size)
        file.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, size, 0, 0))
    with pytest.raises(OverLimitError, match="list of members"):
        describe(path)


def test_an_io_error_is_not_taken_for_damage(slide: Cells, tmp_path: Path) -> None:
    members = ZipMembers(DiskPlace.of(write_zip(tmp_path / "slide.zip", slide.tiles)))
    descriptor = members._file._open().number
    kept = os.dup(descriptor)
    os.close(descriptor)  # as a network drive that went away
    with pytest.raises(ReadError, match="cannot be read"):
        members.read(0)
    os.dup2(kept, descriptor)
    os.close(kept)
    assert members.read(0)
    members.close()


def test_zips_of_other_systems_are_read(tmp_path: Path) -> None:
    """One from Windows has no Unix mode; one from macOS has __MACOSX beside the tiles."""
    info = zipfile.ZipInfo("slide/a.png")
    info.create_system = 0
    info.external_attr = 0
    path = tmp_path / "slide.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("slide/", b"")
        packed.writestr(info, PNG)
        packed.writestr("__MACOSX/slide/._a.png", b"\0\5\26\7")
        packed.writestr("slide/.DS_Store", b"")
    block = read_all(path)
    assert block.cell_id == ["slide/a.png"]
    assert block.readable.all()


def test_a_comment_and_a_prefix_do_no_harm(slide: Cells, tmp_path: Path) -> None:
    packed = io.BytesIO(write_zip(tmp_path / "slide.zip", slide.tiles).read_bytes())
    with zipfile.ZipFile(packed, "a") as file:
        file.comment = b"scanner 7 " * 100
    (tmp_path / "slide.zip").write_bytes(b"#!/bin/sh\n" + packed.getvalue())
    assert_honest(read_all(tmp_path / "slide.zip"), slide)


def test_a_long_extra_field_before_the_data(tmp_path: Path) -> None:
    """As of tools that align members to pages."""
    path = tmp_path / "slide.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for name in ("a.png", "b.png"):
            info = zipfile.ZipInfo(name)
            info.extra = struct.pack("<HH", 0xCAFE, 5000) + bytes(5000)
            packed.writestr(info, PNG)
    block = read_all(path)
    np.testing.assert_array_equal(block.tiles, [cells(1).tiles[0]] * 2)


def _in_zip64(path: Path, numbers: tuple[int, ...]) -> None:
    """Write a zip of one member anew, with all its numbers in zip64 records."""
    data = path.read_bytes()
    start = data.index(b"PK\1\2")
    name_at, name_bytes = start + 46, struct.unpack_from("<H", data, start + 28)[0]
    entry = bytearray(data[start : name_at + name_bytes])
    struct.pack_into("<2L", entry, 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<L", entry, 42, 0xFFFFFFFF)
    extra = struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers)
    struct.pack_into("<H", entry, 30, len(extra))
    listed = bytes(entry) + extra
    wide_end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(listed), start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + len(listed), 1)
    narrow_end = b"PK\5\6" + struct.pack(
        "<4H2LH", 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0
    )
    path.write_bytes(data[:start] + listed + wide_end + locator + narrow_end)


def test_zip64_records_are_read(tmp_path: Path) -> None:
    path = write_zip_members(tmp_path / "slide.zip", {"a.png": PNG})
    _in_zip64(path, (len(PNG), len(PNG), 0))
    with zipfile.ZipFile(path) as packed:
        assert packed.read("a.png") == PNG
    np.testing.assert_array_equal(read_all(path).tiles, [cells(1).tiles[0]])


@pytest.mark.parametrize("numbers", [(), (len(PNG), len(PNG))])
def test_a_zip64_number_that_is_missing_is_bad_format(
    tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    path = write_zip_members(tmp_path / "slide.zip", {"a.png": PNG})
    _in_zip64(path, numbers)
    with pytest.raises(BadFormatError, match="zip64"):
        describe(path)


def test_more_members_than_fit_into_16_bits(tmp_path: Path) -> None:
    path = tmp_path / "slide.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for number in range(0x10001):
            packed.writestr(f"{number:06d}.png", b"")
    assert describe(path).tiles == 0x10001
