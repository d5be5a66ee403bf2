"""One bit flipped in what is stored, again and again: no tile may be wrong in silence.

Formats without checksums of their own have their digests recorded beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.opening import PLAIN
from cvm_batch.archives.packing.pack import pack_slides
from cvm_batch.archives.tables.slides import ListedSlide
from cvm_batch.errors import SlideError
from tests.archives.making import (
    Cells,
    cells,
    files_of,
    record,
    write_table,
    write_tar,
    write_zarr,
    write_zip,
)
from tests.archives.reading import assert_honest, describe, read_all
from tests.archives.wsi_making import write_svs

FLIPS = 300
SIDE = 24


def packed(folder: Path, slide: Cells) -> Path:
    source = write_zip(folder / "source" / "slide.zip", slide.tiles)
    listed = ListedSlide(slide_id="slide.zip", address=SlideAddress(uri=str(source)))
    list(pack_slides([listed], PLAIN, folder / "packed", jobs=1))
    return folder / "packed" / "slide.zarr"


def zipped(folder: Path, slide: Cells) -> Path:
    return write_zip(folder / "slide.zip", slide.tiles)


def tarred(folder: Path, slide: Cells) -> Path:
    return recorded(write_tar(folder / "slide.tar", slide))


def plain_zarr(folder: Path, slide: Cells) -> Path:
    tiles = np.asarray(slide.tiles)
    return recorded(write_zarr(folder / "slide.zarr", tiles, compressors=(), chunk=16))


def whole_slide(folder: Path, slide: Cells) -> Path:
    path = write_svs(folder / "slide.svs", np.asarray(slide.tiles).reshape(-1, SIDE, 3))
    middle, side = [SIDE / 2] * len(slide), [SIDE] * len(slide)
    y = [SIDE * (n + 0.5) for n in range(len(slide))]
    columns = {"x": middle, "y": y, "width": side, "height": side}
    write_table(folder / "slide.cells.csv", columns)
    return recorded(path)


def recorded(path: Path) -> Path:
    record(path)
    return path


@pytest.mark.campaign
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("write", [packed, zipped, tarred, plain_zarr, whole_slide])
def test_no_flip_goes_unnoticed(
    write: Callable[[Path, Cells], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = cells(48, px=(SIDE, SIDE))
    path = write(tmp_path, slide)
    truth = Cells(read_all(path).tiles, slide.xy, slide.cell_id)
    assert describe(path).integrity == "verified"
    files = files_of(path)
    sizes = np.array([file.stat().st_size for file in files])
    rng = np.random.default_rng(2022)
    ends: Counter[str] = Counter()
    for _ in range(FLIPS):
        file = files[rng.choice(len(files), p=sizes / sizes.sum())]
        whole = file.read_bytes()
        damaged = bytearray(whole)
        bit = int(rng.integers(8 * len(whole)))
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        ends[_end(path, truth)] += 1
        file.write_bytes(whole)
    with capsys.disabled():
        print(f"\n{write.__name__}: {FLIPS} flips: {dict(ends.most_common())}")
    assert read_all(path).readable.all()


def _end(path: Path, truth: Cells) -> str:
    """What reading a damaged slide comes to; AssertionError for a tile that is wrong in silence."""
    try:
        block = read_all(path)
    except SlideError as error:
        return str(error.reason)
    assert_honest(block, truth)
    return "all tiles right" if block.readable.all() else "tiles marked"
