"""Slides as crops: a folder, ``.zip`` or ``.tar`` of PNG, JPEG, BMP, TIFF or WebP images.

Tiles are in the order of the cells table where there is one, else of their names. Of a
folder, the files directly in it are tiles; in a zip or tar, also those in its sub-folders.
Hidden files and what macOS adds to zips (``__MACOSX``) are no tiles. Nor are files that are
no images: of a WebDataset-style tar (``key.png``, ``key.cls``, ``key.json``) the images are
the tiles, and the labels are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import PurePath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cvm_batch.archives.archive import (
    ArchiveFormat,
    ExpectedFrom,
    SlideInfo,
    TileBlock,
    TileFault,
    check_range,
)
from cvm_batch.archives.companions import (
    are_slides,
    companions,
    stamp_present,
    tables_of,
)
from cvm_batch.archives.images.decoding import UndecodableError, decode
from cvm_batch.archives.limits import MIB
from cvm_batch.archives.members.base import (
    FolderMembers,
    MemberArchive,
    Members,
    read_listed,
    read_named,
)
from cvm_batch.archives.members.packed import TarMembers, ZipMembers
from cvm_batch.archives.opening import Opening
from cvm_batch.archives.places.files import FileStamp, identity, printable
from cvm_batch.archives.places.place import Place
from cvm_batch.archives.scale import check_tile_size
from cvm_batch.archives.tables.cells import (
    INSIDE_NAMES,
    CellsTable,
    TableKind,
    named,
    parse_table,
)
from cvm_batch.errors import BadFormatError, EmptyArchiveError, Reason
from cvm_batch.tiles import Tiles

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp")
)

#: Bytes of the array that tiles are decoded into.
_MOST_ROOM = 64 * MIB


class ImageArchive(MemberArchive):
    """The crops of one slide. Pixels are decoded when they are read, nothing is kept."""

    def __init__(
        self,
        slide: Opening,
        open_members: Callable[[Place], Members],
        list_files: Callable[[Opening], Iterable[FileStamp]],
    ) -> None:
        """Raises SlideError."""
        super().__init__(slide, open_members, list_files)
        try:
            beside = tables_of(slide, TableKind.CROPS)
            self._table = _read_table(self._members, beside)
            self._positions = self._list_tiles()
        except BaseException:
            self._members.close()
            raise
        stamps = [stamp for _, stamp in beside]
        self.info = SlideInfo(
            identity=identity(chain(self._members.opened, stamps)),
            tiles=len(self._positions),
            missing=int((self._positions < 0).sum()),
            expected_from=ExpectedFrom.CELLS_TABLE if self._table else ExpectedFrom.LISTING,
            # To know better would take a look into every file, which planning cannot afford.
            tile_px=None,
            mpp=slide.options.mpp,
            integrity=self._members.integrity,
        )

    def read(self, start: int, stop: int) -> TileBlock:
        check_range(start, stop, len(self._positions))
        names = self._names(start, stop)
        try:
            outcomes, room = self._outcomes(self._positions[start:stop], names)
        finally:
            # What looks damaged may only be half overwritten, which is another matter.
            self._members.check()
        tiles = together(outcomes, room)
        faults = {i: tile for i, tile in enumerate(outcomes) if isinstance(tile, TileFault)}
        # Of one size, they were cut at one: crops that follow their cells say nothing.
        if isinstance(tiles, np.ndarray) and len(faults) < len(tiles):
            height, width = tiles.shape[1:3]
            options = self._slide.options
            check_tile_size((height, width), options.mpp, options, self._slide.place)
        readable = np.ones(stop - start, np.bool_)
        readable[list(faults)] = False
        table = self._table
        return TileBlock(
            tiles=tiles,
            index=np.arange(start, stop, dtype=np.int64),
            xy=table.xy[start:stop].copy() if table and table.xy is not None else None,
            cell_id=self._ids(start, stop) or [printable(name) for name in names],
            readable=readable,
            faults=faults,
        )

    def _ids(self, start: int, stop: int) -> list[str] | None:
        if self._table is None or self._table.cell_ids is None:
            return None
        ids: list[str] = self._table.cell_ids[start:stop].to_pylist()
        return ids

    def _names(self, start: int, stop: int) -> list[str]:
        """Of the members that hold, or should hold, the tiles."""
        if self._table is None or self._table.files is None:
            return [self._members.names[at] for at in self._positions[start:stop].tolist()]
        names: list[str] = self._table.files[start:stop].to_pylist()
        return names

    def _list_tiles(self) -> NDArray[np.int64]:
        """The member of each tile, in their order; -1 where there is none."""
        names = self._members.names
        images = np.array([is_image(name) for name in names], np.bool_)
        if not images.any():
            raise EmptyArchiveError(
                f"{self._slide.place} holds no image (PNG, JPEG, BMP, TIFF or WebP). Check that "
                "the export of its crops has ended, or leave it out."
            )
        for position in np.flatnonzero(~images):
            self._members.check_name(int(position))
        if self._table is None or self._table.files is None:
            return np.flatnonzero(images)
        positions = names.positions(self._table.files)
        images[positions[positions >= 0]] = False
        if images.any():
            unnamed = [names[int(position)] for position in np.flatnonzero(images)]
            raise BadFormatError(
                f"{self._slide.place} holds images that its cells table does not name: "
                f"{named(unnamed)}. Their cells would be left out: add them to the table, or "
                "take the images away."
            )
        return positions

    def _outcomes(
        self, positions: NDArray[np.int64], names: Sequence[str]
    ) -> tuple[list[NDArray[np.uint8] | TileFault], NDArray[np.uint8] | None]:
        """Each tile, or why there is none; and the room that they share, most often all."""
        contents = self._members.read_many(positions[positions >= 0])
        outcomes: list[NDArray[np.uint8] | TileFault] = []
        room = None
        for number, (position, name) in enumerate(zip(positions.tolist(), names, strict=True)):
            if position < 0:
                why = f"{name!r} is in the cells table only"
                outcomes.append(TileFault(Reason.MISSING_TILES, why))
                continue
            tile = self._tile(next(contents), name, None if room is None else room[number])
            if room is None and isinstance(tile, np.ndarray):
                room = _room_for(len(names), tile)
            outcomes.append(tile)
        return outcomes, room

    def _tile(
        self, data: bytes, name: str, into: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8] | TileFault:
        try:
            return decode(data, f"{name!r} in {self._slide.place}", into)
        except UndecodableError as error:
            return TileFault(Reason.UNREADABLE_TILES, f"{name!r} does not decode: {error}")


def _room_for(count: int, tile: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """An array for so many tiles like ``tile``; None where it would be a large one.

    Then the next tile may well be smaller, and most of it of no use.
    """
    return np.empty((count, *tile.shape), np.uint8) if count * tile.size <= _MOST_ROOM else None


def is_image(name: str) -> bool:
    """Whether a member is a tile, by its name."""
    *folders, last = name.split("/")
    if PurePath(last).suffix.lower() not in IMAGE_SUFFIXES:
        return False
    return not any(part.startswith(".") for part in (*folders, last)) and "__MACOSX" not in folders


def together(
    outcomes: Sequence[NDArray[np.uint8] | TileFault], room: NDArray[np.uint8] | None = None
) -> Tiles:
    """One array where the readable tiles share a shape, else a list; zeros for faults.

    Tiles that are rows of ``room`` stay where they are.
    """
    shapes = {outcome.shape for outcome in outcomes if isinstance(outcome, np.ndarray)}
    shape = next(iter(shapes), (1, 1, 3))
    if len(shapes) > 1:
        return [np.zeros(shape, np.uint8) if isinstance(o, TileFault) else o for o in outcomes]
    tiles = np.empty((len(outcomes), *shape), np.uint8) if room is None else room
    for tile, outcome in zip(tiles, outcomes, strict=True):
        if isinstance(outcome, TileFault):
            tile[...] = 0
        elif outcome.base is not room or room is None:
            tile[...] = outcome
    return tiles


def _read_table(members: Members, beside: Sequence[tuple[Place, FileStamp]]) -> CellsTable | None:
    inside = [name for name in members.names if PurePath(name).name in INSIDE_NAMES]
    found = inside + [place.name for place, _ in beside]
    if not found:
        return None
    if len(found) > 1:
        raise BadFormatError(
            f"{members.place} has {len(found)} cells tables: {named(found)}. Keep one of them."
        )
    if beside:
        (place, stamp), *_ = beside
        data = read_listed(place, stamp)
        return parse_table(data, place.name, str(place), of=TableKind.CROPS)
    (name,) = inside
    where = f"{name!r} in {members.place}"
    table = parse_table(read_named(members, name), name, where, of=TableKind.CROPS)
    # A table in a folder of a zip names its neighbours.
    folder = name.removesuffix(PurePath(name).name)
    if not folder:
        return table
    prefix = pa.scalar(folder, pa.large_string())
    joined = pc.binary_join_element_wise(prefix, table.files, pa.scalar("", pa.large_string()))
    return replace(table, files=joined)


def _is_member_of_folder(name: str) -> bool:
    return is_image(name) or name in INSIDE_NAMES


_folder_members = partial(FolderMembers, keep=_is_member_of_folder)


def _files_of_folder(slide: Opening) -> Iterable[FileStamp]:
    return slide.place.list_files(keep=_is_member_of_folder)


def _files_of_packed(slide: Opening) -> Iterable[FileStamp]:
    return (stamp_present(slide.place),)


_tables = partial(tables_of, kind=TableKind.CROPS)


def _is_image_folder(place: Place) -> bool:
    """Whether there are images in a folder, or a cells table alone.

    The latter is a slide whose images are missing, which must not go unnoticed. A table
    among folders is rather one about what they hold, and an image among TIFFs that are whole
    slides is rather a picture of one of them.
    """
    if not place.is_folder():
        return False
    children = place.children()
    if are_slides({child.name for child in children}):
        return False
    # By name first: a folder of thousands of slides is not to be looked at one by one for that.
    if any(is_image(child.name) and not child.is_folder() for child in children):
        return True
    table = any(child.name in INSIDE_NAMES and not child.is_folder() for child in children)
    return table and not any(child.is_folder() for child in children)


def _is_packed(*suffixes: str) -> Callable[[Place], bool]:
    return lambda place: place.name.lower().endswith(suffixes) and place.is_file()


FOLDER_OF_IMAGES: ArchiveFormat = ArchiveFormat(
    name="folder of images",
    takes=_is_image_folder,
    open=lambda slide: ImageArchive(slide, _folder_members, FOLDER_OF_IMAGES.stamps),
    files=_files_of_folder,
    tables=_tables,
    companions=partial(companions, kind=TableKind.CROPS),
    holds=_is_member_of_folder,
    has_slides_below=True,
)
ZIP_OF_IMAGES: ArchiveFormat = ArchiveFormat(
    name="zip of images",
    takes=_is_packed(".zip"),
    open=lambda slide: ImageArchive(slide, ZipMembers, ZIP_OF_IMAGES.stamps),
    files=_files_of_packed,
    tables=_tables,
    companions=partial(companions, kind=TableKind.CROPS),
)
TAR_OF_IMAGES: ArchiveFormat = ArchiveFormat(
    name="tar of images",
    # Compressed ones are taken as well, to be refused by name rather than passed over.
    takes=_is_packed(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"),
    open=lambda slide: ImageArchive(slide, TarMembers, TAR_OF_IMAGES.stamps),
    files=_files_of_packed,
    tables=_tables,
    companions=partial(companions, kind=TableKind.CROPS),
)
