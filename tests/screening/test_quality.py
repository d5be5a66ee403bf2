"""Brightness and focus, against the plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cvm_batch.screening.quality import measure


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize("shape", [(5, 100, 100), (1, 7, 9), (3, 4, 3), (2, 300, 500)])
def test_formulas(shape: tuple[int, int, int]) -> None:
    tiles = noise(*shape)
    green = tiles[:, ::7, :, 1].astype(np.float64)
    found = measure(tiles)
    np.testing.assert_array_equal(found.brightness, green.mean(axis=(1, 2)).astype(np.float32))
    squares = (green[:, :, 2:] - green[:, :, :-2]) ** 2
    np.testing.assert_array_equal(found.focus, squares.mean(axis=(1, 2)).astype(np.float32))


def test_a_large_tile_of_the_sharpest_stripes() -> None:
    """Its sum of squares is 2**34 and more."""
    tile = np.zeros((1, 2048, 2048, 3), np.uint8)
    tile[:, :, 2::4] = tile[:, :, 3::4] = 255
    assert measure(tile).focus == 255**2


@pytest.mark.parametrize("width", [1, 2])
def test_tiles_too_narrow_to_be_sharp(width: int) -> None:
    tiles = noise(3, 8, width)
    found = measure(tiles)
    assert (found.focus == 0).all()
    np.testing.assert_allclose(found.brightness, tiles[:, ::7, :, 1].mean(axis=(1, 2)), rtol=1e-6)


def test_tiles_of_several_sizes() -> None:
    tiles = [noise(20, 30), noise(8, 8)]
    found = measure(tiles)
    for number, tile in enumerate(tiles):
        alone = measure(tile[np.newaxis])
        assert found.brightness[number] == alone.brightness[0]
        assert found.focus[number] == alone.focus[0]


def test_no_tiles() -> None:
    assert len(measure(noise(0, 10, 10)).brightness) == 0
