"""The contract, kept by each format."""

from __future__ import annotations

import zipfile
from pathlib import Path

from cvm_batch.archives.archive import ExpectedFrom, Integrity
from tests.archives.contract import ArchiveContract
from tests.archives.making import (
    Cells,
    image_names,
    table_of,
    write_folder,
    write_table,
    write_zarr,
    write_zip,
)


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


class ZarrContract(ArchiveContract):
    tile_px = (12, 10)
    chunk_tiles = 7
    zarr_format = 3
    suffix = ".zarr"
    second_chunk = "tiles/c/1/0/0/0"

    def write(self, path: Path, slide: Cells) -> Path:
        return write_zarr(
            path.with_name(path.name + self.suffix),
            slide.tiles,
            xy=slide.xy,
            cell_id=slide.cell_id,
            zarr_format=self.zarr_format,
            chunk=self.chunk_tiles,
        )

    def lose_tiles(self, path: Path) -> set[int]:
        (path / self.second_chunk).unlink()
        return set(range(7, 14))

    def a_file_of(self, path: Path) -> Path:
        return path / self.second_chunk


class TestZarrV3(ZarrContract):
    integrity = Integrity.VERIFIED


class TestZarrV2(ZarrContract):
    integrity = Integrity.UNVERIFIED
    zarr_format = 2
    second_chunk = "tiles/1.0.0.0"


class TestZarrZip(ZarrContract):
    integrity = Integrity.VERIFIED
    zarr_format = 2
    suffix = ".zarr.zip"

    def lose_tiles(self, path: Path) -> set[int]:
        without_members(path, {"tiles/1.0.0.0"})
        return set(range(7, 14))

    def a_file_of(self, path: Path) -> Path:
        return path


def without_members(path: Path, names: set[str]) -> None:
    """Pack a zip anew without some of its members."""
    with zipfile.ZipFile(path) as packed:
        kept = {name: packed.read(name) for name in packed.namelist() if name not in names}
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in kept.items():
            packed.writestr(name, data)
