"""The contract, kept by each format."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from cvm_batch.archives.archive import ExpectedFrom, Integrity
from cvm_batch.errors import BadFormatError, Reason
from tests.archives.contract import COUNT, ArchiveContract, touch
from tests.archives.making import (
    Cells,
    cells,
    image_names,
    table_of,
    write_folder,
    write_table,
    write_tar,
    write_tar_members,
    write_zarr,
    write_zip,
)
from tests.archives.packed_making import write_packed
from tests.archives.reading import identity_at, open_at
from tests.archives.wsi_making import empty_tile, write_svs, write_tiff
from tests.archives.wsi_scanners import leave_out, write_dicom, write_mirax


class TestFolder(ArchiveContract):
    integrity = Integrity.UNVERIFIED
    expected_from = ExpectedFrom.CELLS_TABLE

    def write(self, path: Path, slide: Cells) -> Path:
        write_folder(path, slide.tiles)
        write_table(path / "cells.csv", table_of(slide, image_names(len(slide))))
        return path

    def lose_tiles(self, path: Path) -> set[int]:
        (path / "00004.png").unlink()
        (path / "00011.png").unlink()
        return {4, 11}

    def a_file_of(self, path: Path) -> Path:
        return path / "00003.png"


class TestZip(ArchiveContract):
    integrity = Integrity.VERIFIED
    expected_from = ExpectedFrom.CELLS_TABLE

    def write(self, path: Path, slide: Cells) -> Path:
        table = path.with_name(f"{path.name}.cells.parquet")
        write_table(table, table_of(slide, image_names(len(slide))))
        return write_zip(path.with_name(f"{path.name}.zip"), slide.tiles)

    def lose_tiles(self, path: Path) -> set[int]:
        without_members(path, {"00004.png", "00011.png"})
        return {4, 11}


class TestTar(ArchiveContract):
    integrity = Integrity.UNVERIFIED
    expected_from = ExpectedFrom.CELLS_TABLE

    def write(self, path: Path, slide: Cells) -> Path:
        table = path.with_name(f"{path.name}.cells.csv")
        write_table(table, table_of(slide, image_names(len(slide))))
        return write_tar(path.with_name(f"{path.name}.tar"), slide)

    def lose_tiles(self, path: Path) -> set[int]:
        with tarfile.open(path) as packed:
            kept = {m.name: packed.extractfile(m).read() for m in packed}  # type: ignore[union-attr]
        del kept["00004.png"], kept["00011.png"]
        write_tar_members(path, kept)
        return {4, 11}


class ZarrContract(ArchiveContract):
    integrity = Integrity.VERIFIED
    tile_px = (12, 10)
    chunk_tiles = 7
    zarr_format = 3
    suffix = ".zarr"
    second_file = "tiles/c/1/0/0/0"
    tiles_in_it = range(7, 14)
    tiles_array: Mapping[str, Any] = {}

    def write(self, path: Path, slide: Cells) -> Path:
        return write_zarr(
            path.with_name(path.name + self.suffix),
            self.stored(np.asarray(slide.tiles)),
            xy=slide.xy,
            cell_id=slide.cell_id,
            zarr_format=self.zarr_format,
            chunk=self.chunk_tiles,
            **self.tiles_array,
        )

    def stored(self, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The array that holds ``tiles``."""
        return tiles

    def lose_tiles(self, path: Path) -> set[int]:
        (path / self.second_file).unlink()
        return set(self.tiles_in_it)

    def a_file_of(self, path: Path) -> Path:
        return path / self.second_file


class ZarrZipContract(ZarrContract):
    suffix = ".zarr.zip"

    def lose_tiles(self, path: Path) -> set[int]:
        without_members(path, {self.second_file})
        return set(self.tiles_in_it)

    def a_file_of(self, path: Path) -> Path:
        return path


class TestZarrV3(ZarrContract):
    pass


class TestZarrV2(ZarrContract):
    integrity = Integrity.UNVERIFIED
    zarr_format = 2
    second_file = "tiles/1.0.0.0"


class TestZarrSharded(ZarrContract):
    tiles_array: Mapping[str, Any] = {"shards": (14, 12, 10, 3)}
    tiles_in_it = range(14, COUNT)


