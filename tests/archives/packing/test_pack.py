"""Slides of every format, packed by real worker processes and read back."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import ExpectedFrom, Integrity
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.archives.packing.pack import Outcome
from cvm_batch.archives.verifying import verify_slide
from cvm_batch.errors import Reason
from tests.archives.contract import touch
from tests.archives.making import (
    Cells,
    cells,
    encode,
    image_names,
    table_of,
    write_folder,
    write_table,
    write_tar,
    write_zarr,
    write_zip,
    write_zip_members,
)
from tests.archives.packing_slides import (
    assert_same,
    contents,
    leftovers,
    not_packed,
    pack_all,
    packed,
)
from tests.archives.reading import describe, read_all
from tests.archives.wsi_making import MPP, write_svs
from tests.faults.killers import arm

OPTIONS = OpenOptions(tile_um=16 * MPP, least_px=1 << 30)
#: By slide_id, the name of each slide's archive.
ARCHIVES = {
    "day/folder": "day/folder",
    "day/long.zip": "day/long",
    "equal.tar": "equal",
    "slide.svs": "slide",
    "torn.zip": "torn",
    "v2.zarr": "v2",
    "varying.zip": "varying",
}
COUNT = 23


def some_cells(count: int = COUNT, seed: int = 0) -> Cells:
    return cells(count, px=(16, 16), seed=seed)


def write_sources(root: Path) -> Path:
    """A slide of each kind."""
    write_folder(root / "day" / "folder", some_cells(seed=1).tiles)
    write_zip(root / "day" / "long.zip", some_cells(1100, seed=2).tiles, ".bmp")
    tar = some_cells(seed=3)
    write_tar(root / "equal.tar", tar)
    write_table(root / "equal.cells.csv", table_of(tar, image_names(COUNT)))
    _write_whole_slide(root)
    _write_torn(root / "torn.zip")
    old = some_cells(seed=4)
    write_zarr(root / "v2.zarr", old.tiles, xy=old.xy, cell_id=old.cell_id, mpp=MPP, zarr_format=2)
    _write_varying(root / "varying.zip")
    return root


def _write_whole_slide(root: Path) -> None:
    """With one cell at the border, whose crop reaches beyond it."""
    pixels = np.random.default_rng(5).integers(0, 255, (200, 300, 3)).astype(np.uint8)
    write_svs(root / "slide.svs", pixels)
    xy = [(2.0, 3.0), (50.0, 60.0), (280.0, 190.0), (150.0, 100.0)]
    write_table(root / "slide.cells.csv", {"x": [x for x, _ in xy], "y": [y for _, y in xy]})


def _write_torn(path: Path) -> None:
    """With one tile that does not decode."""
    slide = some_cells(5, seed=6)
    members = {name: encode(tile) for name, tile in zip(image_names(5), slide.tiles, strict=True)}
    write_zip_members(path, members | {"00002.png": b"no image"})


def _write_varying(path: Path) -> None:
    """The first twenty of one size, so that this shows only while tiles are packed."""
    first, later = some_cells(20, seed=7), cells(20, px=(9, 30), seed=8)
    members = [*first.tiles, *later.tiles]
    write_zip(path, members)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("sources") / "slides")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packed")


@pytest.fixture(scope="module")
def outcomes(sources: Path, out: Path) -> dict[str, Outcome]:
    return pack_all(sources, out, OPTIONS, jobs=2)


@pytest.mark.parametrize("slide_id", ARCHIVES)
def test_what_is_packed_reads_as_its_source(
    slide_id: str, sources: Path, out: Path, outcomes: dict[str, Outcome]
) -> None:
    archive = out / f"{ARCHIVES[slide_id]}.zarr"
    assert packed(outcomes[slide_id]).archive == archive
    assert not packed(outcomes[slide_id]).already
    assert_same(read_all(archive), read_all(sources / slide_id, OPTIONS))
    info, before = describe(archive), describe(sources / slide_id, OPTIONS)
    assert (info.tiles, info.mpp) == (before.tiles, before.mpp)
    assert info.expected_from is ExpectedFrom.PACK_MANIFEST
    assert info.integrity is Integrity.VERIFIED
    assert info.identity == packed(outcomes[slide_id]).record.digest


def test_every_slide_is_told_of_and_nothing_is_left_behind(
    out: Path, outcomes: dict[str, Outcome]
) -> None:
    assert outcomes.keys() == ARCHIVES.keys()
    assert leftovers(out) == []
    for slide_id, name in ARCHIVES.items():
        files = contents(out / f"{name}.zarr")
        record = packed(outcomes[slide_id]).record
        assert record.size == sum(map(len, files.values()))
        verdict = verify_slide(SlideAddress(uri=str(out / f"{name}.zarr")), OpenOptions())
        assert (verdict.tiles, verdict.unreadable) == (record.tiles, record.unreadable)


def test_border_cells_stay_marked(out: Path, outcomes: dict[str, Outcome]) -> None:
    padded = read_all(out / "slide.zarr").padded
    assert padded is not None
    assert padded.sum() == 1


def test_a_tile_that_cannot_be_read_is_marked_and_told(
    out: Path, outcomes: dict[str, Outcome]
) -> None:
    record = packed(outcomes["torn.zip"]).record
    assert (record.tiles, record.unreadable) == (5, 1)
    assert len(record.faults) == 1
    assert "00002.png" in record.faults[0]
    block = read_all(out / "torn.zarr")
    assert block.readable.tolist() == [True, True, False, True, True]
    assert {at: fault.reason for at, fault in block.faults.items()} == {2: Reason.UNREADABLE_TILES}


def test_tiles_of_varying_size_are_found_late(out: Path, outcomes: dict[str, Outcome]) -> None:
    sizes = {tile.shape[:2] for tile in read_all(out / "varying.zarr").tiles}
    assert sizes == {(16, 16), (9, 30)}


@pytest.mark.parametrize("name", ["day/long", "equal", "slide", "v2"])
def test_zarr_itself_reads_the_same(name: str, out: Path, outcomes: dict[str, Outcome]) -> None:
    block = read_all(out / f"{name}.zarr")
    group = zarr.open_group(out / f"{name}.zarr", mode="r")
    np.testing.assert_array_equal(group["tiles"][:], np.stack(block.tiles))
    assert group["cell_id"][:].tolist() == block.cell_id if block.cell_id else True
    if block.xy is not None:
        np.testing.assert_array_equal(group["xy"][:], block.xy)
    if block.padded is not None:
        np.testing.assert_array_equal(group["padded"][:], block.padded)


def test_zarr_itself_reads_tiles_of_varying_size(out: Path, outcomes: dict[str, Outcome]) -> None:
    block = read_all(out / "varying.zarr")
    group = zarr.open_group(out / "varying.zarr", mode="r")
    stored, sizes = group["tiles"][:], group["size"][:]
    for tile, data, size in zip(block.tiles, stored, sizes, strict=True):
        np.testing.assert_array_equal(np.frombuffer(data, np.uint8).reshape(*size, 3), tile)


def test_bytes_depend_on_the_source_alone(
    sources: Path, out: Path, outcomes: dict[str, Outcome], tmp_path: Path
) -> None:
    copy = shutil.copytree(sources, tmp_path / "elsewhere")
    for file in copy.rglob("*"):
        touch(file)
    pack_all(copy, tmp_path / "packed", OPTIONS, jobs=1)
    assert contents(tmp_path / "packed") == contents(out)


def test_packed_slides_packed_again_give_the_same_bytes(
    out: Path, outcomes: dict[str, Outcome], tmp_path: Path
) -> None:
    for name in ("equal", "varying", "torn", "slide"):
        shutil.copytree(out / f"{name}.zarr", tmp_path / "first" / f"{name}.zarr")
    again = pack_all(tmp_path / "first", tmp_path / "second", jobs=2)
    assert all(packed(outcome).record.size for outcome in again.values())
    assert contents(tmp_path / "second") == contents(tmp_path / "first")


def test_a_reader_that_crashes_costs_its_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("a.zip", "killer.zip", "z.zip")):
        write_zip(tmp_path / "slides" / name, some_cells(seed=number).tiles)
    arm(tmp_path / "armed", monkeypatch)
    outcomes = pack_all(tmp_path / "slides", tmp_path / "out", jobs=2)
    error = not_packed(outcomes["killer.zip"]).error
    assert error.reason is Reason.DECODER_CRASHED
    assert "SIGSEGV" in str(error)
    for name in ("a.zip", "z.zip"):
        assert_same(read_all(packed(outcomes[name]).archive), read_all(tmp_path / "slides" / name))
    assert not (tmp_path / "out" / "killer.zarr").exists()
