"""Whole-slide images that OpenSlide reads, and a cells table that says where the cells lie.

Each cell is cropped around its nucleus, as large as the tiles that the model was trained
with (the bundle's ``tile_um``) by the slide's own scale; where the bundle names no size,
as large as the boxes of the table. Tiles are in the order in which the slide stores its
pixels, so that each stored piece is decoded about once. A crop that reaches beyond the
slide's border is filled up there and marked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
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
from cvm_batch.archives.companions import (
    TIFF_SUFFIXES,
    WSI_SUFFIXES,
    companions,
    stamp_present,
    table_names,
    tables_of,
)
from cvm_batch.archives.images.archive import together
from cvm_batch.archives.limits import MAX_TILE_PIXELS
from cvm_batch.archives.members.base import read_listed
from cvm_batch.archives.opening import Opening
from cvm_batch.archives.places.disk import DiskPlace
from cvm_batch.archives.places.files import FileStamp, changed, identity
from cvm_batch.archives.places.place import Place
from cvm_batch.archives.tables.cells import CellsTable, TableKind, named, parse_table
from cvm_batch.archives.wsi.files import is_dicom, main_file
from cvm_batch.archives.wsi.regions import (
    UnreadableRegionError,
    WholeSlide,
    best_levels,
    reading_order,
)
from cvm_batch.errors import (
    BadFormatError,
    BadScaleError,
    EmptyArchiveError,
    OverLimitError,
    Reason,
)


class WholeSlideArchive:
    """The cells of one whole slide. Pixels are decoded when they are read, nothing is kept."""

    def __init__(self, slide: Opening) -> None:
        """Raises SlideError."""
        self._slide = slide
        stamps = list(WHOLE_SLIDE.stamps(slide))
        table = _read_table(slide)
        with ExitStack() as undo:
            self._place = DiskPlace.of(undo.enter_context(_on_disk(slide.place)))
            self._opened = list(_image_files(self._place))
            self._image = WholeSlide(main_file(self._place.path))
            undo.callback(self._image.close)
            _check_inside(table, self._image, slide.place)
            mpp = slide.options.mpp or self._image.mpp
            extent = _extent(slide, table, self._image, mpp)
            self._crops = _Crops.plan(slide, table, self._image, extent)
            self._held = undo.pop_all()
        self.info = SlideInfo(
            identity=identity(stamps),
            tiles=len(table),
            expected_from=ExpectedFrom.CELLS_TABLE,
            tile_px=self._crops.tile_px,
            mpp=mpp,
        )

    def describe(self) -> SlideInfo:
        if identity(WHOLE_SLIDE.stamps(self._slide)) == self.info.identity:
            return self.info
        with closing(WholeSlideArchive(self._slide)) as anew:
            return anew.info

    def read(self, start: int, stop: int) -> TileBlock:
        check_range(start, stop, self.info.tiles)
        crops = self._crops
        padded = np.zeros(stop - start, np.bool_)
        outcomes: list[NDArray[np.uint8] | TileFault] = []
        for position, index in enumerate(range(start, stop)):
            (x, y), (width, height) = crops.corner[index].tolist(), crops.size[index].tolist()
            try:
                crop = self._image.crop(x, y, width, height, int(crops.level[index]))
            except UnreadableRegionError as error:
                detail = f"the crop at {x}, {y}: {error}"
                outcomes.append(TileFault(Reason.UNREADABLE_TILES, detail))
                continue
            outcomes.append(crop.pixels)
            padded[position] = crop.padded
        self._check_unchanged()
        faults = {i: tile for i, tile in enumerate(outcomes) if isinstance(tile, TileFault)}
        return TileBlock(
            tiles=together(outcomes),
            index=np.arange(start, stop, dtype=np.int64),
            xy=crops.xy[start:stop].copy(),
            cell_id=crops.ids(start, stop),
            readable=np.array([i not in faults for i in range(stop - start)]),
            faults=faults,
            padded=padded,
        )

    def close(self) -> None:
        self._held.close()

    def _check_unchanged(self) -> None:
        """OpenSlide opens the files by their names, again and again."""
        if list(_image_files(self._place)) != self._opened:
            raise changed(self._slide.place)


def _on_disk(place: Place) -> AbstractContextManager[Path]:
    if place.marks is None and (place.is_folder() or _image_folder(place)):
        raise BadFormatError(
            f"{place} is a slide of several files on object storage, of which OpenSlide can read "
            "none there. Copy it to a disk, or pack it."
        )
    return place.on_disk()


def _read_table(slide: Opening) -> CellsTable:
    found = tables_of(slide, TableKind.SLIDE)
    if len(found) != 1:
        raise BadFormatError(
            f"{slide.place} has {len(found) or 'no'} cells tables beside it"
            f"{': ' + named(place.name for place, _ in found) if found else ''}. Where its cells "
            f"lie must stand in one, as {table_names(slide.place, TableKind.SLIDE)[0]} or the "
            "GeoJSON that QuPath exports."
        )
    ((place, stamp),) = found
    table = parse_table(read_listed(place, stamp), place.name, str(place), of=TableKind.SLIDE)
    if not len(table):
        raise EmptyArchiveError(
            f"{place} lists no cell. Check that the detection of cells has ended, or leave the "
            "slide out."
        )
    return table


def _check_inside(table: CellsTable, image: WholeSlide, place: Place) -> None:
    """Refuse coordinates that are not those of this slide's level 0."""
    assert table.xy is not None
    outside = ((table.xy < 0) | (table.xy >= image.size)).any(axis=1)
    if outside.any():
        row = int(np.argmax(outside))
        x, y = table.xy[row].tolist()
        raise BadFormatError(
            f"{place} is {image.size[0]} x {image.size[1]} pixels, but {int(outside.sum())} cells "
            f"of its table lie outside, the first in data row {row + 1} at {x:g}, {y:g}. Give "
            "coordinates in level-0 pixels, of the right slide."
        )


