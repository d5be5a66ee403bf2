"""Damaged: tiles of another dtype, channel count or shape; a scale that is missing or absurd.

Expected: ``failed`` with ``bad_format`` or ``bad_scale``, exit code 3; no default is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cvm_batch.errors import Reason
from cvm_batch.model.bundle import Bundle, BundleSpec, write_bundle
from cvm_batch.model.network import CvmCervix
from cvm_batch.results.schemas import Status
from tests.archives.making import write_table, write_zarr
from tests.archives.wsi_making import write_tiff
from tests.conftest import coloured_tiles
from tests.faults.night import Expected, Night, slide_of

BAD_FORMAT = Expected(Status.FAILED, Reason.BAD_FORMAT)
BAD_SCALE = Expected(Status.FAILED, Reason.BAD_SCALE)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tiles: tiles.astype(np.uint16),
        lambda tiles: tiles.astype(np.float32),
        lambda tiles: tiles[..., :1],
        lambda tiles: np.concatenate([tiles, tiles[..., :1]], axis=3),
        lambda tiles: tiles[..., 0],
    ],
)
def test_tiles_that_are_none(
    night: Night, spoil: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> None:
    write_zarr(night.slides / "slide.zarr", spoil(slide_of().tiles))
    night.submit().assert_ends("slide.zarr", BAD_FORMAT)


@pytest.fixture(scope="module")
def scaled_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_spec: BundleSpec, tiny_network: CvmCervix
) -> Bundle:
    """Trained, it says, on tiles of 20 um."""
    path = tmp_path_factory.mktemp("bundles") / "scaled"
    spec = replace(tiny_spec, tile_um=20.0)
    return write_bundle(path, spec, tiny_network, coloured_tiles(range(11)), card="# scaled\n")


@pytest.fixture
def scaled_night(tmp_path: Path, scaled_bundle: Bundle) -> Night:
    return Night(tmp_path, scaled_bundle)


def whole_slide(night: Night, mpp: tuple[float, float] | None) -> None:
    pixels = slide_of().tiles.reshape(-1, 40, 3).repeat(2, axis=1)
    write_tiff(night.slides / "slide.tif", pixels, levels=1, mpp=mpp)
    write_table(night.slides / "slide.cells.csv", {"x": [40, 41], "y": [100, 200]})


@pytest.mark.parametrize("mpp", [None, (350.0, 350.0), (1e-6, 1e-6)])
def test_whole_slide_of_unknown_scale(scaled_night: Night, mpp: tuple[float, float] | None) -> None:
    whole_slide(scaled_night, mpp)
    scaled_night.submit().assert_ends("slide.tif", BAD_SCALE)
    # A scale that somebody vouches for makes another result of it.
    again = scaled_night.submit(mpp=(0.5, 0.5))
    assert again.rows["slide.tif"]["status"] == Status.COMPLETE


def test_points_without_any_size(night: Night) -> None:
    """The bundle names no tile_um, and the table no boxes."""
    whole_slide(night, (0.5, 0.5))
    night.submit().assert_ends("slide.tif", BAD_SCALE)


@pytest.mark.parametrize(("mpp", "good"), [(0.5, True), (0.54, True), (0.56, False), (0.25, False)])
def test_ready_tiles_of_another_magnification(scaled_night: Night, mpp: float, good: bool) -> None:
    write_zarr(scaled_night.slides / "slide.zarr", slide_of().tiles, mpp=mpp)
    found = scaled_night.submit()
    if good:
        assert found.rows["slide.zarr"]["status"] == Status.COMPLETE
    else:
        found.assert_ends("slide.zarr", BAD_SCALE)
