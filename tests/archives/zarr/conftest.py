"""A slide in zarr, as most of these tests begin with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.archives.making import Cells, cells, write_zarr

COUNT, CHUNK = 23, 7


@pytest.fixture(scope="module")
def slide() -> Cells:
    return cells(COUNT)


@pytest.fixture
def v3(slide: Cells, tmp_path: Path) -> Path:
    """As `pack` writes them, without a manifest."""
    path = tmp_path / "slide.zarr"
    return write_zarr(path, slide.tiles, xy=slide.xy, cell_id=slide.cell_id, mpp=0.25, chunk=CHUNK)


@pytest.fixture
def v2(slide: Cells, tmp_path: Path) -> Path:
    """As most are, with blosc and no checksum."""
    return write_zarr(tmp_path / "slide.zarr", slide.tiles, zarr_format=2, chunk=CHUNK)
