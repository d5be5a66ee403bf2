from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvm_batch.errors import DataSetError
from cvm_batch.training.datasets import LabelledCells, load_cells
from cvm_batch.training.datasets.labelled import class_order, read_tile
from tests.training.conftest import COLUMNS, write_cells, write_table


def names(cells: LabelledCells) -> list[str]:
    return sorted(image.name for image in cells.images)


@pytest.fixture
def own(data: Path, tmp_path: Path) -> Path:
    """A copy of the data set that may be damaged."""
    return Path(shutil.copytree(data, tmp_path / "own"))


def test_a_table_gives_labels_frames_and_ids(data: Path) -> None:
    cells = load_cells(data)
    assert len(cells) == 120
    assert cells.class_names == ("ASC-H", "HSIL", "NILM")
    assert cells.images[1].name == "HSIL/0001.jpg"
    assert cells.labels[:3].tolist() == [2, 1, 0]
    assert cells.groups[11:13] == ("frame0", "frame1")
    assert cells.grouped_by == "frame"
    assert cells.cell_ids[1] == "0001"
    np.testing.assert_array_equal(cells.read(1), read_tile(data / "HSIL/0001.jpg"))


def test_folders_alone_give_labels(own: Path) -> None:
    (own / "cells.csv").unlink()
    (own / "NILM" / "notes.txt").write_text("not an image")
    cells = load_cells(own)
    assert len(cells) == 120
    assert cells.class_names == ("ASC-H", "HSIL", "NILM")
    assert names(cells) == names(load_cells(write_cells(own)))
    assert len(set(cells.groups)) == 120


def test_without_frames_identical_files_stay_together(own: Path) -> None:
    (own / "cells.csv").unlink()
    shutil.copy(own / "NILM/0000.jpg", own / "NILM/copy.jpg")
    cells = load_cells(own)
    group = {image.name: g for image, g in zip(cells.images, cells.groups, strict=True)}
    assert group["NILM/copy.jpg"] == group["NILM/0000.jpg"]
    assert len(set(cells.groups)) == 120
    assert cells.grouped_by == "file"


def test_the_papers_classes_come_first_and_in_its_order() -> None:
    assert class_order(["zebra", "NILM", "SCC", "ant", "ASC-US", "SCC"]) == (
        "ASC-US",
        "SCC",
        "NILM",
        "ant",
        "zebra",
    )


def test_digest_follows_names_contents_and_labels(data: Path, own: Path) -> None:
    digest = load_cells(data).digest
    assert load_cells(own).digest == digest

    table = (own / "cells.csv").read_text()
    head, *rows = table.splitlines()
    (own / "cells.csv").write_text("\n".join([head, *reversed(rows)]))
    assert load_cells(own).digest == digest

    (own / "cells.csv").write_text(table.replace("NILM/0000.jpg,NILM", "NILM/0000.jpg,HSIL"))
    assert load_cells(own).digest != digest

    (own / "cells.csv").write_text(table)
    shutil.copy(own / "NILM/0003.jpg", own / "NILM/0000.jpg")
    assert load_cells(own).digest != digest


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"No data set at .*nowhere"):
        load_cells(tmp_path / "nowhere")


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="0 images of 0 classes"):
        load_cells(tmp_path)


def test_a_missing_file_is_named(own: Path) -> None:
    (own / "NILM/0000.jpg").unlink()
    with pytest.raises(DataSetError, match=r"1 files that are not there, the first 'NILM/0000"):
        load_cells(own)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("file", "label", "cell_id", "slide"), "missing: frame; unknown: slide"),
        ((*COLUMNS, "patient"), "missing: none; unknown: patient"),
        ((), "missing: file, label, cell_id, frame"),
    ],
)
def test_columns_are_checked(own: Path, columns: tuple[str, ...], message: str) -> None:
    write_table(own, [], columns)
    with pytest.raises(DataSetError, match=message):
        load_cells(own)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["", "NILM", "1", "f"], "row 3: nothing under file"),
        (["NILM/0003.jpg", "", "1"], "row 3: nothing under label, frame"),
        (["../0003.jpg", "NILM", "1", "f"], "row 3: '../0003.jpg' lies outside"),
        (["/0003.jpg", "NILM", "1", "f"], "row 3: '/0003.jpg' lies outside"),
        (["NILM/0000.jpg", "NILM", "1", "f"], "row 3: 'NILM/0000.jpg' is listed a second time"),
    ],
)
def test_rows_are_checked(own: Path, row: list[object], message: str) -> None:
    write_table(
        own, [["NILM/0000.jpg", "NILM", "0", "f"], row], ("file", "label", "cell_id", "frame")
    )
    with pytest.raises(DataSetError, match=message):
        load_cells(own)


def test_a_table_that_is_no_text_is_refused(own: Path) -> None:
    (own / "cells.csv").write_bytes(b"file,label\n\xff\xfe\x00")
    with pytest.raises(DataSetError, match="cannot be read as a CSV table"):
        load_cells(own)


def test_tiles_are_read_as_rgb_at_their_own_size(tmp_path: Path) -> None:
    Image.new("L", (7, 5), 200).save(tmp_path / "grey.png")
    tile = read_tile(tmp_path / "grey.png")
    assert tile.shape == (5, 7, 3)
    assert tile.dtype == np.uint8
    assert (tile == 200).all()


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 not a JPEG")
    with pytest.raises(DataSetError, match=r"a\.jpg does not decode"):
        read_tile(tmp_path / "a.jpg")
