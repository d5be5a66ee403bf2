"""What zarr slides say of their tiles beside the pixels."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from cvm_batch.archives.archive import Integrity
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.errors import BadFormatError, BadScaleError, Reason
from tests.archives.contract import assert_block
from tests.archives.making import Cells, cells, write_zarr
from tests.archives.reading import describe, edit_json, read_all

COUNT, CHUNK = 23, 7


class TestCells:
    @pytest.mark.parametrize("zarr_format", [2, 3])
    @pytest.mark.parametrize(
        ("cell_id", "read"),
        [
            (["", "ä", "細胞", "x" * 300], ["", "ä", "細胞", "x" * 300]),
            (np.array([3, 0, 7, 2**40]), ["3", "0", "7", str(2**40)]),
        ],
    )
    def test_ids_are_text_or_whole_numbers(
        self, tmp_path: Path, zarr_format: int, cell_id: Any, read: list[str]
    ) -> None:
        path = write_zarr(
            tmp_path / "a.zarr", cells(4).tiles, cell_id=cell_id, zarr_format=zarr_format
        )
        assert read_all(path).cell_id == read

    @pytest.mark.filterwarnings("ignore:The data type")
    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_fixed_length_text_is_read(self, tmp_path: Path, zarr_format: int) -> None:
        path = write_zarr(tmp_path / "a.zarr", cells(3).tiles, zarr_format=zarr_format)
        group = zarr.open_group(path, mode="a")
        group.create_array("cell_id", shape=(3,), chunks=(2,), dtype="U5")[...] = ["a", "ä", "ccc"]
        assert read_all(path).cell_id == ["a", "ä", "ccc"]

    @pytest.mark.parametrize("dtype", ["f4", "f8", ">f8", "i4", "u2"])
    def test_coordinates_of_any_number_type(self, tmp_path: Path, dtype: str) -> None:
        xy = np.arange(8).reshape(4, 2)
        for zarr_format in (2, 3):
            path = tmp_path / f"a{zarr_format}.zarr"
            write_zarr(path, cells(4).tiles, xy=xy.astype(dtype), zarr_format=zarr_format)
            block = read_all(path)
            np.testing.assert_array_equal(block.xy, xy)
            assert block.xy.dtype == np.float64

    def test_chunks_of_coordinates_may_lie_any_way(self, tmp_path: Path) -> None:
        slide = cells(COUNT)
        path = write_zarr(tmp_path / "a.zarr", slide.tiles)
        group = zarr.open_group(path, mode="a")
        group.create_array("xy", shape=(COUNT, 2), chunks=(5, 1), dtype="f8")[...] = slide.xy
        np.testing.assert_array_equal(read_all(path).xy, slide.xy)

    def test_without_them_there_are_none(self, slide: Cells, tmp_path: Path) -> None:
        path = write_zarr(tmp_path / "slide.zarr", slide.tiles)
        block = read_all(path)
        assert block.xy is block.cell_id is block.padded is None
        assert describe(path).mpp is None

    @pytest.mark.parametrize(
        ("mpp", "read"), [(0.25, (0.25, 0.25)), (1, (1.0, 1.0)), ([0.25, 0.5], (0.25, 0.5))]
    )
    def test_mpp_is_read(self, v3: Path, mpp: Any, read: tuple[float, float]) -> None:
        edit_json(v3 / "zarr.json", lambda value: value["attributes"].update(mpp=mpp))
        assert describe(v3).mpp == read

    def test_mpp_of_the_run_comes_first(self, v3: Path) -> None:
        assert describe(v3, OpenOptions(mpp=(0.5, 0.5))).mpp == (0.5, 0.5)

    def test_tiles_of_another_magnification_are_bad_scale(self, v3: Path) -> None:
        # 12 x 10 pixels at 0.25 um: neither side is within 10 % of the other.
        with pytest.raises(BadScaleError, match=r"3\.0 um high"):
            describe(v3, OpenOptions(tile_um=2.5))

    @pytest.mark.parametrize("mpp", [0, -0.25, "0.25", True, [0.25], float("nan"), float("inf")])
    def test_an_absurd_mpp_is_bad_format(self, v3: Path, mpp: Any) -> None:
        edit_json(v3 / "zarr.json", lambda value: value["attributes"].update(mpp=mpp))
        with pytest.raises(BadFormatError, match="mpp"):
            describe(v3)

    def test_coordinates_that_are_not_finite_are_bad_format(self, tmp_path: Path) -> None:
        xy = np.array([[1, 2], [3, np.nan]])
        path = write_zarr(tmp_path / "a.zarr", cells(2).tiles, xy=xy)
        with pytest.raises(BadFormatError, match="not finite"):
            read_all(path)

    def test_a_missing_chunk_of_them_is_bad_format(self, v3: Path) -> None:
        (v3 / "xy/c/0/0").unlink()
        with pytest.raises(BadFormatError, match="lacks the chunk 'xy/c/0/0'"):
            read_all(v3)

    def test_endless_text_is_refused(self, v3: Path) -> None:
        def plain(value: dict[str, Any]) -> None:
            value["codecs"] = [{"name": "vlen-utf8"}]

        edit_json(v3 / "cell_id/zarr.json", plain)
        (v3 / "cell_id/c/0").write_bytes(struct.pack("<II", 23, 0xFFFF_FFFF))
        with pytest.raises(BadFormatError, match="cut short"):
            read_all(v3)


class TestFlags:
    @pytest.mark.parametrize("zarr_format", [2, 3])
    @pytest.mark.parametrize("dtype", ["bool", "u1"])
    def test_tiles_that_could_not_be_packed_are_unreadable(
        self, slide: Cells, tmp_path: Path, zarr_format: int, dtype: str
    ) -> None:
        path = self.write(tmp_path, slide, readable=[3, 9], dtype=dtype, zarr_format=zarr_format)
        block = read_all(path)
        assert_block(block, slide, 0, dict.fromkeys((3, 9), Reason.UNREADABLE_TILES))
        assert "when the slide was packed" in block.faults[3].detail

    def test_a_missing_chunk_is_the_graver_fault(self, slide: Cells, tmp_path: Path) -> None:
        path = self.write(tmp_path, slide, readable=[3, 9])
        (path / "tiles/c/1/0/0/0").unlink()
        faults = {3: Reason.UNREADABLE_TILES} | dict.fromkeys(range(7, 14), Reason.MISSING_TILES)
        assert_block(read_all(path), slide, 0, faults)

    def test_padded_tiles_are_told(self, slide: Cells, tmp_path: Path) -> None:
        block = read_all(self.write(tmp_path, slide, padded=[0, 22]))
        assert block.readable.all()
        np.testing.assert_array_equal(np.flatnonzero(~block.padded), [0, 22])

    def test_a_value_that_is_none_is_bad_format(self, slide: Cells, tmp_path: Path) -> None:
        path = self.write(tmp_path, slide, readable=[], dtype="u1")
        zarr.open_group(path)["readable"][5] = 2
        with pytest.raises(BadFormatError, match="where only 0 and 1 can be"):
            read_all(path)

    def test_where_an_unreadable_cell_lies_may_be_unknown(
        self, slide: Cells, tmp_path: Path
    ) -> None:
        path = self.write(tmp_path, slide, readable=[3])
        xy = slide.xy.copy()
        xy[3] = np.nan
        zarr.open_group(path)["xy"] = xy
        np.testing.assert_array_equal(read_all(path).xy, xy)
        zarr.open_group(path)["xy"][4] = np.nan
        with pytest.raises(BadFormatError, match="not finite"):
            read_all(path)

    @staticmethod
    def write(
        folder: Path, slide: Cells, *, dtype: str = "bool", zarr_format: int = 3, **false: list[int]
    ) -> Path:
        """A slide with columns that are true save for the rows ``false``."""
        path = write_zarr(folder / "a.zarr", slide.tiles, chunk=CHUNK, zarr_format=zarr_format)
        for name, rows in false.items():
            column = np.ones(COUNT, dtype)
            column[rows] = 0
            zarr.open_group(path).create_array(name, data=column, chunks=(CHUNK,))
        return path


def test_what_decides_of_a_tile_must_be_verified_too(v3: Path) -> None:
    assert describe(v3).integrity is Integrity.VERIFIED
    readable = np.arange(COUNT) != 3
    zarr.open_group(v3, mode="a").create_array("readable", data=readable, compressors=None)
    assert describe(v3).integrity is Integrity.UNVERIFIED
    assert np.flatnonzero(~read_all(v3).readable).tolist() == [3]
