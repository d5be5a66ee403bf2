"""Short ways to read a whole slide, and to damage one."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import SlideArchive, SlideInfo, TileBlock
from cvm_batch.archives.contents import content_of
from cvm_batch.archives.formats import identity_of, open_archive
from cvm_batch.archives.opening import PLAIN, OpenOptions
from tests.archives.making import Cells


def open_at(path: Path, options: OpenOptions = PLAIN, **known: Any) -> SlideArchive:
    """The slide at ``path``; ``known`` is what a manifest would say of it."""
    return open_archive(SlideAddress(uri=str(path), **known), options)


def identity_at(path: Path) -> str:
    return identity_of(SlideAddress(uri=str(path)))


def content_identity_at(path: Path) -> str:
    return content_of(SlideAddress(uri=str(path))).identity


def read_all(path: Path, options: OpenOptions = PLAIN, **known: Any) -> TileBlock:
    """Every tile of the slide at ``path``. Raises what opening and reading raise."""
    with closing(open_at(path, options, **known)) as archive:
        return archive.read(0, archive.describe().tiles)


def describe(path: Path, options: OpenOptions = PLAIN, **known: Any) -> SlideInfo:
    with closing(open_at(path, options, **known)) as archive:
        return archive.describe()


def flip_bit(path: Path, rng: np.random.Generator) -> None:
    """Turn one random bit of a file round."""
    data = bytearray(path.read_bytes())
    bit = int(rng.integers(8 * len(data)))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def edit_json(document: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a metadata document in place."""
    value = json.loads(document.read_text())
    change(value)
    document.write_text(json.dumps(value))


def assert_honest(block: TileBlock, slide: Cells) -> None:
    """Every tile there, and each either right or marked."""
    assert len(block) == len(slide)
    for position in np.flatnonzero(block.readable):
        np.testing.assert_array_equal(block.tiles[position], slide.tiles[position])
