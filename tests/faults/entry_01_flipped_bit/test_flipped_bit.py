"""Damaged: one bit of a stored tile, in a slide whose checksum is recorded.

Expected: ``failed``, ``checksum_mismatch``, exit code 3.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cvm_batch.errors import Reason
from cvm_batch.results.schemas import Status
from tests.archives.making import record, write_table, write_tar, write_zarr, write_zip
from tests.archives.wsi_making import write_svs
from tests.faults.night import Expected, Night, slide_of

EXPECTED = Expected(Status.FAILED, Reason.CHECKSUM_MISMATCH)


def flip(path: Path) -> None:
    """One bit in the middle of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x04
    path.write_bytes(data)


def test_in_a_zarr_chunk(night: Night) -> None:
    path = write_zarr(night.slides / "slide.zarr", slide_of().tiles)
    flip(path / "tiles/c/0/0/0/0")
    night.submit().assert_ends("slide.zarr", EXPECTED)


def test_in_a_zip_member(night: Night) -> None:
    flip(write_zip(night.slides / "slide.zip", slide_of().tiles))
    night.submit().assert_ends("slide.zip", EXPECTED)


def test_in_a_tar_with_a_recorded_digest(night: Night) -> None:
    path = write_tar(night.slides / "slide.tar", slide_of())
    record(path)
    flip(path)
    night.submit().assert_ends("slide.tar", EXPECTED)


def test_in_a_whole_slide_whose_manifest_records_a_digest(night: Night, tmp_path: Path) -> None:
    cells = slide_of()
    path = write_svs(night.slides / "slide.svs", cells.tiles.reshape(-1, 40, 3))
    write_table(night.slides / "slide.cells.csv", boxes(len(cells)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    flip(path)
    manifest = write_table(
        tmp_path / "night.csv",
        {
            "slide_id": ["slide.svs", "neighbour.zip"],
            "uri": [str(path), str(night.slides / "neighbour.zip")],
            "sha256": [digest, ""],
        },
    )
    night.submit(manifest).assert_ends("slide.svs", EXPECTED)


def boxes(count: int) -> dict[str, list[float]]:
    """A cells table of tiles of 40 px that lie one below the other."""
    return {
        "x": [20] * count,
        "y": [20 + 40 * n for n in range(count)],
        "width": [40] * count,
        "height": [40] * count,
    }
