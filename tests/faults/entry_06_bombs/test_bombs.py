"""Damaged: metadata that ask for far more memory than the file holds.

Expected: ``failed``, ``over_limit``, exit code 3, and nothing of that size is allocated.
"""

from __future__ import annotations

import json
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import zarr

from cvm_batch.errors import Reason
from cvm_batch.results.schemas import Status
from tests.archives.making import (
    encode,
    write_table,
    write_varying_zarr,
    write_zarr,
    write_zip_members,
)
from tests.archives.wsi_making import write_tiff
from tests.faults.night import Expected, Night, slide_of

EXPECTED = Expected(Status.FAILED, Reason.OVER_LIMIT)


def peak() -> int:
    """Most memory that this process has ever used, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def assert_refused(night: Night, slide_id: str) -> None:
    night.submit(night.slides / "neighbour.zip")  # what a run needs anyway
    before = peak()
    night.submit().assert_ends(slide_id, EXPECTED)
    assert peak() - before < 100 << 20


def edit(document: Path, **changes: object) -> None:
    value = json.loads(document.read_text())
    document.write_text(json.dumps(value | changes))


def test_zarr_of_giant_tiles(night: Night) -> None:
    path = write_zarr(night.slides / "slide.zarr", slide_of().tiles)
    grid = {"name": "regular", "configuration": {"chunk_shape": [1, 30_000, 30_000, 3]}}
    edit(path / "tiles/zarr.json", shape=[12, 30_000, 30_000, 3], chunk_grid=grid)
    assert_refused(night, "slide.zarr")


def test_zarr_of_giant_chunks(night: Night) -> None:
    path = write_zarr(night.slides / "slide.zarr", slide_of().tiles)
    grid = {"name": "regular", "configuration": {"chunk_shape": [1_000_000, 40, 40, 3]}}
    edit(path / "tiles/zarr.json", chunk_grid=grid)
    assert_refused(night, "slide.zarr")


def test_zarr_of_endless_shards(night: Night) -> None:
    path = write_zarr(night.slides / "slide.zarr", slide_of().tiles)
    grid = {"name": "regular", "configuration": {"chunk_shape": [10**9, 40, 40, 3]}}
    inner = {"chunk_shape": [1, 40, 40, 3], "codecs": ["bytes"], "index_codecs": ["bytes"]}
    codecs = [{"name": "sharding_indexed", "configuration": inner}]
    edit(path / "tiles/zarr.json", chunk_grid=grid, codecs=codecs)
    assert_refused(night, "slide.zarr")


@pytest.mark.filterwarnings("ignore:The data type")
def test_zarr_of_tiles_that_are_giant_by_their_sizes(night: Night) -> None:
    path = write_varying_zarr(night.slides / "slide.zarr", list(slide_of().tiles))
    zarr.open_group(path)["size"][3] = [60_000, 60_000]
    assert_refused(night, "slide.zarr")


def test_image_of_giant_dimensions(night: Night) -> None:
    png = bytearray(encode(slide_of().tiles[0]))
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    write_zip_members(night.slides / "slide.zip", {"a.png": bytes(png)})
    assert_refused(night, "slide.zip")


def test_whole_slide_of_giant_stored_tiles(night: Night) -> None:
    pixels = np.full((256, 256, 3), 200, np.uint8)
    path = write_tiff(night.slides / "slide.tif", pixels, tile=256, levels=1)
    write_table(
        night.slides / "slide.cells.csv", {"x": [20], "y": [20], "width": [9], "height": [9]}
    )
    data = path.read_bytes()
    # TileWidth (322) and TileLength (323) of the first directory, and the image as large.
    for tag in (256, 257, 322, 323):
        at = data.index(struct.pack("<HHI", tag, data_type(data, tag), 1))
        data = data[: at + 2] + struct.pack("<HII", 4, 1, 60_000 - 60_000 % 16) + data[at + 12 :]
    path.write_bytes(data)
    assert_refused(night, "slide.tif")


def data_type(data: bytes, tag: int) -> int:
    """SHORT or LONG, whichever the tag was written as."""
    return next(kind for kind in (3, 4) if struct.pack("<HHI", tag, kind, 1) in data)
