"""The PNG files of tiles: any reader gives back their pixels."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cvm_batch.results.png import png_files


def png(tile: NDArray[np.uint8]) -> bytes:
    (file,) = png_files([tile]).to_pylist()
    return bytes(file)


@pytest.mark.parametrize(
    "shape", [(100, 100), (1, 1), (1, 300), (300, 1), (7, 13), (256, 2), (224, 224)]
)
def test_pixels_come_back(shape: tuple[int, int]) -> None:
    tile = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    with Image.open(io.BytesIO(png(tile))) as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), tile)


@pytest.mark.parametrize("level", [0, 1, 127, 128, 254, 255])
def test_flat_pixels_come_back(level: int) -> None:
    tile = np.full((9, 11, 3), level, np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(tile)))), tile)


def test_a_view_of_a_larger_array_will_do() -> None:
    block = np.random.default_rng(0).integers(0, 256, (4, 20, 30, 3), np.uint8)
    tile = block[2, ::2, 5:25]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(tile)))), tile)


def test_smooth_pixels_leave_little_to_compress() -> None:
    """As a stained cell's are; so the table's zstd finds what PNG's own compression would."""
    ramp = np.add.outer(np.arange(100), np.arange(100))[:, :, None].repeat(3, axis=2)
    tile = ramp.astype(np.uint8)
    assert len(zlib.compress(png(tile), 1)) < tile.nbytes / 20


@pytest.mark.parametrize("shapes", [[], [(8, 9)] * 5, [(8, 9), (9, 8), (8, 9)], [(150, 160)] * 9])
def test_many_at_once_are_as_one_by_one(shapes: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(0)
    tiles = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    assert png_files(tiles).to_pylist() == [png(tile) for tile in tiles]
