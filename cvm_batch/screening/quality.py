"""Brightness and focus of tiles: cheap figures that show a bad scan or a drifting stain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cvm_batch.tiles import Tiles

#: Every fourth row is enough for a mean over a slide, and a quarter of the time.
_ROW_STEP = 4
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
        green = tiles[:, ::_ROW_STEP, :, _GREEN].astype(np.int32)
        gradient = green[:, :, 2:] - green[:, :, :-2]
        focus = np.square(gradient).mean(axis=(1, 2)) if gradient.size else np.zeros(len(tiles))
        return Quality(green.mean(axis=(1, 2)).astype(np.float32), focus.astype(np.float32))
    each = [measure(tile[np.newaxis]) for tile in tiles]
    return Quality(
        np.array([quality.brightness[0] for quality in each], np.float32),
        np.array([quality.focus[0] for quality in each], np.float32),
    )
