"""A model that costs next to nothing: it looks at every byte of every tile once.

What it finds follows from a tile's bytes alone, so that runs can be compared however their
tiles were cut into batches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Tiles at once, as a GPU takes them.
BATCH = 256


def checksums(tiles: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """One number [n] for each tile [n, h, w, 3]; h * w * 3 is a multiple of 8."""
    words = np.ascontiguousarray(tiles).reshape(len(tiles), -1).view(np.uint64)
    sums: NDArray[np.uint64] = words.sum(axis=1, dtype=np.uint64)
    return sums


def probabilities(tiles: NDArray[np.uint8], classes: int) -> NDArray[np.float32]:
    """[n, classes]: one class stands out; which, and by how much, the sums decide."""
    which, much = np.divmod(checksums(tiles), np.uint64(classes))[::-1]
    confidence = 0.5 + (much % np.uint64(1024)).astype(np.float32) / 2048
    found = np.empty((len(tiles), classes), np.float32)
    found[:] = ((1 - confidence) / max(1, classes - 1))[:, np.newaxis]
    found[np.arange(len(found)), which.astype(np.intp)] = confidence
    return found
