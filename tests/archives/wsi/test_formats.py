"""Whole slides by what wrote them: the files of each, and what may be wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from cvm_batch.archives.discovery import discover
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.archives.wsi.files import main_file
from cvm_batch.archives.wsi.regions import WholeSlide
from cvm_batch.errors import BadFormatError, InputChangedError, OverLimitError, Reason
from tests.archives.contract import touch
from tests.archives.making import write_folder, write_table
from tests.archives.reading import describe, identity_at, open_at, read_all
from tests.archives.wsi_making import pyramid, write_svs, write_tiff
from tests.archives.wsi_scanners import MIRAX_GLASS, leave_out, write_dicom, write_mirax

OPTIONS = OpenOptions(tile_um=20.0, least_px=40)

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """Of a slide of 320 x 256 px, every pixel another."""
    return np.random.default_rng(0).integers(0, 256, (256, 320, 3), dtype=np.uint8)


def with_cells(path: Path, *points: tuple[float, float]) -> Path:
    points = points or ((100, 60), (200, 130))
    stem = path.name if path.is_dir() else path.stem
    table = {"x": [x for x, _ in points], "y": [y for _, y in points]}
    write_table(path.with_name(f"{stem}.cells.csv"), table)
    return path


class TestEachKind:
    @pytest.mark.parametrize(
        ("name", "make"),
        [
            ("slide.svs", write_svs),
            ("slide.tif", write_tiff),
            ("slide.TIFF", write_tiff),
            ("slide", write_dicom),
            ("slide.mrxs", write_mirax),
        ],
    )
    def test_says_its_scale_and_gives_its_pixels(
        self, tmp_path: Path, pixels: NDArray[np.uint8], name: str, make: Make
    ) -> None:
        path = with_cells(make(tmp_path / name, pixels))
        assert describe(path, OPTIONS).mpp == (0.5, 0.5)
        one, other = read_all(path, OPTIONS).tiles
        np.testing.assert_array_equal(one, pixels[40:80, 80:120])
        np.testing.assert_array_equal(other, pixels[110:150, 180:220])

    @pytest.mark.parametrize(
        ("name", "make"),
        [("slide.svs", write_svs), ("slide.tif", write_tiff), ("slide", write_dicom)],
    )
    def test_gives_the_pixels_of_its_coarser_levels(
        self, tmp_path: Path, pixels: NDArray[np.uint8], name: str, make: Make
    ) -> None:
        path = with_cells(make(tmp_path / name, pixels, levels=3), (100, 60))
        truth = list(pyramid(pixels, 3))[2]
        (tile,) = read_all(path, OpenOptions(tile_um=40.0, least_px=20)).tiles
        np.testing.assert_array_equal(tile, truth[5:25, 15:35])

    @pytest.mark.parametrize(
        ("name", "make"),
        [("slide.tif", write_tiff), ("slide", write_dicom), ("s.mrxs", write_mirax)],
    )
    def test_keeps_x_and_y_apart(
        self, tmp_path: Path, pixels: NDArray[np.uint8], name: str, make: Make
    ) -> None:
        path = with_cells(make(tmp_path / name, pixels, mpp=(0.5, 0.25)))
        info = describe(path, OPTIONS)
        assert info.mpp == (0.5, 0.25)
        assert info.tile_px == (80, 40)

    @pytest.mark.parametrize(
        ("make", "slide_id"),
        [
            (lambda folder, pixels: write_svs(folder / "slide.svs", pixels), "slide.svs"),
            (lambda folder, pixels: write_tiff(folder / "slide.tif", pixels), "slide.tif"),
            (lambda folder, pixels: write_dicom(folder / "slide", pixels), "slide"),
            (lambda folder, pixels: write_mirax(folder / "slide.mrxs", pixels), "slide.mrxs"),
        ],
    )
    def test_is_one_slide_of_its_folder(
        self, tmp_path: Path, pixels: NDArray[np.uint8], make: Make, slide_id: str
    ) -> None:
        with_cells(make(tmp_path, pixels))
        found = discover([str(tmp_path)])
        assert [slide.slide_id for slide in found.slides] == [slide_id]
        assert not found.ignored


class TestTiff:
    def test_one_without_a_table_does_not_turn_its_neighbours_into_crops(
        self, tmp_path: Path, pixels: NDArray[np.uint8]
    ) -> None:
        with_cells(write_tiff(tmp_path / "slide.tif", pixels))
        other = write_tiff(tmp_path / "other.tif", pixels)
        found = discover([str(tmp_path)])
        assert [slide.slide_id for slide in found.slides] == ["other.tif", "slide.tif"]
        with pytest.raises(BadFormatError, match="no cells tables"):
            open_at(other, OPTIONS)

    def test_those_of_a_folder_of_crops_stay_crops(self, tmp_path: Path) -> None:
        tiles = np.zeros((3, 8, 8, 3), np.uint8)
        path = write_folder(tmp_path / "slide", tiles, ".tif")
        assert [slide.slide_id for slide in discover([str(tmp_path)]).slides] == ["slide"]
        assert describe(path).tiles == 3

    @pytest.mark.parametrize(
        "layout", [{}, {"bigtiff": True}, {"byteorder": ">"}, {"byteorder": ">", "bigtiff": True}]
    )
    @pytest.mark.parametrize("share", [0.2, 0.7, 0.999])
    def test_that_is_cut_short_is_refused(
        self, tmp_path: Path, pixels: NDArray[np.uint8], layout: dict[str, Any], share: float
    ) -> None:
        path = tmp_path / "slide.tif"
        tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", **layout)
        assert main_file(with_cells(path)) == path
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(BadFormatError, match="cut short"):
            open_at(path, OpenOptions(tile_um=20.0, mpp=(0.5, 0.5)))

    @pytest.mark.parametrize("content", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"%PDF-1.7"])
    def test_that_is_none_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "slide.svs"
        path.write_bytes(content)
        with pytest.raises(BadFormatError, match=r"slide\.svs"):
            open_at(with_cells(path), OPTIONS)

    def test_of_a_compression_that_is_not_supported_is_refused(
        self, tmp_path: Path, pixels: NDArray[np.uint8]
    ) -> None:
        path = with_cells(write_tiff(tmp_path / "slide.tif", pixels, compression="jpeg2000"))
        with pytest.raises(BadFormatError, match="compression"):
            open_at(path, OPTIONS)

    def test_that_claims_a_giant_directory_is_refused_unread(self, tmp_path: Path) -> None:
        path = tmp_path / "slide.tif"
        count = 1 << 30
        with path.open("wb") as file:
            file.write(
                b"II+\0\x08\0\0\0" + (16).to_bytes(8, "little") + count.to_bytes(8, "little")
            )
            file.truncate(30 * count)  # takes no room on the disk
        with pytest.raises(OverLimitError, match="header"):
            open_at(with_cells(path), OPTIONS)


class TestAperio:
    def test_without_a_scale_is_not_taken_for_one_with(
        self, tmp_path: Path, pixels: NDArray[np.uint8]
    ) -> None:
        path = write_svs(tmp_path / "slide.svs", pixels, mpp=None)
        with closing(WholeSlide(path)) as slide:
            assert slide.mpp is None


class TestDicom:
    def test_instances_of_one_slide_are_its_levels(
        self, tmp_path: Path, pixels: NDArray[np.uint8]
    ) -> None:
        path = with_cells(write_dicom(tmp_path / "slide", pixels, levels=2))
        before = identity_at(path)
        touch(path / "slide-1.dcm")
        assert identity_at(path) != before

    def test_two_slides_in_one_folder_are_refused(
        self, tmp_path: Path, pixels: NDArray[np.uint8]
    ) -> None:
        path = with_cells(write_dicom(tmp_path / "slide", pixels))
        write_dicom(path, pixels, series="another")
        with pytest.raises(BadFormatError, match="2 series"):
            open_at(path, OPTIONS)

    def test_one_file_is_read_with_those_beside_it(
        self, tmp_path: Path, pixels: NDArray[np.uint8]
    ) -> None:
        path = with_cells(write_dicom(tmp_path, pixels, levels=2) / "slide-0.dcm")
        write_dicom(tmp_path, pixels[::-1], series="another")
        with closing(open_at(path, OPTIONS)) as archive:
            np.testing.assert_array_equal(archive.read(0, 1).tiles[0], pixels[40:80, 80:120])
            touch(tmp_path / "slide-1.dcm")
            with pytest.raises(InputChangedError, match="changed"):
                archive.read(0, 1)

    @pytest.mark.parametrize("kept", [140, 300, -1])
    def test_that_is_cut_short_is_refused(
        self, tmp_path: Path, pixels: NDArray[np.uint8], kept: int
    ) -> None:
        path = with_cells(write_dicom(tmp_path / "slide", pixels))
        file = path / "slide-0.dcm"
        file.write_bytes(file.read_bytes()[:kept])
        with pytest.raises(BadFormatError, match="cut short"):
            open_at(path, OPTIONS)


class TestMirax:
    def test_what_was_not_scanned_counts_as_unreadable(
        self, tmp_path: Path, pixels: NDArray[np.uint8]
    ) -> None:
        path = with_cells(write_mirax(tmp_path / "slide.mrxs", pixels), (30, 30), (200, 30))
        leave_out(path, 0)
        block = read_all(path, OPTIONS)
        assert {p: f.reason for p, f in block.faults.items()} == {0: Reason.UNREADABLE_TILES}
        np.testing.assert_array_equal(block.tiles[1], pixels[10:50, 180:220])

    def test_borders_are_of_the_slide_s_own_glass(
        self, tmp_path: Path, pixels: NDArray[np.uint8]
    ) -> None:
        path = with_cells(write_mirax(tmp_path / "slide.mrxs", pixels), (0, 30))
        block = read_all(path, OPTIONS)
        assert block.padded is not None
        assert block.padded.tolist() == [True]
        assert (block.tiles[0][:, :20] == MIRAX_GLASS).all()
        np.testing.assert_array_equal(block.tiles[0][:, 20:], pixels[10:50, :20])

    @pytest.mark.parametrize("name", ["Index.dat", "Data0000.dat", "Slidedat.ini"])
    def test_every_file_is_a_part_of_it(
        self, tmp_path: Path, pixels: NDArray[np.uint8], name: str
    ) -> None:
        path = with_cells(write_mirax(tmp_path / "slide.mrxs", pixels))
        before = identity_at(path)
        with closing(open_at(path, OPTIONS)) as archive:
            archive.read(0, 1)
            touch(tmp_path / "slide" / name)
            with pytest.raises(InputChangedError, match="changed"):
                archive.read(0, 1)
        assert identity_at(path) != before

    @pytest.mark.parametrize("name", ["Index.dat", "Data0000.dat", "Slidedat.ini"])
    def test_without_one_of_them_no_cell_is_read(
        self, tmp_path: Path, pixels: NDArray[np.uint8], name: str
    ) -> None:
        path = with_cells(write_mirax(tmp_path / "slide.mrxs", pixels))
        (tmp_path / "slide" / name).unlink()
        with pytest.raises(BadFormatError, match=r"slide\.mrxs"):
            open_at(path, OPTIONS)
