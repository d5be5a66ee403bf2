"""Regions of whole-slide images, read through OpenSlide by several threads.

Label and macro images are never opened, and of the properties only those are asked for
that say how pixels are stored and how large they are: the others may name a patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.limits import MAX_CHUNK_BYTES, MIB
from cvm_batch.archives.places.files import reading
from cvm_batch.archives.scale import sensible
from cvm_batch.errors import BadFormatError, OverLimitError, ReadError

if TYPE_CHECKING:
    from openslide import OpenSlide, OpenSlideCache
    from PIL import Image

#: Decoded stored tiles that the threads of one slide share.
_CACHE_BYTES = 32 * MIB
#: What OpenSlide keeps of a decoded pixel.
_PIXEL_BYTES = 4
#: Taken where a slide does not say how it is stored; only the order of reading hangs on it.
_USUAL_TILE_PX = 256
_WHITE = (255, 255, 255)
_OPAQUE = 255


class UnreadableRegionError(Exception):
    """Pixels inside of the slide that do not decode, or were never stored."""


@dataclass(frozen=True)
class Level:
    """One resolution of a slide."""

    downsample: float
    """Level-0 pixels a side in a pixel of this level."""
    size: tuple[int, int]
    """Width and height in pixels of this level."""
    tile: tuple[int, int]
    """Width and height of the stored tiles, in pixels of this level."""


class Crop(NamedTuple):
    pixels: NDArray[np.uint8]
    """RGB [h, w, 3]."""
    padded: bool
    """Whether a part of it lies beyond the slide's border, and is filled with background."""


class WholeSlide:
    """An open slide. ``crop`` may be called from several threads at once."""

    def __init__(self, path: Path) -> None:
        """Raises BadFormatError, OverLimitError, ReadError or InputChangedError."""
        import openslide

        self._handles = _Handles(path)
        try:
            with self._handles.one() as slide:
                self.levels = _levels(slide, path)
                self._background = _background(slide)
                self.mpp, self.mpp_problem = _mpp(slide)
        except openslide.OpenSlideError as error:
            raise BadFormatError(
                f"{path} is no whole slide that OpenSlide can open: {error}. It may be cut short "
                "or of a kind that is not supported: copy it again, or export it as tiled TIFF."
            ) from error

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in level-0 pixels."""
        return self.levels[0].size

    def crop(self, x: int, y: int, width: int, height: int, level: int) -> Crop:
        """The region with its upper left corner at ``x``, ``y`` in level-0 pixels.

        ``width`` and ``height`` are in pixels of the level. The corner is moved to the
        nearest of them, so that nothing is resampled. Raises UnreadableRegionError, also
        where a scanner left a part of the region out.
        """
        at = self.levels[level]
        left, top = round(x / at.downsample), round(y / at.downsample)
        across, down = _inside(left, width, at.size[0]), _inside(top, height, at.size[1])
        if not (across and down):
            raise UnreadableRegionError("nothing of it lies inside of the slide")
        pixels = self._read(left + across.start, top + down.start, len(across), len(down), level)
        if (len(across), len(down)) == (width, height):
            return Crop(pixels, padded=False)
        whole = np.empty((height, width, 3), np.uint8)
        whole[:] = self._background
        whole[down.start : down.stop, across.start : across.stop] = pixels
        return Crop(whole, padded=True)

    def close(self) -> None:
        """Calling it twice is harmless; what is being read is read to its end."""
        self._handles.close()

    def _read(self, left: int, top: int, width: int, height: int, level: int) -> NDArray[np.uint8]:
        """A region inside of the slide, all in pixels of the level."""
        import openslide

        scale = self.levels[level].downsample
        corner = round(left * scale), round(top * scale)
        try:
            with self._handles.one() as slide:
                image = slide.read_region(corner, level, (width, height))
        except openslide.OpenSlideError as error:
            raise UnreadableRegionError(str(error)) from error
        return _opaque(image)


def _inside(start: int, length: int, end: int) -> range:
    """The part of [start, start + length) that lies in [0, end), counted from ``start``."""
    return range(max(0, -start), min(length, end - start))


def _opaque(image: Image.Image) -> NDArray[np.uint8]:
    """RGB pixels [h, w, 3]; a stored tile that is empty or missing reads as transparent."""
    if np.asarray(image)[..., 3].min() < _OPAQUE:
        raise UnreadableRegionError("it has transparent pixels: stored tiles are empty or missing")
    return np.asarray(image.convert("RGB"))


class _Handles:
    """A handle for each thread that reads, all of one slide and with one cache of tiles."""

    def __init__(self, path: Path) -> None:
        import openslide

        self._path = path
        self._cache = openslide.OpenSlideCache(_CACHE_BYTES)
        self._lock = Lock()
        self._idle: list[OpenSlide] | None = []

    @contextmanager
    def one(self) -> Iterator[OpenSlide]:
        """Raises SlideError, and OpenSlideError for what the handle is asked."""
        slide = self._take()
        try:
            yield slide
        except BaseException:
            # After an error of its own, OpenSlide answers everything with that error.
            slide.close()
            raise
        self._give_back(slide)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle or [], None
        for slide in idle:
            slide.close()

    def _take(self) -> OpenSlide:
        with self._lock:
            if self._idle is None:
                raise ReadError(f"{self._path} was closed while it was read. Submit again.")
            if self._idle:
                return self._idle.pop()
        return _open(self._path, self._cache)

    def _give_back(self, slide: OpenSlide) -> None:
        with self._lock:
            if self._idle is not None:
                self._idle.append(slide)
                return
        slide.close()


def _open(path: Path, cache: OpenSlideCache) -> OpenSlide:
    import openslide

    # OpenSlide says of a file that it may not read that it is of no known format.
    with reading(path), path.open("rb"):
        slide = openslide.OpenSlide(path)
    slide.set_cache(cache)
    return slide


def _levels(slide: OpenSlide, path: Path) -> Sequence[Level]:
    levels = [
        Level(downsample, size, _tile_size(slide, number))
        for number, (downsample, size) in enumerate(
            zip(slide.level_downsamples, slide.level_dimensions, strict=True)
        )
    ]
    for level in levels:
        if level.tile[0] * level.tile[1] * _PIXEL_BYTES > MAX_CHUNK_BYTES:
            raise OverLimitError(
                f"{path} is stored in tiles of {level.tile[0]} x {level.tile[1]} pixels, more "
                f"than the {MAX_CHUNK_BYTES} bytes that one may take. Store it in smaller tiles."
            )
    return levels


def _tile_size(slide: OpenSlide, level: int) -> tuple[int, int]:
    width = slide.properties.get(f"openslide.level[{level}].tile-width", _USUAL_TILE_PX)
    height = slide.properties.get(f"openslide.level[{level}].tile-height", _USUAL_TILE_PX)
    return int(width), int(height)


def _background(slide: OpenSlide) -> tuple[int, ...]:
    """RGB of glass without anything on it, as the slide's format says."""
    colour = slide.properties.get("openslide.background-color")
    return tuple(bytes.fromhex(colour)) if colour else _WHITE


