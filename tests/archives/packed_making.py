"""Packed slides, as `pack` writes them, but in this process and of small chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cvm_batch.archives.packing import arrays as pack_arrays
from cvm_batch.archives.packing import pack as packing
from tests.archives.making import Cells, write_zarr
from tests.archives.packing_slides import pack_all, packed, run_here

CHUNK = 7


def write_packed(path: Path, slide: Cells) -> Path:
    """A packed slide at ``path``, a ``.zarr``, seven tiles in a chunk."""
    sources = path.with_name(f"{path.stem}-source")
    tiles = np.asarray(slide.tiles)
    write_zarr(sources / path.name, tiles, xy=slide.xy, cell_id=slide.cell_id, mpp=0.25)
    return pack_small(sources, path.parent) / path.name


def pack_small(sources: Path, out: Path) -> Path:
    """Pack all slides under ``sources``, which must be possible, and return ``out``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "run_isolated", run_here)
        patch.setattr(pack_arrays, "_MOST_TILES", CHUNK)
        for outcome in pack_all(sources, out).values():
            packed(outcome)
    return out
