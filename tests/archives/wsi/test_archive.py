"""Cells cropped out of whole slides: where, how large, from which level, in which order."""

from __future__ import annotations

import ctypes
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from numpy.typing import NDArray

from cvm_batch.archives.archive import TileBlock
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.archives.wsi.regions import Level, WholeSlide, best_levels, reading_order
from cvm_batch.errors import (
    BadFormatError,
    BadScaleError,
    EmptyArchiveError,
    OverLimitError,
    ReadError,
    Reason,
)
from tests.archives.making import write_table
from tests.archives.reading import describe, open_at, read_all
from tests.archives.wsi_making import empty_tile, pyramid, spoil_tile, write_tiff

#: A model of 20 um, which is 40 px at 0.5 um, that takes 40 px.
OPTIONS = OpenOptions(tile_um=20.0, least_px=40)


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """Of a slide of 320 x 256 px, every pixel another."""
    return np.random.default_rng(0).integers(0, 256, (256, 320, 3), dtype=np.uint8)


def slide_at(
    folder: Path, pixels: NDArray[np.uint8], points: Sequence[tuple[float, float]], **made: Any
) -> Path:
    path = write_tiff(folder / "slide.tif", pixels, **made)
    return with_table(path, {"x": [x for x, _ in points], "y": [y for _, y in points]})


