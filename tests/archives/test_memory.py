"""What a reader holds in memory does not grow with its slide."""

from __future__ import annotations

import io
import multiprocessing
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.archives.making import cells, encode
from tests.archives.reading import open_at

FEW, MANY = 10_000, 200_000
BLOCK = 256
#: What may come on top, in bytes.
ROOM = 50 << 20
TILES = cells(16, px=(8, 8)).tiles
IMAGES = [encode(tile) for tile in TILES]


def zip_of(path: Path, tiles: int) -> Path:
    path = path / f"{tiles}.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for number in range(tiles):
            packed.writestr(f"{number:07d}.png", IMAGES[number % len(IMAGES)])
    return path


def tar_of(path: Path, tiles: int) -> Path:
    path = path / f"{tiles}.tar"
    with tarfile.open(path, "w") as packed:
        for number in range(tiles):
            info = tarfile.TarInfo(f"{number:07d}.png")
            data = IMAGES[number % len(IMAGES)]
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
            # tarfile keeps all it wrote, and its own growth is no matter here.
            packed.members.clear()
    return path


def folder_of(path: Path, tiles: int) -> Path:
    path = path / str(tiles)
    path.mkdir()
    for number in range(tiles):
        (path / f"{number:07d}.png").write_bytes(IMAGES[number % len(IMAGES)])
    return path


def zarr_of(path: Path, tiles: int) -> Path:
    path = path / f"{tiles}.zarr"
    chunk = np.resize(TILES, (BLOCK, *TILES.shape[1:]))
    array = zarr.open_group(path, mode="w").create_array(
        "tiles", shape=(tiles, *chunk.shape[1:]), chunks=chunk.shape, dtype="uint8"
    )
    for start in range(0, tiles, BLOCK):
        array[start : start + BLOCK] = chunk[: tiles - start]
    return path


@pytest.mark.campaign
@pytest.mark.parametrize("make", [zip_of, tar_of, folder_of, zarr_of])
def test_twenty_times_the_tiles_take_no_more_memory(
    tmp_path: Path, make: Callable[[Path, int], Path]
) -> None:
    few, many = (peak_of_reading(make(tmp_path, tiles), tiles) for tiles in (FEW, MANY))
    assert many - few < ROOM, f"{few >> 20} MiB for {FEW} tiles, {many >> 20} MiB for {MANY}"


def peak_of_reading(path: Path, tiles: int) -> int:
    """Bytes at most in use by a process of its own that opens a slide and reads all of it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_read_all, (path, tiles))


def _read_all(path: Path, tiles: int) -> int:
    with closing(open_at(path)) as archive:
        assert archive.describe().tiles == tiles
        readable = sum(
            int(archive.read(start, min(start + BLOCK, tiles)).readable.sum())
            for start in range(0, tiles, BLOCK)
        )
    assert readable == tiles
    # Not from `getrusage`: what the parent had in use counts there.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
