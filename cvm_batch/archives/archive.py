"""The seam: what a slide archive is to all that reads one.

Coordinates are level-0 pixels, x to the right and y down; tiles are uint8 RGB
[h, w, 3]. An index is a tile's place in its slide, 0 to tiles - 1, and never changes
while the slide's files stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.opening import Opening
from cvm_batch.archives.places.files import FileStamp, identity
from cvm_batch.archives.places.place import Place
from cvm_batch.errors import Reason
from cvm_batch.tiles import Tiles


class ExpectedFrom(StrEnum):
    """Where the expected number of tiles comes from, the most trustworthy first."""

    MANIFEST = "manifest"
    CELLS_TABLE = "cells_table"
    PACK_MANIFEST = "pack_manifest"
    LISTING = "listing"


class Integrity(StrEnum):
    """Whether every byte that became a tile was checked against a recorded checksum."""

    VERIFIED = "verified"
    UNVERIFIED = "unverified"


@dataclass(frozen=True, kw_only=True)
class SlideInfo:
    """What is known of a slide before a pixel is read."""

    identity: str
    """SHA-256 over the packed archive's digests, else over name, size and modification
    time (and ETag or version, on object storage) of the archive's files."""
    tiles: int
    """The number of tiles the slide should have, readable or not."""
    expected_from: ExpectedFrom
    tile_px: tuple[int, int] | None
    """Height and width of every tile, or None where sizes vary."""
    chunk_tiles: int = 1
    """Tiles that are stored, and decoded, together."""
    mpp: tuple[float, float] | None = None
    """Microns per level-0 pixel, x and y, where known."""
    missing: int = 0
    """Tiles of which it is known beforehand that they are not there."""
    integrity: Integrity = Integrity.UNVERIFIED


@dataclass(frozen=True)
class TileFault:
    """Why one tile could not be read."""

    reason: Reason
    """MISSING_TILES where nothing was stored, UNREADABLE_TILES where it did not decode."""
    detail: str


@dataclass(frozen=True, kw_only=True)
class TileBlock:
    """The tiles [start, stop) of one slide; position i holds the tile of index[i]."""

    tiles: Tiles
    """uint8 [n, h, w, 3], or a list where sizes vary; unspecified where not readable."""
    index: NDArray[np.int64]
    xy: NDArray[np.float64] | None
    """Nucleus centres [n, 2] in level-0 pixels, where known."""
    cell_id: list[str] | None
    readable: NDArray[np.bool_]
    faults: Mapping[int, TileFault] = field(default_factory=dict)
    """By position, for exactly the tiles that are not readable."""
    padded: NDArray[np.bool_] | None = None
    """Tiles that reach beyond the slide's border, filled up there; None where none does."""

    def __len__(self) -> int:
        return len(self.index)


class SlideArchive(Protocol):
    """All tiles of one slide. ``read`` may be called from several threads at once."""

    @property
    def info(self) -> SlideInfo:
        """The slide as it was when it was opened."""
        ...

    def describe(self) -> SlideInfo:
        """The slide as it is now: ask its files anew, without reading pixels. Raises SlideError.

        It costs a look at each of them, as opening did.
        """
        ...

    def read(self, start: int, stop: int) -> TileBlock:
        """Read tiles [start, stop), 0 <= start < stop <= tiles.

        A tile that is missing or does not decode is marked in the block; SlideError is
        raised for what concerns the slide as a whole.
        """
        ...

    def close(self) -> None:
        """Release the files. Calling it twice is harmless."""
        ...


@dataclass(frozen=True, kw_only=True)
class ArchiveFormat:
    """One format: how its archives are recognised, opened, and told from their surroundings."""

    name: str
    takes: Callable[[Place], bool]
    """Whether a place is of this format, by its name and a look at what a folder holds."""
    open: Callable[[Opening], SlideArchive]
    """Raises SlideError."""
    files: Callable[[Opening], Iterable[FileStamp]]
    """The slide's own files as they are now, by names relative to its folder, or to the folder
    that its file lies in. Raises SlideError."""
    companions: Callable[[Place], Sequence[Place]]
    """Where files beside an archive would be that belong to it."""
    holds: Callable[[str], bool] = field(default=lambda _: False)
    """Whether a file directly in an archive's folder is a part of it, by its name."""
    has_slides_below: bool = False
    """Whether the folders inside an archive can be slides themselves."""
    tables: Callable[[Opening], Sequence[tuple[Place, FileStamp]]] = field(default=lambda _: ())
    """Its cells tables, where they lie outside. Raises SlideError."""
    digest: Callable[[Opening], str | None] = field(default=lambda _: None)
    """What a slide records of all its files, where it does. Raises SlideError."""

    def identity(self, slide: Opening) -> str:
        """As `SlideInfo.identity`, also of a slide that cannot be opened. Raises SlideError."""
        return self.digest(slide) or identity(self.stamps(slide))

    def stamps(self, slide: Opening) -> Iterator[FileStamp]:
        """All files of a slide, as they are now. Raises SlideError."""
        yield from self.files(slide)
        yield from (stamp for _, stamp in self.tables(slide))


def check_range(start: int, stop: int, tiles: int) -> None:
    """Raise IndexError unless [start, stop) is a range of a slide of so many tiles."""
    if not 0 <= start < stop <= tiles:
        raise IndexError(f"tiles [{start}, {stop}) of a slide that has {tiles}")