def with_table(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    write_table(path.with_name("slide.cells.csv"), columns)
    return path


def reasons(block: TileBlock) -> dict[int, Reason]:
    return {position: fault.reason for position, fault in block.faults.items()}


class TestScale:
    def test_a_crop_has_the_model_s_field_around_the_nucleus(
        self, tmp_path: Path, pixels: NDArray[np.uint8]
    ) -> None:
        block = read_all(slide_at(tmp_path, pixels, [(100, 60)]), OPTIONS)
        np.testing.assert_array_equal(block.tiles, pixels[None, 40:80, 80:120])
        assert block.padded is not None
        assert not block.padded.any()

    def test_pixels_need_not_be_square(self, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
        path = slide_at(tmp_path, pixels, [(100, 60)], mpp=(0.5, 0.25))
        info = describe(path, OPTIONS)
        assert info.mpp == (0.5, 0.25)
        assert info.tile_px == (80, 40)
        np.testing.assert_array_equal(read_all(path, OPTIONS).tiles[0], pixels[20:100, 80:120])

    @pytest.mark.parametrize(
        ("least_px", "level"), [(0, 0), (80, 0), (41, 0), (40, 1), (21, 1), (20, 2), (1, 2)]
    )
    def test_level_is_the_coarsest_that_has_enough_pixels(
        self, tmp_path: Path, pixels: NDArray[np.uint8], least_px: int, level: int
    ) -> None:
        path = slide_at(tmp_path, pixels, [(100, 60)], mpp=(0.25, 0.25), levels=3)
        (tile,) = read_all(path, OpenOptions(tile_um=20.0, least_px=least_px)).tiles
        truth = list(pyramid(pixels, 3))[level]
        side, left, top = 80 >> level, 60 >> level, 20 >> level
        np.testing.assert_array_equal(tile, truth[top : top + side, left : left + side])

    def test_crops_that_no_level_has_enough_pixels_of_are_taken_from_the_finest(self) -> None:
        levels = [Level(d, (100, 100), (64, 64)) for d in (1.0, 4.0, 16.0)]
        sides = np.array([50.0, 100.0, 400.0, 399.0, 1600.0])
        assert best_levels(levels, sides, 100).tolist() == [0, 0, 1, 1, 2]

    def test_a_given_scale_goes_before_the_slide_s(
        self, tmp_path: Path, pixels: NDArray[np.uint8]
    ) -> None:
        path = slide_at(tmp_path, pixels, [(100, 60)], mpp=(0.5, 0.5))
        info = describe(path, OpenOptions(tile_um=20.0, mpp=(1.0, 0.4)))
        assert info.mpp == (1.0, 0.4)
        assert info.tile_px == (50, 20)

    @pytest.mark.parametrize(
        ("mpp", "says"), [(None, "does not say"), ((350.0, 350.0), "350"), ((0.5, 9e-4), "0.0009")]
    )
    def test_a_scale_that_is_missing_or_absurd_is_never_guessed(
        self,
        tmp_path: Path,
        pixels: NDArray[np.uint8],
        mpp: tuple[float, float] | None,
        says: str,
    ) -> None:
        path = slide_at(tmp_path, pixels, [(100, 60)], mpp=mpp)
        with pytest.raises(BadScaleError, match=rf"{says}.*--mpp"):
            open_at(path, OPTIONS)
        assert describe(path, OpenOptions(tile_um=20.0, mpp=(0.5, 0.5))).tile_px == (40, 40)

    def test_points_without_a_field_have_no_size(
        self, tmp_path: Path, pixels: NDArray[np.uint8]
    ) -> None:
        with pytest.raises(BadScaleError, match="tile_um"):
            open_at(slide_at(tmp_path, pixels, [(100, 60)]))

    def test_boxes_are_cropped_where_the_model_knows_no_scale(
        self, tmp_path: Path, pixels: NDArray[np.uint8]
    ) -> None:
        columns = {"x": [50, 100], "y": [60, 60], "width": [20, 30], "height": [10, 40]}
        path = with_table(write_tiff(tmp_path / "slide.tif", pixels, mpp=None), columns)
        info = describe(path)
        assert (info.mpp, info.tile_px) == (None, None)
        one, other = read_all(path).tiles
        np.testing.assert_array_equal(one, pixels[55:65, 40:60])
        np.testing.assert_array_equal(other, pixels[40:80, 85:115])

    def test_crops_beyond_what_a_tile_may_have_are_refused(
        self, tmp_path: Path, pixels: NDArray[np.uint8]
    ) -> None:
        path = slide_at(tmp_path, pixels, [(100, 60)])
        with pytest.raises(OverLimitError, match="pixels"):
            open_at(path, OpenOptions(tile_um=2000.0))


class TestBorder:
    CORNERS = ((5, 5), (310, 250), (100, 60), (0, 255))

    def test_what_lies_beyond_is_white_and_marked(
        self, tmp_path: Path, pixels: NDArray[np.uint8]
    ) -> None:
        framed = np.full((256 + 40, 320 + 40, 3), 255, np.uint8)
        framed[20:-20, 20:-20] = pixels
        block = read_all(slide_at(tmp_path, pixels, self.CORNERS), OPTIONS)
        assert block.readable.all()
        assert block.padded is not None
        for tile, padded, (x, y) in zip(
            block.tiles, block.padded, block.xy.astype(int).tolist(), strict=True
        ):
            np.testing.assert_array_equal(tile, framed[y : y + 40, x : x + 40])
            assert padded == ((x, y) != (100, 60))

    def test_of_a_coarser_level_as_well(self, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
        path = slide_at(tmp_path, pixels, [(0, 0)])
        block = read_all(path, OpenOptions(tile_um=40.0, least_px=40))
        assert block.padded is not None
        assert block.padded.all()
        (tile,) = block.tiles
        np.testing.assert_array_equal(tile[20:, 20:], pixels[:40:2, :40:2])
        assert (tile[:20] == 255).all()
        assert (tile[:, :20] == 255).all()

    @pytest.mark.parametrize("point", [(-1, 60), (320, 60), (100, 256), (100, -0.5)])
    def test_a_nucleus_out_there_is_another_slide_s(
        self, tmp_path: Path, pixels: NDArray[np.uint8], point: tuple[float, float]
    ) -> None:
        path = slide_at(tmp_path, pixels, [(100, 60), point])
        with pytest.raises(BadFormatError, match=r"1 cells .* data row 2"):
            open_at(path, OPTIONS)


class TestOrder:
    def test_cells_come_by_stored_tiles(self, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
        points = [(x, y) for x in range(30, 300, 30) for y in range(30, 230, 30)]
        np.random.default_rng(0).shuffle(points)
        path = slide_at(tmp_path, pixels, points)
        block = read_all(path, OPTIONS)
        stored = (block.xy.astype(int) - 20) // 64
        assert stored[:, [1, 0]].tolist() == sorted(stored[:, [1, 0]].tolist())
        assert block.cell_id is not None
        rows = [int(name) - 1 for name in block.cell_id]
        assert sorted(rows) == list(range(len(points)))
        np.testing.assert_array_equal(block.xy, np.array(points)[rows])
        for tile, (x, y) in zip(block.tiles, block.xy.astype(int).tolist(), strict=True):
            np.testing.assert_array_equal(tile, pixels[y - 20 : y + 20, x - 20 : x + 20])

    def test_each_stored_tile_of_a_wide_slide_is_decoded_about_once(self) -> None:
        """By a cache of 32 MiB; a row of this slide's stored tiles takes 64."""
        corner = np.random.default_rng(0).integers(0, 65_436, (50_000, 2))
        level = Level(1.0, (65_536, 65_536), (256, 256))
        needed = [tiles_under(x, y) for x, y in corner.tolist()]
        once = len({tile for tiles in needed for tile in tiles})
        assert decoded(needed, range(len(corner))) > 1.3 * once
        assert decoded(needed, reading_order(corner, level).tolist()) < 1.05 * once


def tiles_under(x: int, y: int, side: int = 100, tile: int = 256) -> list[tuple[int, int]]:
    columns, rows = ({low // tile, (low + side - 1) // tile} for low in (x, y))
    return [(column, row) for row in sorted(rows) for column in sorted(columns)]


def decoded(needed: Sequence[Sequence[tuple[int, int]]], order: Sequence[int]) -> int:
    """How many stored tiles are decoded with a cache for 128 of them, the oldest out first."""
    cache: OrderedDict[tuple[int, int], None] = OrderedDict()
    count = 0
    for cell in order:
        for tile in needed[cell]:
            if tile not in cache:
                count += 1
                if len(cache) == 128:
                    cache.popitem(last=False)
            cache[tile] = None
            cache.move_to_end(tile)
    return count


class TestDamage:
    POINTS = ((30, 30), (64, 30), (100, 30), (30, 100), (200, 200))
    """Of which the first two reach into the first stored tile."""

    @pytest.mark.parametrize("damage", [empty_tile, spoil_tile])
    def test_a_stored_tile_costs_the_cells_on_it(
        self, tmp_path: Path, pixels: NDArray[np.uint8], damage: Any
    ) -> None:
        path = slide_at(tmp_path, pixels, self.POINTS)
        damage(path, 0)
        with closing(open_at(path, OPTIONS)) as archive:
            for _ in range(2):
                block = archive.read(0, 5)
                assert reasons(block) == dict.fromkeys((0, 1), Reason.UNREADABLE_TILES)
                for position in np.flatnonzero(block.readable).tolist():
                    x, y = block.xy[position].astype(int)
                    np.testing.assert_array_equal(
                        block.tiles[position], pixels[y - 20 : y + 20, x - 20 : x + 20]
                    )

    def test_a_border_does_not_hide_it(self, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
        path = slide_at(tmp_path, pixels, [(5, 5)])
        empty_tile(path, 0)
        assert reasons(read_all(path, OPTIONS)) == {0: Reason.UNREADABLE_TILES}

    def many_points(self) -> list[tuple[float, float]]:
        """Twenty cells around each of the points, all in the same stored tile as that."""
        shifts = [(dx / 4, dy / 4) for dx in range(5) for dy in range(4)]
        return [(x + dx, y + dy) for dx, dy in shifts for x, y in self.POINTS]

    def test_a_thread_s_error_does_not_reach_the_others(
        self, tmp_path: Path, pixels: NDArray[np.uint8]
    ) -> None:
        path = slide_at(tmp_path, pixels, self.many_points())
        spoil_tile(path, 0)
        with closing(open_at(path, OPTIONS)) as archive, ThreadPoolExecutor(4) as pool:
            blocks = list(pool.map(lambda start: archive.read(start, start + 1), range(100)))
        for index, block in enumerate(blocks):
            assert block.readable.all() == (index >= 40)

    def test_a_closed_slide_says_so(self, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
        slide = WholeSlide(slide_at(tmp_path, pixels, [(100, 60)]))
        slide.crop(0, 0, 10, 10, 0)
        slide.close()
        with pytest.raises(ReadError, match="closed"):
            slide.crop(0, 0, 10, 10, 0)

    def test_closing_closes_every_handle(
        self, tmp_path: Path, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = slide_at(tmp_path, pixels, self.many_points())
        opened: list[openslide.OpenSlide] = []
        make = openslide.OpenSlide.__init__

        def remember(slide: openslide.OpenSlide, name: Path) -> None:
            make(slide, name)
            opened.append(slide)

        monkeypatch.setattr(openslide.OpenSlide, "__init__", remember)
        spoil_tile(path, 0)
        with closing(open_at(path, OPTIONS)) as archive, ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda start: archive.read(start, start + 5), range(0, 100, 5)))
        assert opened
        for slide in opened:
            with pytest.raises(ctypes.ArgumentError, match="closed"):
                slide.read_region((0, 0), 0, (1, 1))


class TestTable:
    def test_there_must_be_one(self, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
        path = write_tiff(tmp_path / "slide.tif", pixels)
        with pytest.raises(BadFormatError, match=r"no cells tables.*slide\.cells\.parquet"):
            open_at(path, OPTIONS)

    def test_and_no_two(self, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
        path = slide_at(tmp_path, pixels, [(100, 60)])
        write_table(tmp_path / "slide.cells.parquet", {"x": [1.0], "y": [1.0]})
        with pytest.raises(BadFormatError, match="2 cells tables"):
            open_at(path, OPTIONS)

    def test_without_a_cell_it_is_no_slide_without_abnormal_ones(
        self, tmp_path: Path, pixels: NDArray[np.uint8]
    ) -> None:
        with pytest.raises(EmptyArchiveError, match="no cell"):
            open_at(slide_at(tmp_path, pixels, []), OPTIONS)

    def test_one_from_elsewhere(self, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
        path = write_tiff(tmp_path / "slide.tif", pixels)
        table = write_table(tmp_path / "found.csv", {"cell_id": ["a"], "x": [100], "y": [60]})
        block = read_all(path, OPTIONS, cells_uri=str(table))
        assert block.cell_id == ["a"]
        np.testing.assert_array_equal(block.tiles[0], pixels[40:80, 80:120])

    @pytest.mark.parametrize("suffix", [".geojson", ".cells.geojson"])
    def test_points_of_qupath(self, tmp_path: Path, pixels: NDArray[np.uint8], suffix: str) -> None:
        path = write_tiff(tmp_path / "slide.tif", pixels)
        points = [feature({"type": "Point", "coordinates": [x, 60.0]}) for x in (100, 150)]
        (tmp_path / f"slide{suffix}").write_text(json.dumps(points))
        block = read_all(path, OPTIONS)
        np.testing.assert_array_equal(block.xy, [[100, 60], [150, 60]])
        np.testing.assert_array_equal(block.tiles[1], pixels[40:80, 130:170])

    def test_outlines_of_qupath_are_boxes(self, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
        path = write_tiff(tmp_path / "slide.tif", pixels)
        outline = [[100, 50], [120, 60], [110, 80], [100, 50]]
        cell = feature({"type": "Polygon", "coordinates": [outline]})
        (tmp_path / "slide.geojson").write_text(json.dumps(cell))
        block = read_all(path)
        np.testing.assert_array_equal(block.xy, [[110, 65]])
        np.testing.assert_array_equal(block.tiles[0], pixels[50:80, 100:120])
        # The model's field goes before the outline's.
        np.testing.assert_array_equal(read_all(path, OPTIONS).tiles[0], pixels[45:85, 90:130])


def feature(geometry: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "detection"}}
