"""Slides as crops: a folder or a ``.zip`` of PNG, JPEG, BMP, TIFF or WebP images.

Tiles are in the order of the cells table where there is one, else of their names. Of a
folder, the files directly in it are tiles; in a zip, also those in its sub-folders.
Hidden files and what macOS adds to zips (``__MACOSX``) are no tiles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.archive import (
    ArchiveFormat,
    ExpectedFrom,
    SlideInfo,
    TileBlock,
    TileFault,
    check_range,
)
from cvm_batch.archives.cells_table import (
    INSIDE_NAMES,
    CellsTable,
    named,
    parse_table,
    tables_beside,
)
from cvm_batch.archives.decoding import UndecodableError, decode
from cvm_batch.archives.files import (
    FileStamp,
    identity,
    is_folder,
    printable,
    read_file,
    stamp_if_present,
    stamp_present,
)
from cvm_batch.archives.members import FolderMembers, MemberArchive, Members
from cvm_batch.archives.zip_members import ZipMembers
from cvm_batch.errors import BadFormatError, EmptyArchiveError, Reason
from cvm_batch.tiles import Tiles

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp")
)


class ImageArchive(MemberArchive):
    """The crops of one slide. Pixels are decoded when they are read, nothing is kept."""

    def __init__(
        self,
        path: Path,
        open_members: Callable[[Path], Members],
        list_files: Callable[[Path], tuple[FileStamp, ...]],
    ) -> None:
        """Raises SlideError."""
        super().__init__(path, open_members, list_files)
        try:
            beside = _stamps_beside(path)
            self._table = _read_table(self._members, beside)
            self._tiles = self._list_tiles()
        except BaseException:
            self._members.close()
            raise
        self._info = SlideInfo(
            identity=identity((*self._members.opened, *beside)),
            tiles=len(self._tiles),
            expected_from=ExpectedFrom.CELLS_TABLE if self._table else ExpectedFrom.LISTING,
            # To know better would take a look into every file, which planning cannot afford.
            tile_px=None,
            integrity=self._members.integrity,
        )

    def read(self, start: int, stop: int) -> TileBlock:
        check_range(start, stop, len(self._tiles))
        outcomes = [self._tile(name) for name in self._tiles[start:stop]]
        faults = {i: tile for i, tile in enumerate(outcomes) if isinstance(tile, TileFault)}
        table = self._table
        ids = table.cell_ids if table and table.cell_ids else self._tiles
        return TileBlock(
            tiles=_together(outcomes),
            index=np.arange(start, stop, dtype=np.int64),
            xy=table.xy[start:stop].copy() if table and table.xy is not None else None,
            cell_id=[printable(name) for name in ids[start:stop]],
            readable=np.array([i not in faults for i in range(stop - start)]),
            faults=faults,
        )

    def _list_tiles(self) -> Sequence[str]:
        """Names of the tiles in their order."""
        images = [name for name in self._members.names if is_image(name)]
        if not images:
            raise EmptyArchiveError(
                f"{self._path} holds no image (PNG, JPEG, BMP, TIFF or WebP). Check that the "
                "export of its crops has ended, or leave it out."
            )
        listed = set(images)
        for name in self._members.names:
            if name not in listed:
                self._members.check_name(name)
        if self._table is None:
            return images
        if unnamed := sorted(listed.difference(self._table.files)):
            raise BadFormatError(
                f"{self._path} holds images that its cells table does not name: "
                f"{named(unnamed)}. Their cells would be left out: add them to the table, or "
                "take the images away."
            )
        return self._table.files

    def _tile(self, name: str) -> NDArray[np.uint8] | TileFault:
        if name not in self._members:
            return TileFault(Reason.MISSING_TILES, f"{name!r} is in the cells table only")
        data = self._members.read(name)
        try:
            return decode(data, f"{name!r} in {self._path}")
        except UndecodableError as error:
            return TileFault(Reason.UNREADABLE_TILES, f"{name!r} does not decode: {error}")


def is_image(name: str) -> bool:
    """Whether a member is a tile, by its name."""
    *folders, last = name.split("/")
    hidden = any(part.startswith(".") for part in (*folders, last)) or "__MACOSX" in folders
    return not hidden and PurePath(last).suffix.lower() in IMAGE_SUFFIXES


def _read_table(members: Members, beside: Sequence[FileStamp]) -> CellsTable | None:
    inside = [name for name in members.names if PurePath(name).name in INSIDE_NAMES]
    found = inside + [stamp.name for stamp in beside]
    if not found:
        return None
    if len(found) > 1:
        raise BadFormatError(
            f"{members.path} has {len(found)} cells tables: {named(found)}. Keep one of them."
        )
    if not inside:
        path = members.path.with_name(found[0])
        return parse_table(read_file(path, beside[0]), path.name, str(path))
    table = parse_table(members.read(found[0]), found[0], f"{found[0]!r} in {members.path}")
    # A table in a folder of a zip names its neighbours.
    folder = found[0].removesuffix(PurePath(found[0]).name)
    return replace(table, files=[folder + file for file in table.files])


def _stamps_beside(path: Path) -> tuple[FileStamp, ...]:
    stamps = map(stamp_if_present, tables_beside(path))
    return tuple(stamp for stamp in stamps if stamp is not None)


def _together(outcomes: Sequence[NDArray[np.uint8] | TileFault]) -> Tiles:
    """One array where the readable tiles share a shape, else a list; zeros for faults."""
    shapes = {outcome.shape for outcome in outcomes if isinstance(outcome, np.ndarray)}
    shape = next(iter(shapes), (1, 1, 3))
    tiles = [
        np.zeros(shape, np.uint8) if isinstance(outcome, TileFault) else outcome
        for outcome in outcomes
    ]
    return tiles if len(shapes) > 1 else np.stack(tiles)


def _is_member_of_folder(name: str) -> bool:
    return is_image(name) or name in INSIDE_NAMES


_folder_members = partial(FolderMembers, keep=_is_member_of_folder)


def _files_of_folder(path: Path) -> tuple[FileStamp, ...]:
    return (*_folder_members(path).opened, *_stamps_beside(path))


def _files_of_zip(path: Path) -> tuple[FileStamp, ...]:
    return (stamp_present(path), *_stamps_beside(path))


def _is_image_folder(path: Path) -> bool:
    """Whether there are images in a folder, or a cells table alone.

    The latter is a slide whose images are missing, which must not go unnoticed. A table
    among folders is rather one about what they hold.
    """
    if not path.is_dir():
        return False
    table = folders = False
    with os.scandir(path) as entries:
        for entry in entries:
            if is_folder(entry):
                folders = True
            elif is_image(entry.name):
                return True
            else:
                table = table or entry.name in INSIDE_NAMES
    return table and not folders


FOLDER_OF_IMAGES = ArchiveFormat(
    name="folder of images",
    takes=_is_image_folder,
    open=lambda path: ImageArchive(path, _folder_members, _files_of_folder),
    files=_files_of_folder,
    companions=tables_beside,
    holds=_is_member_of_folder,
    has_slides_below=True,
)
ZIP_OF_IMAGES = ArchiveFormat(
    name="zip of images",
    takes=lambda path: path.suffix.lower() == ".zip" and path.is_file(),
    open=lambda path: ImageArchive(path, ZipMembers, _files_of_zip),
    files=_files_of_zip,
    companions=tables_beside,
)
