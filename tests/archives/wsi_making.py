"""Whole slides made for tests, without loss, and ways to damage them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

#: What the tests' slides say of themselves unless told otherwise, and what Aperio writes.
MPP = 0.5
_UM_PER_CM = 10_000
_MOST_PER_CM = (1 << 32) - 1
_REDUCED = 1


def write_tiff(
    path: Path,
    pixels: NDArray[np.uint8],
    *,
    tile: int = 64,
    levels: int = 2,
    mpp: tuple[float, float] | None = (MPP, MPP),
    compression: str | None = "zlib",
) -> Path:
    """A generic tiled TIFF of RGB ``pixels`` [h, w, 3], each level half as large a side.

    ``mpp``: microns per pixel, x and y.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scale: dict[str, Any] = {"resolutionunit": "NONE"}
    if mpp is not None:
        per_cm = tuple(min(_UM_PER_CM / axis, _MOST_PER_CM) for axis in mpp)
        scale = {"resolution": per_cm, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(pyramid(pixels, levels)):
            _write_level(
                file, level, tile, compression, subfiletype=_REDUCED if number else 0, **scale
            )
            scale = {"resolutionunit": "NONE"}
    return path


def write_svs(
    path: Path,
    pixels: NDArray[np.uint8],
    *,
    tile: int = 64,
    levels: int = 1,
    mpp: float | None = MPP,
    compression: str | None = "lzw",
    patient: str | None = None,
) -> Path:
    """A slide as Aperio's scanners write it, with a label image that shows ``patient``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, _ = pixels.shape
    head = f"Aperio Image Library v11.2.1\r\n{width}x{height} ({tile}x{tile})"
    scale = "" if mpp is None else f"|MPP = {mpp}"
    owner = "" if patient is None else f"|Patient = {patient}"
    full, *reduced = pyramid(pixels, levels)
    with tifffile.TiffWriter(path) as file:
        described = f"{head}|AppMag = 20{scale}{owner}"
        _write_level(file, full, tile, compression, description=described)
        _write_strips(file, full[::8, ::8], f"{head} -> thumbnail")
        for level in reduced:
            _write_level(file, level, tile, compression, description=head)
        if patient is not None:
            _write_strips(file, np.zeros((24, 48, 3), np.uint8), f"{head}\r\nlabel 48x24", _REDUCED)
    return path


def pyramid(pixels: NDArray[np.uint8], levels: int) -> Iterator[NDArray[np.uint8]]:
    """Each level takes every other pixel of the one before, so that its truth is plain."""
    for number in range(levels):
        yield np.ascontiguousarray(pixels[:: 2**number, :: 2**number])


def empty_tile(path: Path, number: int) -> None:
    """Make a stored tile of the first level one of no bytes, as some scanners leave out glass."""
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[0].tags["TileByteCounts"]
        tag.overwrite([0 if n == number else size for n, size in enumerate(tag.value)])


def spoil_tile(path: Path, number: int) -> None:
    """Overwrite a stored tile of the first level with what is no image."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        start, size = page.dataoffsets[number], page.databytecounts[number]
    data = bytearray(path.read_bytes())
    data[start : start + size] = b"\xff" * size
    path.write_bytes(data)


def _write_level(
    file: tifffile.TiffWriter,
    level: NDArray[np.uint8],
    tile: int,
    compression: str | None,
    **settings: Any,
) -> None:
    file.write(
        level,
        tile=(tile, tile),
        photometric="rgb",
        compression=compression,
        metadata=None,
        software=False,
        **settings,
    )


def _write_strips(
    file: tifffile.TiffWriter, image: NDArray[np.uint8], description: str, subfiletype: int = 0
) -> None:
    """An image beside the levels: OpenSlide tells it by its being without tiles."""
    file.write(
        image,
        photometric="rgb",
        rowsperstrip=image.shape[0],
        description=description,
        subfiletype=subfiletype,
        metadata=None,
        software=False,
    )
