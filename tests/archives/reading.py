"""Short ways to read a whole slide, and to damage one."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from cvm_batch.archives.archive import SlideInfo, TileBlock
from cvm_batch.archives.formats import open_archive
from tests.archives.making import Cells


def read_all(path: Path) -> TileBlock:
    """Every tile of the slide at ``path``. Raises what opening and reading raise."""
    with closing(open_archive(path)) as archive:
        return archive.read(0, archive.describe().tiles)


def describe(path: Path) -> SlideInfo:
    with closing(open_archive(path)) as archive:
        return archive.describe()


def flip_bit(path: Path, rng: np.random.Generator) -> None:
    """Turn one random bit of a file round."""
    data = bytearray(path.read_bytes())
    bit = int(rng.integers(8 * len(data)))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def assert_honest(block: TileBlock, slide: Cells) -> None:
    """Every tile there, and each either right or marked."""
    assert len(block) == len(slide)
    for position in np.flatnonzero(block.readable):
        np.testing.assert_array_equal(block.tiles[position], slide.tiles[position])
