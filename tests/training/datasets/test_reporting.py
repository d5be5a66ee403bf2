"""What of a set is not taken is said, and one damaged image costs one cell."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from PIL import Image

from cvm_batch.archives.zarr import archive as zarr_archive
from cvm_batch.errors import DataSetError
from cvm_batch.training.datasets import load_cells
from cvm_batch.training.datasets.kept import Kept
from cvm_batch.training.datasets.labelled import LabelledCells
from tests.conftest import coloured_tiles
from tests.training.conftest import write_cells
from tests.training.datasets.test_layouts import cric, save, write_labels


def groups_by_name(cells: LabelledCells) -> dict[str, str]:
    return {image.name: group for image, group in zip(cells.images, cells.groups, strict=True)}


def test_an_image_that_does_not_decode_is_skipped_and_named(tmp_path: Path) -> None:
    root = write_cells(tmp_path / "set", frames=2)
    (root / "NILM/0000.jpg").write_bytes(b"\xff\xd8 not a JPEG")
    cells = load_cells(root)
    assert len(cells) == len(cells.labels) == len(cells.groups) == len(cells.digests) == 23
    assert "NILM/0000.jpg" not in groups_by_name(cells)
    assert cells.cell_ids[0] == "0001"
    assert "  skipped 1, does not decode as an image: NILM/0000.jpg" in cells.report()


def test_a_set_of_nothing_but_damaged_images_says_so(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(DataSetError, match=r"2 were skipped, as a/1\.png: does not decode"):
        load_cells(tmp_path)


def test_an_image_that_cannot_be_read_is_no_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a" / "1.png", 1)
    save(tmp_path / "b" / "2.png", 2)

    def fails(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(DataSetError, match=r"cannot be read.*Input/output error"):
        load_cells(tmp_path)


def test_images_that_the_table_passes_over_are_reported(tmp_path: Path) -> None:
    root = write_cells(tmp_path / "set", frames=2)
    shutil.copy(root / "NILM/0000.jpg", root / "NILM/new.jpg")
    cells = load_cells(root)
    assert len(cells) == 24
    assert "  skipped 1, cells.csv does not name it: NILM/new.jpg" in cells.report()


def test_frames_that_the_table_passes_over_are_reported(tmp_path: Path) -> None:
    for seed, name in enumerate(("f.png", "other.png")):
        Image.fromarray(coloured_tiles([seed], side=120)[0]).save(tmp_path / name)
    rows: list[list[object]] = [
        [1, "f.png", "doi", at, label, 60 + at, 60] for at, label in enumerate(("SCC", "HSIL"))
    ]
    cells = load_cells(cric(tmp_path, rows))
    assert cells.skipped == (("other.png", "a frame that classifications.csv does not name"),)


def test_class_folders_without_images_are_reported(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", 1)
    save(tmp_path / "b" / "2.png", 2)
    (tmp_path / "c").mkdir()
    assert load_cells(tmp_path).skipped == (("c", "a class folder without images"),)


def archive(root: Path, tiles: NDArray[np.uint8], chunk: int) -> Path:
    group = zarr.open_group(root / "a.zarr", mode="w")
    chunks = (chunk, *tiles.shape[1:])
    group.create_array("tiles", shape=tiles.shape, chunks=chunks, dtype="uint8")[:] = tiles
    return root


def test_each_chunk_of_an_archive_is_read_once_and_unlabelled_tiles_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = coloured_tiles([0, 3] * 8, side=24)
    archive(tmp_path, tiles, 8)
    labelled = [15, *range(14)]
    rows: list[list[object]] = [["a.zarr", at, "HSIL" if at % 2 else "ASC-H"] for at in labelled]
    write_labels(tmp_path, [["slide", "index", "label"], *rows])
    read: list[tuple[int, int]] = []
    whole = zarr_archive.ZarrArchive.read

    def counted(self: zarr_archive.ZarrArchive, start: int, stop: int) -> object:
        read.append((start, stop))
        return whole(self, start, stop)

    monkeypatch.setattr(zarr_archive.ZarrArchive, "read", counted)
    cells = load_cells(tmp_path)
    assert [image.name for image in cells.images] == [f"a.zarr#{at}" for at in sorted(labelled)]
    for position, at in enumerate(sorted(labelled)):
        np.testing.assert_array_equal(cells.read(position), tiles[at])
    assert sorted(read) == [(0, 8), (8, 16)]
    assert "  1 of 16 tiles of a.zarr have no label, and are left out" in cells.report()
    write_labels(tmp_path, [["slide", "index", "label"], *rows, ["a.zarr", 3, "ASC-H"]])
    with pytest.raises(DataSetError, match=r"tile 3 of 'a\.zarr' more than once"):
        load_cells(tmp_path)


def test_a_block_is_decoded_once_by_threads_that_ask_together() -> None:
    kept: Kept[int] = Kept(2)
    decoded: list[int] = []
    together = threading.Barrier(4)

    def ask() -> None:
        together.wait()
        assert kept.get("a", lambda: decoded.append(1) or 7) == 7  # type: ignore[func-returns-value]

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert decoded == [1]
    for key in ("b", "c"):
        kept.get(key, lambda: 1)
    kept.get("a", lambda: decoded.append(2) or 8)  # type: ignore[func-returns-value]
    assert decoded == [1, 2]  # the one that was not asked for longest is gone


def test_a_block_that_failed_is_tried_again() -> None:
    kept: Kept[int] = Kept(2)

    def fails() -> int:
        raise DataSetError("once")

    with pytest.raises(DataSetError, match="once"):
        kept.get("a", fails)
    assert kept.get("a", lambda: 3) == 3


def test_a_frame_that_lies_in_two_sets_is_one_group(tmp_path: Path) -> None:
    """Cells of the same frames, labelled in two rounds."""
    first, second = (write_cells(tmp_path / name, frames=3) for name in ("one", "two"))
    for path in second.rglob("*.jpg"):  # other cells, that are no duplicates
        Image.fromarray(255 - np.array(Image.open(path))).save(path, quality=95)
    cells = load_cells(first, second)
    assert set(cells.groups) == {"frame0", "frame1", "frame2"}
    assert cells.groups[0] == cells.groups[36]
    assert any("3 groups have the same name in more than one set" in x for x in cells.report())


def test_files_of_one_name_in_two_sets_are_two_groups(tmp_path: Path) -> None:
    for number, root in enumerate(("one", "two")):
        for seed, name in enumerate(("a/1.png", "b/2.png")):
            save(tmp_path / root / name, 10 * number + seed)
    assert len(set(load_cells(tmp_path / "one", tmp_path / "two").groups)) == 4


def test_the_same_image_is_known_in_every_layout(tmp_path: Path) -> None:
    tiles = coloured_tiles([0, 3], side=24)
    archive(tmp_path / "packed", tiles, 2)
    rows: list[list[object]] = [["slide", "index", "label"]]
    write_labels(tmp_path / "packed", [*rows, ["a.zarr", 0, "ASC-H"], ["a.zarr", 1, "HSIL"]])
    for suffix, label, tile in (("png", "HSIL", tiles[1]), ("bmp", "NILM", tiles[0][:, ::-1])):
        (tmp_path / "files" / label).mkdir(parents=True)
        Image.fromarray(np.ascontiguousarray(tile)).save(tmp_path / "files" / label / f"1.{suffix}")
    cells = load_cells(tmp_path / "packed", tmp_path / "files")
    groups = groups_by_name(cells)
    assert groups["2-files/HSIL/1.png"] == groups["1-packed/a.zarr#1"] == "a.zarr"
    assert groups["2-files/NILM/1.bmp"] != "a.zarr"
