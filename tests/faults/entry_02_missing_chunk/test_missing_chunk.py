"""Damaged: a zarr chunk that is not there.

Expected: ``incomplete``, ``missing_tiles``, exit code 3; what is there is counted as
``counts_at_least``, and never as "0 abnormal".
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cvm_batch.errors import Reason
from cvm_batch.results.schemas import Status
from tests.archives.making import write_zarr
from tests.archives.packed_making import CHUNK, write_packed
from tests.faults.night import CELLS, Expected, Night, slide_of

EXPECTED = Expected(Status.INCOMPLETE, Reason.MISSING_TILES)


@pytest.mark.parametrize(("zarr_format", "chunk"), [(3, "c/1/0/0/0"), (2, "1.0.0.0")])
def test_chunk_that_is_missing(night: Night, zarr_format: int, chunk: str) -> None:
    path = night.slides / "slide.zarr"
    write_zarr(path, slide_of().tiles, zarr_format=zarr_format, chunk=5)
    (path / "tiles" / chunk).unlink()
    row = night.submit().assert_ends("slide.zarr", EXPECTED)
    assert row["cells_expected"] == CELLS
    assert (row["cells_classified"], row["cells_unreadable"]) == (CELLS - 5, 5)
    assert sum(row["counts_at_least"].values()) == CELLS - 5


def test_shard_that_is_missing(night: Night) -> None:
    path = night.slides / "slide.zarr"
    write_zarr(path, slide_of().tiles, chunk=2, shards=(8, 40, 40, 3))
    (path / "tiles/c/1/0/0/0").unlink()
    row = night.submit().assert_ends("slide.zarr", EXPECTED)
    assert (row["cells_classified"], row["cells_unreadable"]) == (8, CELLS - 8)


def test_chunk_that_was_never_written_to_its_shard(night: Night) -> None:
    path = night.slides / "slide.zarr"
    tiles = slide_of().tiles.copy()
    tiles[4:6] = 0  # zarr leaves out what is all fill value
    config = {"write_empty_chunks": False}
    write_zarr(path, tiles, chunk=2, shards=(8, 40, 40, 3), config=config)
    row = night.submit().assert_ends("slide.zarr", EXPECTED)
    assert (row["cells_classified"], row["cells_unreadable"]) == (CELLS - 2, 2)


def test_chunk_of_a_packed_slide_that_is_missing(night: Night, tmp_path: Path) -> None:
    path = write_packed(tmp_path / "packed" / "slide.zarr", slide_of())
    shutil.copytree(path, night.slides / "slide.zarr")
    chunk = night.slides / "slide.zarr/tiles/c.1.0.0.0"
    data = chunk.read_bytes()
    chunk.unlink()
    row = night.submit().assert_ends("slide.zarr", EXPECTED)
    assert row["expected_from"] == "pack_manifest"
    assert (row["cells_classified"], row["cells_unreadable"]) == (CHUNK, CELLS - CHUNK)
    chunk.write_bytes(data)
    again = night.submit().rows["slide.zarr"]
    assert (again["status"], again["cells_classified"]) == (Status.COMPLETE, CELLS)