def _extent(
    slide: Opening, table: CellsTable, image: WholeSlide, mpp: tuple[float, float] | None
) -> NDArray[np.float64]:
    """Width and height of each cell's crop in level-0 pixels, [n, 2]."""
    if slide.options.tile_um is None:
        if table.extent is None:
            raise BadScaleError(
                f"How large the crops of {slide.place} must be is not known: no tile_um is given "
                "(by the model's bundle, or by --tile-um where no model is asked), and the cells "
                "table gives points, not boxes. Use a bundle trained at a known scale, or give "
                "width and height of each cell."
            )
        return table.extent
    if mpp is None:
        raise BadScaleError(
            f"{slide.place} {image.mpp_problem}, so that crops of {slide.options.tile_um:g} um "
            "cannot be cut. Give --mpp if you know the scale for certain."
        )
    side = slide.options.tile_um
    return np.broadcast_to([side / mpp[0], side / mpp[1]], (len(table), 2))


class _Crops:
    """What to read for each tile, in the order of tiles."""

    def __init__(
        self,
        table: CellsTable,
        order: NDArray[np.int64],
        corner: NDArray[np.int64],
        size: NDArray[np.int64],
        level: NDArray[np.int64],
    ) -> None:
        assert table.xy is not None
        self.xy = table.xy[order]
        self.corner = corner[order]
        """Upper left, level-0 pixels [n, 2]."""
        self.size = size[order]
        """Width and height in pixels of the level, [n, 2]."""
        self.level = level[order]
        self._order = order
        self._ids = None if table.cell_ids is None else table.cell_ids.take(order)

    @classmethod
    def plan(
        cls, slide: Opening, table: CellsTable, image: WholeSlide, extent: NDArray[np.float64]
    ) -> _Crops:
        """Raises OverLimitError."""
        assert table.xy is not None
        level = best_levels(image.levels, extent.min(axis=1), slide.options.least_px)
        downsample = np.array([level.downsample for level in image.levels])[level]
        size = np.maximum(1, np.rint(extent / downsample[:, None])).astype(np.int64)
        if (size.prod(axis=1) > MAX_TILE_PIXELS).any():
            raise OverLimitError(
                f"Crops of {slide.place} would have up to {size.max(axis=0).tolist()} pixels, more "
                f"than the {MAX_TILE_PIXELS} of a tile. Check the scale and the boxes."
            )
        corner = np.rint(table.xy - extent / 2).astype(np.int64)
        # Level by level: their stored tiles have nothing in common.
        order = np.concatenate(
            [
                members[reading_order(corner[members], image.levels[at])]
                for at in np.unique(level).tolist()
                for members in [np.flatnonzero(level == at)]
            ]
        )
        return cls(table, order, corner, size, level)

    @property
    def tile_px(self) -> tuple[int, int] | None:
        """Height and width of every tile, or None where they vary."""
        width, height = self.size[0].tolist()
        return (height, width) if (self.size == self.size[0]).all() else None

    def ids(self, start: int, stop: int) -> list[str]:
        """The table's own, or else the number of the data row, from 1 on."""
        if self._ids is None:
            return [str(row + 1) for row in self._order[start:stop].tolist()]
        ids: list[str] = self._ids[start:stop].to_pylist()
        return ids


def _suffix(place: Place) -> str:
    return PurePath(place.name).suffix.lower()


def _image_folder(place: Place) -> Place | None:
    """The folder beside a MIRAX file that holds its pixels."""
    return place.sibling(PurePath(place.name).stem) if _suffix(place) == ".mrxs" else None


def _image_files(place: Place) -> Iterator[FileStamp]:
    """Those that OpenSlide may take pixels from. Raises SlideError."""
    folder = _image_folder(place)
    if place.is_folder():
        yield from place.list_files(keep=is_dicom)
    elif is_dicom(stamp_present(place).name):
        # It looks for further levels in all of its kind that lie in the same folder.
        yield from place.sibling("").list_files(keep=is_dicom)
    else:
        yield stamp_present(place)
    if folder is not None and folder.is_folder():
        for stamp in folder.list_files(deep=True):
            yield replace(stamp, name=f"{folder.name}/{stamp.name}")


def _takes(place: Place) -> bool:
    if place.is_folder():
        return any(is_dicom(child.name) for child in place.children())
    # A TIFF by itself is a slide, if only to say that its cells table is missing: crops
    # are taken by their folders.
    return _suffix(place) in (*WSI_SUFFIXES, *TIFF_SUFFIXES) and place.is_file()


def _companions(place: Place) -> Sequence[Place]:
    folder = _image_folder(place)
    return [*companions(place, TableKind.SLIDE), *([folder] if folder else ())]


WHOLE_SLIDE = ArchiveFormat(
    name="whole-slide image",
    takes=_takes,
    open=WholeSlideArchive,
    files=lambda slide: _image_files(slide.place),
    tables=partial(tables_of, kind=TableKind.SLIDE),
    companions=_companions,
    holds=is_dicom,
    # Of DICOM's: other slides, which nobody would miss, may lie beside its files.
    has_slides_below=True,
)
