"""Slides as zarr v2 or v3: a directory, or the same packed as ``.zarr.zip``.

    tiles     uint8 [N, h, w, 3] or [N, 3, h, w]; or bytes [N], RGB pixels, where sizes vary
    size      whole numbers [N, 2], height and width, where sizes vary
    xy        optional, numbers [N, 2]: nucleus centres in level-0 pixels
    cell_id   optional, text or whole numbers [N]
    readable  optional, truth values [N]: whether a tile could be read when it was packed
    padded    optional, truth values [N]: whether a tile reaches beyond the slide's border

and the optional attribute ``mpp`` of the group. A chunk of tiles that is not there marks
its tiles as missing; one that does not decode fails the slide (see `Chunks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import Lock
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.archive import (
    ArchiveFormat,
    ExpectedFrom,
    Integrity,
    SlideInfo,
    TileBlock,
    TileFault,
    check_range,
)
from cvm_batch.archives.companions import companions, stamp_present
from cvm_batch.archives.members.base import MemberArchive, Members
from cvm_batch.archives.members.packed import ZipMembers
from cvm_batch.archives.opening import Opening
from cvm_batch.archives.places.files import FileStamp, Listing, identity
from cvm_batch.archives.places.place import Place
from cvm_batch.archives.scale import check_tile_size
from cvm_batch.archives.zarr.chunks import Chunks, EqualTiles, UnequalTiles, integrity_of
from cvm_batch.archives.zarr.columns import Columns, typical_size
from cvm_batch.archives.zarr.layout import check_names, read_layout
from cvm_batch.archives.zarr.packed import PackedMembers, folder_members, packed_digest
from cvm_batch.errors import BadFormatError, Reason
from cvm_batch.tiles import Tiles

_Item = TypeVar("_Item", bound=np.generic)


class ZarrArchive(MemberArchive):
    """The tiles of one slide in zarr. Chunks are decoded by the thread that reads."""

    def __init__(
        self,
        slide: Opening,
        open_members: Callable[[Place], Members],
        list_files: Callable[[Opening], Iterable[FileStamp]],
    ) -> None:
        """Raises SlideError."""
        super().__init__(slide, open_members, list_files)
        self._columns: Columns | None = None
        self._columns_lock = Lock()
        try:
            self._layout = read_layout(self._members, slide.options.arrays)
            self._chunks = Chunks(self._members, self._layout.tiles)
            check_names(self._members, self._layout.tiles, self._chunks.files)
            self.info = self._describe()
        except BaseException:
            self._members.close()
            raise

    def read(self, start: int, stop: int) -> TileBlock:
        check_range(start, stop, self._layout.count)
        columns = self._read_columns()
        tiles, lost = self._read_tiles(start, stop, columns.sizes)
        faults = _faults(_rows(columns.readable, start, stop), lost)
        readable = np.ones(stop - start, np.bool_)
        readable[list(faults)] = False
        return TileBlock(
            tiles=tiles,
            index=np.arange(start, stop, dtype=np.int64),
            xy=_rows(columns.xy, start, stop),
            cell_id=columns.ids(start, stop),
            readable=readable,
            faults=faults,
            padded=_rows(columns.padded, start, stop),
        )

    def _read_tiles(
        self, start: int, stop: int, sizes: NDArray[np.int64] | None
    ) -> tuple[Tiles, list[tuple[slice, str]]]:
        """Tiles [start, stop); and which of those are missing, for want of what."""
        if self._layout.axes is not None:
            return EqualTiles(self._chunks, self._layout.axes).read(start, stop)
        assert sizes is not None  # as the layout has it
        return UnequalTiles(self._chunks).read(start, stop, sizes)

    def _read_columns(self) -> Columns:
        """All coordinates, names and so on, read once, when the first tiles are."""
        with self._columns_lock:
            if self._columns is None:
                self._columns = Columns.read(self._members, self._layout)
            return self._columns

    def _describe(self) -> SlideInfo:
        """What the members say of the slide. Raises SlideError."""
        layout, options = self._layout, self._slide.options
        mpp = options.mpp or layout.mpp
        if mpp is not None and options.tile_um is not None:
            shown = layout.tile_px or typical_size(self._members, layout)
            if shown is not None:
                check_tile_size(shown, mpp, options, self._slide.place)
        packed = self._packed
        if packed is not None and packed.tiles != layout.count:
            raise BadFormatError(
                f"{self._slide.place} has {layout.count} tiles, but its manifest tells of "
                f"{packed.tiles}. Pack the slide anew."
            )
        return SlideInfo(
            identity=(packed and packed.digest) or identity(self._members.opened),
            tiles=layout.count,
            expected_from=ExpectedFrom.PACK_MANIFEST if packed else ExpectedFrom.LISTING,
            tile_px=layout.tile_px,
            mpp=mpp,
            missing=self._chunks.count_missing(),
            integrity=self._integrity(),
            chunk_tiles=layout.tiles.chunks[0],
        )

    def _integrity(self) -> Integrity:
        """Of all arrays that decide what a tile is."""
        deciding = (self._layout.tiles, self._layout.size, self._layout.readable)
        found = {integrity_of(self._members, spec) for spec in deciding if spec is not None}
        return Integrity.VERIFIED if found == {Integrity.VERIFIED} else Integrity.UNVERIFIED

    def _identity_now(self) -> str:
        now, opened = self._list_files(self._slide), self._members.opened
        if isinstance(now, Listing) and isinstance(opened, Listing) and now.same_as(opened):
            return self.info.identity
        own = packed_digest(self._slide) if self._packed is not None else None
        return own or identity(now)

    @property
    def _packed(self) -> PackedMembers | None:
        return self._members if isinstance(self._members, PackedMembers) else None


def _rows(column: NDArray[_Item] | None, start: int, stop: int) -> NDArray[_Item] | None:
    """A copy, as what is handed out can be written to."""
    return None if column is None else column[start:stop].copy()


def _faults(
    readable: NDArray[np.bool_] | None, lost: Sequence[tuple[slice, str]]
) -> dict[int, TileFault]:
    """What is wrong with the tiles of a block, by position."""
    faults: dict[int, TileFault] = {}
    if readable is not None:
        unread = TileFault(
            Reason.UNREADABLE_TILES, "it could not be read when the slide was packed"
        )
        faults |= dict.fromkeys(np.flatnonzero(~readable).tolist(), unread)
    for span, lacking in lost:
        fault = TileFault(Reason.MISSING_TILES, f"{lacking} is not there")
        faults |= dict.fromkeys(range(span.start, span.stop), fault)
    return faults


def _files_of_folder(slide: Opening) -> Iterable[FileStamp]:
    return slide.place.list_files(deep=True)


def _files_of_zip(slide: Opening) -> Iterable[FileStamp]:
    return (stamp_present(slide.place),)


def _is_zarr_folder(place: Place) -> bool:
    if not place.is_folder():
        return False
    metadata = (place.child(name) for name in ("zarr.json", ".zgroup", ".zarray"))
    return place.name.lower().endswith(".zarr") or any(file.is_file() for file in metadata)


ZARR_FOLDER = ArchiveFormat(
    name="zarr",
    takes=_is_zarr_folder,
    open=lambda slide: ZarrArchive(slide, folder_members, _files_of_folder),
    files=_files_of_folder,
    digest=packed_digest,
    companions=partial(companions, kind=None),
)
ZARR_ZIP = ArchiveFormat(
    name="zarr.zip",
    takes=lambda place: place.name.lower().endswith(".zarr.zip") and place.is_file(),
    open=lambda slide: ZarrArchive(slide, ZipMembers, _files_of_zip),
    files=_files_of_zip,
    companions=partial(companions, kind=None),
)
