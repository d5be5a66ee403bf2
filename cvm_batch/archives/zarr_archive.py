"""Slides as zarr v2 or v3: a directory, or the same packed as ``.zarr.zip``.

    tiles    uint8 [N, h, w, 3], in chunks of whole tiles
    xy       optional, numbers [N, 2]: nucleus centres in level-0 pixels
    cell_id  optional, text or whole numbers [N]

and the optional attribute ``mpp`` of the group. A chunk of tiles that is not there marks
its tiles as missing; one that does not decode fails the slide (see `read_chunk`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Lock
from typing import NamedTuple

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
from cvm_batch.archives.files import FileStamp, identity, stamp_present
from cvm_batch.archives.members import FolderMembers, MemberArchive, Members
from cvm_batch.archives.zarr_chunks import integrity_of, read_chunk, read_whole
from cvm_batch.archives.zarr_layout import read_layout
from cvm_batch.archives.zarr_metadata import ArraySpec
from cvm_batch.archives.zip_members import ZipMembers
from cvm_batch.errors import BadFormatError, Reason


class _Cells(NamedTuple):
    xy: NDArray[np.float64] | None
    cell_id: list[str] | None


class ZarrArchive(MemberArchive):
    """The tiles of one slide in zarr. Chunks are decoded by the thread that reads."""

    def __init__(
        self,
        path: Path,
        open_members: Callable[[Path], Members],
        list_files: Callable[[Path], tuple[FileStamp, ...]],
    ) -> None:
        """Raises SlideError."""
        super().__init__(path, open_members, list_files)
        try:
            self._layout = read_layout(self._members)
        except BaseException:
            self._members.close()
            raise
        self._tiles = self._layout.tiles
        self._cells: _Cells | None = None
        self._cells_lock = Lock()
        self._info = SlideInfo(
            identity=identity(self._members.opened),
            tiles=self._tiles.shape[0],
            expected_from=ExpectedFrom.LISTING,
            tile_px=(self._tiles.shape[1], self._tiles.shape[2]),
            mpp=self._layout.mpp,
            integrity=integrity_of(self._members, self._tiles),
            chunk_tiles=self._tiles.chunks[0],
        )

    def read(self, start: int, stop: int) -> TileBlock:
        check_range(start, stop, self._info.tiles)
        pieces: list[NDArray[np.uint8]] = []
        readable = np.ones(stop - start, np.bool_)
        faults: dict[int, TileFault] = {}
        for key, span, within in self._spans(start, stop):
            if key in self._members:
                pieces.append(read_chunk(self._members, self._tiles, key)[within])
                continue
            pieces.append(np.zeros((span.stop - span.start, *self._tiles.shape[1:]), np.uint8))
            readable[span] = False
            fault = TileFault(Reason.MISSING_TILES, f"the chunk {key!r} is not there")
            faults |= dict.fromkeys(range(span.start, span.stop), fault)
        cells = self._read_cells()
        tiles = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return TileBlock(
            # Without compression, a single piece is a read-only view of the bytes read.
            tiles=np.require(tiles, requirements="W"),
            index=np.arange(start, stop, dtype=np.int64),
            xy=None if cells.xy is None else cells.xy[start:stop].copy(),
            cell_id=None if cells.cell_id is None else cells.cell_id[start:stop],
            readable=readable,
            faults=faults,
        )

    def _spans(self, start: int, stop: int) -> Iterator[tuple[str, slice, slice]]:
        """The chunks under [start, stop): key, positions in the block, tiles in the chunk."""
        size = self._tiles.chunks[0]
        for chunk in range(start // size, -(-stop // size)):
            first, last = max(start, chunk * size), min(stop, (chunk + 1) * size)
            key = self._tiles.key((chunk, 0, 0, 0))
            base = chunk * size
            yield key, slice(first - start, last - start), slice(first - base, last - base)

    def _read_cells(self) -> _Cells:
        """All coordinates and names, read once, when the first tiles are."""
        with self._cells_lock:
            if self._cells is None:
                self._cells = _Cells(
                    xy=_coordinates(self._members, self._layout.xy),
                    cell_id=_ids(self._members, self._layout.cell_id),
                )
            return self._cells


def _coordinates(members: Members, spec: ArraySpec | None) -> NDArray[np.float64] | None:
    if spec is None:
        return None
    xy = read_whole(members, spec).astype(np.float64)
    if not np.isfinite(xy).all():
        raise BadFormatError(
            f"'xy' in {members.path} has values that are not finite. Correct them, or leave xy out."
        )
    return xy


def _ids(members: Members, spec: ArraySpec | None) -> list[str] | None:
    return None if spec is None else [str(value) for value in read_whole(members, spec).tolist()]


_folder_members = partial(FolderMembers, deep=True)


def _files_of_folder(path: Path) -> tuple[FileStamp, ...]:
    return _folder_members(path).opened


def _files_of_zip(path: Path) -> tuple[FileStamp, ...]:
    return (stamp_present(path),)


def _is_zarr_folder(path: Path) -> bool:
    if not path.is_dir():
        return False
    metadata = (path / name for name in ("zarr.json", ".zgroup", ".zarray"))
    return path.suffix.lower() == ".zarr" or any(file.is_file() for file in metadata)


ZARR_FOLDER = ArchiveFormat(
    name="zarr",
    takes=_is_zarr_folder,
    open=lambda path: ZarrArchive(path, _folder_members, _files_of_folder),
    files=_files_of_folder,
)
ZARR_ZIP = ArchiveFormat(
    name="zarr.zip",
    takes=lambda path: path.name.lower().endswith(".zarr.zip") and path.is_file(),
    open=lambda path: ZarrArchive(path, ZipMembers, _files_of_zip),
    files=_files_of_zip,
)