def _mpp(slide: OpenSlide) -> tuple[tuple[float, float] | None, str]:
    """Microns per level-0 pixel, x and y; or None, and what is wrong, to follow a name."""
    found = [slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    if None in found:
        return None, "does not say how large its pixels are"
    x, y = (float(value) for value in found if value)
    if sensible((x, y)):
        return (x, y), ""
    return None, f"says that its pixels are {x:g} x {y:g} um large, which those of no slide are"


def best_levels(
    levels: Sequence[Level], side: NDArray[np.float64], least_px: int
) -> NDArray[np.int64]:
    """The coarsest level at which each crop still has ``least_px`` pixels a side.

    ``side``: of the crops in level-0 pixels, the shorter one, [n]. Level 0 for those of
    which no level has as many, or where it is not known how many are needed.
    """
    best = np.zeros(len(side), np.int64)
    if least_px:
        for number in sorted(range(len(levels)), key=lambda number: levels[number].downsample):
            best[np.rint(side / levels[number].downsample) >= least_px] = number
    return best


def reading_order(corner: NDArray[np.int64], level: Level) -> NDArray[np.int64]:
    """The order in which to read crops, so that each stored tile is decoded about once.

    ``corner``: upper left corners in level-0 pixels [n, 2]. A crop reaches into the tiles
    to the right of and below the one that it begins in, so two rows of them must stay in
    the cache. Slides are wider than that: they are read in bands from top to bottom.
    """
    column, row = np.floor(corner / level.downsample / level.tile).astype(np.int64).T
    row_of_tiles = _CACHE_BYTES // 4 // (level.tile[0] * level.tile[1] * _PIXEL_BYTES)
    return np.lexsort((column, row, column // max(1, row_of_tiles)))