class TestZarrOfChannelsFirst(ZarrContract):
    def stored(self, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return tiles.transpose(0, 3, 1, 2)


class TestZarrZipV3(ZarrZipContract):
    pass


class TestZarrZipV2(ZarrZipContract):
    zarr_format = 2
    second_file = "tiles/1.0.0.0"


class TestPacked(ZarrContract):
    expected_from = ExpectedFrom.PACK_MANIFEST
    second_file = "tiles/c.1.0.0.0"
    content_is_recorded = True

    def write(self, path: Path, slide: Cells) -> Path:
        return write_packed(path.with_name(path.name + self.suffix), slide)

    def test_touching_a_file_changes_the_identity(self, slide: Cells, tmp_path: Path) -> None:
        """Not of a packed slide: it is the same wherever it is copied. Its content counts."""
        path = self.write(tmp_path / "slide", slide)
        before = identity_at(path)
        with closing(open_at(path)) as archive:
            touch(self.a_file_of(path))
            assert archive.describe().identity == identity_at(path) == before
        other = self.write(tmp_path / "other", cells(COUNT, seed=1))
        assert identity_at(other) != before


class WholeSlideContract(ArchiveContract):
    """Cells lie on glass, four in each stored tile of 64 px, in the order of these."""

    integrity = Integrity.UNVERIFIED
    expected_from = ExpectedFrom.CELLS_TABLE
    tile_px = (12, 10)
    lost_as = Reason.UNREADABLE_TILES
    suffix: ClassVar[str]
    write_slide: ClassVar[Callable[[Path, NDArray[np.uint8]], Path]]
    """In stored tiles of 64 px."""

    @pytest.fixture(scope="class")
    @classmethod
    def slide(cls) -> Cells:
        made = cells(COUNT)
        tile, in_tile = np.divmod(np.arange(COUNT), 4)
        corner = np.stack([tile % 3, tile // 3], axis=1) * 64
        offset = np.stack([in_tile % 2, in_tile // 2], axis=1) * 20 + 16
        return Cells(made.tiles, (corner + offset).astype(float), made.cell_id)

    def write(self, path: Path, slide: Cells) -> Path:
        pixels = np.full((128, 192, 3), 255, np.uint8)
        for (x, y), tile in zip(slide.xy.astype(int).tolist(), slide.tiles, strict=True):
            pixels[y - 6 : y + 6, x - 5 : x + 5] = tile
        table = table_of(slide, image_names(len(slide)))
        table |= {"width": [10] * len(slide), "height": [12] * len(slide)}
        write_table(path.with_name(f"{path.name}.cells.csv"), table)
        return type(self).write_slide(path.with_name(path.name + self.suffix), pixels)


class TestTiledTiff(WholeSlideContract):
    suffix = ".tif"
    write_slide = write_tiff

    def lose_tiles(self, path: Path) -> set[int]:
        empty_tile(path, 1)
        return {4, 5, 6, 7}


class TestAperio(WholeSlideContract):
    suffix = ".svs"
    write_slide = write_svs

    def lose_tiles(self, path: Path) -> set[int]:
        empty_tile(path, 4)
        return {16, 17, 18, 19}


class TestMirax(WholeSlideContract):
    suffix = ".mrxs"
    write_slide = write_mirax

    def lose_tiles(self, path: Path) -> set[int]:
        leave_out(path, 2)
        return {8, 9, 10, 11}

    def a_file_of(self, path: Path) -> Path:
        return path.with_suffix("") / "Data0000.dat"


class TestDicom(WholeSlideContract):
    suffix = ""
    write_slide = write_dicom

    def test_missing_tiles_are_marked_and_the_rest_is_right(
        self, slide: Cells, tmp_path: Path
    ) -> None:
        """Not of DICOM: without a frame, the file ends too early and is refused."""
        path = self.write(tmp_path / "slide", slide)
        file = self.a_file_of(path)
        file.write_bytes(file.read_bytes()[:-64])
        with pytest.raises(BadFormatError, match="cut short"):
            open_at(path)

    def a_file_of(self, path: Path) -> Path:
        return path / "slide-0.dcm"


def without_members(path: Path, names: set[str]) -> None:
    """Pack a zip anew without some of its members."""
    with zipfile.ZipFile(path) as packed:
        kept = {name: packed.read(name) for name in packed.namelist() if name not in names}
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in kept.items():
            packed.writestr(name, data)
