"""Damaged: a slide that is cut short, empty, or something else under its name.

Expected: ``failed`` with a reason of its own, exit code 3.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cvm_batch.errors import Reason
from cvm_batch.results.schemas import Status
from tests.archives.making import write_table, write_tar, write_zarr, write_zip, write_zip_members
from tests.archives.wsi_making import write_tiff
from tests.faults.night import Expected, Night, slide_of


def zip_file(path: Path) -> Path:
    return write_zip(path / "slide.zip", slide_of().tiles)


def tar_file(path: Path) -> Path:
    return write_tar(path / "slide.tar", slide_of())


def zarr_zip(path: Path) -> Path:
    return write_zarr(path / "slide.zarr.zip", slide_of().tiles, zarr_format=2)


def whole_slide(path: Path) -> Path:
    write_table(path / "slide.cells.csv", {"x": [20], "y": [20], "width": [40], "height": [40]})
    return write_tiff(path / "slide.tif", slide_of().tiles.reshape(-1, 40, 3), levels=1)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def nothing(data: bytes) -> bytes:
    return b""


def another(data: bytes) -> bytes:
    return b"From: scanner@example.org\n\nThe slides of tonight are late.\n" * 50


@pytest.mark.parametrize("damage", [cut, nothing, another])
@pytest.mark.parametrize("make", [zip_file, tar_file, zarr_zip, whole_slide])
def test_file_that_is_not_whole(
    night: Night, make: Callable[[Path], Path], damage: Callable[[bytes], bytes]
) -> None:
    path = make(night.slides)
    path.write_bytes(damage(path.read_bytes()))
    night.submit().assert_ends(path.name, Expected(Status.FAILED, Reason.BAD_FORMAT))


def test_archive_without_a_cell(night: Night) -> None:
    write_zip_members(night.slides / "slide.zip", {"readme.txt": b"crops follow"})
    night.submit().assert_ends("slide.zip", Expected(Status.FAILED, Reason.EMPTY))


def test_zarr_without_a_cell(night: Night) -> None:
    write_zarr(night.slides / "slide.zarr", slide_of().tiles[:0])
    night.submit().assert_ends("slide.zarr", Expected(Status.FAILED, Reason.EMPTY))


def test_whole_slide_without_a_table(night: Night) -> None:
    whole_slide(night.slides).rename(night.slides / "other.svs")
    night.submit().assert_ends("other.svs", Expected(Status.FAILED, Reason.BAD_FORMAT))
