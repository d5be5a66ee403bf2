"""Each published layout, written small and read back."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from cvm_batch.errors import DataSetError
from cvm_batch.training.datasets import LabelledCells, load_cells
from tests.conftest import coloured_tiles


def save(path: Path, seed: int, side: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tile = coloured_tiles([seed % 11], side=side, seed=seed)[0]
    Image.fromarray(tile).save(path)


def classes_of(cells: LabelledCells) -> list[str]:
    return [cells.class_names[label] for label in cells.labels]


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "as unpacked"])
def test_sipakmed(tmp_path: Path, nested: bool) -> None:
    for number, name in enumerate(["im_Dyskeratotic", "im_Superficial-Intermediate"]):
        folder = tmp_path / name / name if nested else tmp_path / name
        for seed, cell in enumerate(("001_01", "001_02", "002_01")):
            save(folder / "CROPPED" / f"{cell}.bmp", 10 * number + seed)
        (folder / "CROPPED" / "001_01_cyt.dat").write_text("1,2")
        save(folder / "001.bmp", 99)
    cells = load_cells(tmp_path)
    assert classes_of(cells) == ["Dyskeratotic"] * 3 + ["Superficial-Intermediate"] * 3
    assert cells.groups[:3] == ("Dyskeratotic/001", "Dyskeratotic/001", "Dyskeratotic/002")
    assert cells.groups[3] == "Superficial-Intermediate/001"
    assert cells.grouped_by == "cluster image"
    assert [why for _, why in cells.skipped] == ["no image", "no image"]


def test_herlev_leaves_segmentations_out_and_maps_seven_to_two(tmp_path: Path) -> None:
    for number, name in enumerate(["carcinoma_in_situ", "normal_columnar"]):
        save(tmp_path / name / f"14914337{number}-149143378-001.bmp", number)
        save(tmp_path / name / f"14914337{number}-149143378-001-d.bmp", 10 + number)
        save(tmp_path / name / f"14914337{number}-149143378-002.bmp", 20 + number)
    cells = load_cells(tmp_path)
    assert len(cells) == 4
    assert cells.groups[0] == cells.groups[1] == "149143370-149143378"
    assert {why for _, why in cells.skipped} == {"a segmentation, not a cell"}
    (tmp_path / "__MACOSX").mkdir()
    assert load_cells(tmp_path).digest == cells.digest, "segmentations are still no cells"
    assert ("__MACOSX", "no folder of a Herlev class") in load_cells(tmp_path).skipped
    (tmp_path / "__MACOSX").rmdir()
    save(tmp_path / "koilocytotic" / "1.bmp", 1)
    with pytest.raises(DataSetError, match=r"images in others: koilocytotic\."):
        load_cells(tmp_path)
    save(tmp_path / "superficial" / "1.bmp", 2)
    assert len(load_cells(tmp_path).class_names) == 4, "classes of their own, two named alike"
    for name in ("koilocytotic", "superficial"):
        shutil.rmtree(tmp_path / name)
    two = cells.regrouped({"Abnormal": ("carcinoma_in_situ",), "Normal": ("normal_columnar",)})
    assert classes_of(two) == ["Abnormal", "Abnormal", "Normal", "Normal"]
    with pytest.raises(DataSetError, match="no cells of Odd"):
        cells.regrouped({"Odd": ("no_such",), "Normal": ("normal_columnar",)})
    part = cells.regrouped({"Abnormal": ("carcinoma_in_situ",)})
    assert len(part) == 2
    assert ("normal_columnar", "of a class not asked for") in part.skipped


def cric(root: Path, rows: list[list[object]]) -> Path:
    root.mkdir(exist_ok=True)
    with (root / "classifications.csv").open("w", newline="") as file:
        head = ["image_id", "image_filename", "image_doi", "cell_id", "bethesda_system"]
        csv.writer(file).writerows([[*head, "nucleus_x", "nucleus_y"], *rows])
    return root


def test_cric_crops_around_the_nucleus(tmp_path: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    cric(
        tmp_path,
        [
            [1, "f.png", "doi", 7, "SCC", 200, 150],
            [1, "f.png", "doi", 8, "Negative for intraepithelial lesion", 10, 290],
            [2, "gone.png", "doi", 9, "HSIL", 50, 50],
        ],
    )
    (tmp_path / "frames").mkdir()
    Image.fromarray(frame).save(tmp_path / "frames" / "f.png")
    cells = load_cells(tmp_path)
    assert classes_of(cells) == ["SCC", "NILM"]
    assert cells.groups == ("f", "f")
    np.testing.assert_array_equal(cells.read(0), frame[100:200, 150:250])
    np.testing.assert_array_equal(cells.read(1), frame[240:300, 0:60])
    assert cells.skipped == (("9", "frame gone.png is not there"),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, "f.png", "doi", 7, "SCC", "left", 150], "row 2: 'left' under nucleus_x"),
        ([1, "f.png", "doi", 7, "", 20, 150], "row 2: nothing under bethesda_system"),
        ([1, "f.png", "doi", 7, "SCC", 4000, 150], "lies outside its frame"),
    ],
)
def test_cric_refuses_rows_that_say_nothing(
    tmp_path: Path, row: list[object], message: str
) -> None:
    Image.new("RGB", (400, 300)).save(tmp_path / "f.png")
    cric(tmp_path, [row, [1, "f.png", "doi", 8, "HSIL", 100, 100]])
    with pytest.raises(DataSetError, match=message):
        load_cells(tmp_path)


def test_packed_archives_with_labels(tmp_path: Path) -> None:
    tiles = coloured_tiles([0, 3, 0, 3], side=24)
    group = zarr.open_group(tmp_path / "set" / "a.zarr", mode="w")
    group.create_array("tiles", shape=tiles.shape, chunks=tiles.shape, dtype="uint8")[:] = tiles
    rows = [["slide", "index", "label"], ["a.zarr", 0, "ASC-H"], ["a.zarr", 3, "HSIL"]]
    write_labels(tmp_path / "set", rows)
    cells = load_cells(tmp_path / "set")
    assert classes_of(cells) == ["ASC-H", "HSIL"]
    assert cells.grouped_by == "slide"
    np.testing.assert_array_equal(cells.read(1), tiles[3])
    write_labels(tmp_path / "set", [*rows, ["a.zarr", 4, "HSIL"]])
    with pytest.raises(DataSetError, match=r"tile 4 of 'a\.zarr', which has tiles 0 to 3"):
        load_cells(tmp_path / "set")
    write_labels(tmp_path / "set", [*rows, ["b.zarr", 0, "HSIL"]])
    with pytest.raises(DataSetError, match=r"names 'b\.zarr'"):
        load_cells(tmp_path / "set")


def write_labels(root: Path, rows: list[list[object]]) -> None:
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_two_sets_become_one(tmp_path: Path) -> None:
    for root, names in (("cric", ("SCC", "NILM")), ("other", ("NILM", "Parabasal"))):
        for number, name in enumerate(names):
            save(tmp_path / root / name / "1.png", len(root) * 10 + number)
    cells = load_cells(tmp_path / "cric", tmp_path / "other")
    assert cells.class_names == ("SCC", "NILM", "Parabasal")
    assert sorted(classes_of(cells)) == ["NILM", "NILM", "Parabasal", "SCC"]
    assert len({image.name for image in cells.images}) == 4


def test_duplicates_share_a_group_and_are_reported(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", 1)
    save(tmp_path / "a" / "2.png", 2)
    save(tmp_path / "b" / "3.png", 3)
    (tmp_path / "b" / "again.png").write_bytes((tmp_path / "a" / "1.png").read_bytes())
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    cells = load_cells(tmp_path)
    group = {image.name: group for image, group in zip(cells.images, cells.groups, strict=True)}
    assert group["a/1.png"] == group["b/again.png"]
    assert len(set(group.values())) == 3
    text = "\n".join(cells.report())
    assert "4 cells of 2 classes in 3 groups (by file)" in text
    assert (
        "2 images are the same as others pixel by pixel, in 1 sets; 1 sets lie across classes"
        in text
    )
    assert "a/1.png (a), b/again.png (b)" in text
    assert "skipped 1, no image: b/notes.txt" in text
    assert cells.to_json()["skipped"] == [{"name": "b/notes.txt", "why": "no image"}]
