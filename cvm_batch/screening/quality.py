"""Brightness and focus of tiles: cheap figures that show a bad scan or a drifting stain."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from cvm_batch.tiles import Tiles

#: Every seventh row is enough for a mean over a slide, and a seventh of the time. Not every
#: eighth: tiles that are cut where JPEG's blocks begin would show one row of these alone.
_ROW_STEP = 7
_GREEN = 1


@dataclass(frozen=True)
class Quality:
    """One figure a tile."""

    brightness: NDArray[np.float32]
    """Mean green level, 0 to 255; stained nuclei absorb green most."""
    focus: NDArray[np.float32]
    """Brenner's gradient: mean squared difference of pixels two columns apart."""

    def take(self, rows: slice) -> Quality:
        return Quality(self.brightness[rows], self.focus[rows])


def measure(tiles: Tiles) -> Quality:
    """Quality of uint8 tiles [n, h, w, 3], or of a list of [h, w, 3]."""
    if isinstance(tiles, np.ndarray):
        # Whole numbers, so that no sum depends on the order in which it was made.
        green = np.ascontiguousarray(tiles[:, ::_ROW_STEP, :, _GREEN])
        gradient = np.subtract(green[:, :, 2:], green[:, :, :-2], dtype=np.int16)
        focus = np.einsum("nhw,nhw->n", gradient, gradient, dtype=_room_for_squares(gradient))
        brightness = green.sum(axis=(1, 2), dtype=np.uint32)
        return Quality(_mean(brightness, green), _mean(focus, gradient))
    each = [measure(tile[np.newaxis]) for tile in tiles]
    return Quality(
        np.array([quality.brightness[0] for quality in each], np.float32),
        np.array([quality.focus[0] for quality in each], np.float32),
    )


def _mean(sums: NDArray[np.integer], of: NDArray[np.integer]) -> NDArray[np.float32]:
    """Sums [n] over arrays [n, h, w], as means; 0 where there is nothing to add up."""
    return (sums / max(1, prod(of.shape[1:]))).astype(np.float32)


def _room_for_squares(gradient: NDArray[np.int16]) -> type[np.integer]:
    """What holds the sum of squares over [h, w]; the narrower one is a third faster to add up."""
    most = prod(gradient.shape[1:]) * 255**2
    return np.int32 if most <= np.iinfo(np.int32).max else np.int64
