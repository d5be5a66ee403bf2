"""Damaged: members that reach out of their archive, are links, or have one name twice.

Expected: ``failed``, ``unsafe_archive``, exit code 3; nothing is extracted to a disk.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from cvm_batch.errors import Reason
from cvm_batch.results.schemas import Status
from tests.archives.making import encode, write_folder, write_tar_members, write_zip_members
from tests.faults.night import Expected, Night, slide_of

EXPECTED = Expected(Status.FAILED, Reason.UNSAFE_ARCHIVE)
PNG = encode(slide_of().tiles[0])
NAMES = ["../a.png", "x/../../a.png", "/tmp/a.png", "C:/a.png", "..\\a.png"]


@pytest.mark.parametrize("name", NAMES)
def test_name_that_leads_out_of_a_zip(night: Night, tmp_path: Path, name: str) -> None:
    write_zip_members(night.slides / "slide.zip", {"b.png": PNG, name: PNG})
    night.submit().assert_ends("slide.zip", EXPECTED)
    assert not list(tmp_path.rglob("a.png"))


@pytest.mark.parametrize("name", NAMES)
def test_name_that_leads_out_of_a_tar(night: Night, tmp_path: Path, name: str) -> None:
    write_tar_members(night.slides / "slide.tar", {"b.png": PNG, name: PNG})
    night.submit().assert_ends("slide.tar", EXPECTED)
    assert not list(tmp_path.rglob("a.png"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_name_twice_in_a_zip(night: Night) -> None:
    with zipfile.ZipFile(night.slides / "slide.zip", "w") as packed:
        packed.writestr("a.png", PNG)
        packed.writestr("a.png", encode(slide_of().tiles[1]))
    night.submit().assert_ends("slide.zip", EXPECTED)


def test_name_twice_in_a_tar(night: Night) -> None:
    with tarfile.open(night.slides / "slide.tar", "w") as packed:
        for tile in slide_of().tiles[:2]:
            info = tarfile.TarInfo("a.png")
            data = encode(tile)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    night.submit().assert_ends("slide.tar", EXPECTED)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_link_or_device_in_a_tar(night: Night, kind: bytes) -> None:
    with tarfile.open(night.slides / "slide.tar", "w") as packed:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        packed.addfile(info)
    night.submit().assert_ends("slide.tar", EXPECTED)


def test_link_in_a_zip(night: Night) -> None:
    info = zipfile.ZipInfo("a.png")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(night.slides / "slide.zip", "w") as packed:
        packed.writestr(info, "/etc/passwd")
    night.submit().assert_ends("slide.zip", EXPECTED)


def test_linked_folder_in_a_zarr(night: Night, tmp_path: Path) -> None:
    (night.slides / "slide.zarr").mkdir()
    write_folder(tmp_path / "elsewhere", slide_of().tiles)
    (night.slides / "slide.zarr" / "tiles").symlink_to(tmp_path / "elsewhere")
    night.submit().assert_ends("slide.zarr", EXPECTED)
