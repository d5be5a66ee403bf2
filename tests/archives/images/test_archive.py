"""Crops: what is decoded how, what is no tile, and the cells table."""

from __future__ import annotations

import os
import pickle
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvm_batch.archives.archive import ExpectedFrom
from cvm_batch.archives.places import disk as disk_places
from cvm_batch.archives.tables import cells as cells_table
from cvm_batch.errors import (
    BadFormatError,
    EmptyArchiveError,
    InputChangedError,
    OverLimitError,
    ReadError,
    Reason,
    SlideError,
    UnsafeArchiveError,
)
from tests.archives.contract import assert_block
from tests.archives.making import (
    Cells,
    cells,
    encode,
    image_names,
    table_of,
    write_folder,
    write_table,
    write_zip,
    write_zip_members,
)
from tests.archives.reading import describe, identity_at, open_at, read_all

COUNT = 6


@pytest.fixture(scope="module")
def slide() -> Cells:
    return cells(COUNT)


@pytest.fixture
def folder(slide: Cells, tmp_path: Path) -> Path:
    return write_folder(tmp_path / "slide", slide.tiles)


class TestUnreadableTiles:
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
    def test_a_truncated_image_is_marked_and_the_rest_is_right(
        self, tmp_path: Path, suffix: str
    ) -> None:
        slide = cells(COUNT, px=(40, 40))
        folder = write_folder(tmp_path / "slide", slide.tiles, suffix)
        whole = read_all(folder)
        victim = folder / f"00002{suffix}"
        victim.write_bytes(victim.read_bytes()[:-400])
        block = read_all(folder)
        assert block.readable.tolist() == [True, True, False, True, True, True]
        assert set(block.faults) == {2}
        assert block.faults[2].reason is Reason.UNREADABLE_TILES
        assert f"00002{suffix}" in block.faults[2].detail
        assert not block.tiles[2].any()
        np.testing.assert_array_equal(block.tiles[block.readable], whole.tiles[block.readable])

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    @pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"II*\0" * 9])
    def test_garbage_is_marked(self, slide: Cells, folder: Path, content: bytes) -> None:
        (folder / "00004.png").write_bytes(content)
        assert_block(read_all(folder), slide, 0, {4: Reason.UNREADABLE_TILES})

    def test_garbage_in_a_zip_is_marked(self, slide: Cells, tmp_path: Path) -> None:
        members = dict(zip(image_names(COUNT), map(encode, slide.tiles), strict=True))
        path = write_zip_members(tmp_path / "slide.zip", members | {"00001.png": b"no image"})
        assert_block(read_all(path), slide, 0, {1: Reason.UNREADABLE_TILES})

    def test_a_block_without_a_readable_tile_has_tiles_all_the_same(self, tmp_path: Path) -> None:
        path = write_zip_members(tmp_path / "slide.zip", {"a.png": b"", "b.png": b""})
        block = read_all(path)
        assert block.tiles.shape[0] == 2
        assert not block.readable.any()

    def test_sizes_may_vary(self, tmp_path: Path) -> None:
        tiles = [cells(1, px=px, seed=px[0]).tiles[0] for px in [(8, 9), (10, 7), (8, 9)]]
        folder = write_folder(tmp_path / "slide", tiles)
        (folder / "00001a.png").write_bytes(b"")
        block = read_all(folder)
        assert isinstance(block.tiles, list)
        assert block.readable.tolist() == [True, True, False, True]
        for position, tile in zip([0, 1, 3], tiles, strict=True):
            np.testing.assert_array_equal(block.tiles[position], tile)
        assert block.tiles[2].dtype == np.uint8
        with closing(open_at(folder)) as archive:
            assert isinstance(archive.read(0, 1).tiles, np.ndarray)


class TestWhatIsATile:
    def test_other_and_hidden_files_are_none(self, slide: Cells, folder: Path) -> None:
        for name in ("Thumbs.db", "notes.txt", ".hidden.png", "._00000.png"):
            (folder / name).write_bytes(b"no tile")
        (folder / "sub").mkdir()
        (folder / "sub" / "00000.png").write_bytes(encode(slide.tiles[0]))
        assert_block(read_all(folder), slide, 0, {})
        assert read_all(folder).cell_id == image_names(COUNT)
        assert read_all(folder).xy is None

    def test_files_that_are_no_tiles_do_not_change_the_identity(self, folder: Path) -> None:
        before = identity_at(folder)
        (folder / "Thumbs.db").write_bytes(b"")
        assert identity_at(folder) == before
        (folder / "00006.png").write_bytes(b"")
        assert identity_at(folder) != before

    def test_a_zip_takes_its_sub_folders_in_by_order_of_names(
        self, slide: Cells, tmp_path: Path
    ) -> None:
        names = ["b/2.png", "a/9.png", "c.png", "a/10.png"]
        members = dict(zip(names, map(encode, slide.tiles), strict=False))
        block = read_all(write_zip_members(tmp_path / "slide.zip", members))
        assert block.cell_id == ["a/10.png", "a/9.png", "b/2.png", "c.png"]
        np.testing.assert_array_equal(block.tiles, slide.tiles[[3, 1, 0, 2]])

    def test_names_of_all_kinds_survive(self, slide: Cells, tmp_path: Path) -> None:
        folder = tmp_path / "Probe Nr. 7\nzweite"
        folder.mkdir()
        names = ["zelle ä.png", "new\nline.png", "細胞.png", "x" * 200 + ".png"]
        for name in names:
            (folder / name).write_bytes(encode(slide.tiles[0]))
        raw = os.fsencode(folder) + b"/not-utf8-\xff.png"
        Path(os.fsdecode(raw)).write_bytes(encode(slide.tiles[0]))
        block = read_all(folder)
        assert sorted(block.cell_id) == sorted([*names, "not-utf8-\\xff.png"])
        assert block.readable.all()

    def test_a_linked_file_is_followed(self, slide: Cells, folder: Path, tmp_path: Path) -> None:
        (folder / "00003.png").rename(tmp_path / "elsewhere.png")
        (folder / "00003.png").symlink_to(tmp_path / "elsewhere.png")
        assert_block(read_all(folder), slide, 0, {})

    @pytest.mark.parametrize("target", ["nowhere.png", "x.png"])
    def test_a_link_that_leads_nowhere_is_bad_format(self, folder: Path, target: str) -> None:
        (folder / "x.png").symlink_to(target)
        with pytest.raises(BadFormatError, match="leads nowhere"):
            describe(folder)

    def test_too_many_files_are_refused(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(disk_places, "MAX_MEMBERS", COUNT - 1)
        with pytest.raises(OverLimitError, match=r"slide holds more than \d+ files"):
            describe(folder)

    def test_a_pipe_is_refused_rather_than_waited_for(self, folder: Path) -> None:
        os.mkfifo(folder / "x.png")
        with pytest.raises(UnsafeArchiveError, match="pipe"):
            describe(folder)


class TestReadingFails:
    def test_an_io_error_is_a_read_error(self, folder: Path) -> None:
        # The kernel answers EIO to whoever reads this file at 0, root included.
        (folder / "00003.png").unlink()
        (folder / "00003.png").symlink_to("/proc/self/mem")
        with pytest.raises(ReadError, match=r"00003\.png cannot be read: Input/output error"):
            read_all(folder)

    def test_a_file_that_vanishes_is_a_changed_input(self, folder: Path) -> None:
        with closing(open_at(folder)) as archive:
            (folder / "00003.png").unlink()
            with pytest.raises(InputChangedError, match=r"00003\.png is gone"):
                archive.read(0, COUNT)

    def test_a_file_that_grows_is_a_changed_input(self, folder: Path) -> None:
        with closing(open_at(folder)) as archive:
            with (folder / "00003.png").open("ab") as file:
                file.write(b"more")
            with pytest.raises(InputChangedError, match=r"00003\.png changed"):
                archive.read(0, COUNT)

    def test_describe_asks_the_files_anew(self, slide: Cells, folder: Path) -> None:
        with closing(open_at(folder)) as archive:
            before = archive.describe()
            (folder / "00099.png").write_bytes(encode(slide.tiles[0]))
            after = archive.describe()
            assert (before.tiles, after.tiles) == (COUNT, COUNT + 1)
            assert before.identity != after.identity


class TestCellsTable:
    @pytest.mark.parametrize("suffix", [".csv", ".parquet"])
    @pytest.mark.parametrize("inside", [True, False])
    def test_a_table_gives_order_ids_and_coordinates(
        self, slide: Cells, folder: Path, suffix: str, inside: bool
    ) -> None:
        place = folder / f"cells{suffix}" if inside else Path(f"{folder}.cells{suffix}")
        order = np.random.default_rng(1).permutation(COUNT)
        names = [image_names(COUNT)[index] for index in order]
        write_table(place, table_of(slide, names))
        block = read_all(folder)
        np.testing.assert_array_equal(block.tiles, slide.tiles[order])
        np.testing.assert_array_equal(block.xy, slide.xy)
        assert block.cell_id == slide.cell_id
        assert describe(folder).expected_from is ExpectedFrom.CELLS_TABLE

    def test_a_table_in_a_folder_of_a_zip_names_its_neighbours(
        self, slide: Cells, tmp_path: Path
    ) -> None:
        names = [f"slide/{name}" for name in image_names(COUNT)]
        members = dict(zip(names, map(encode, slide.tiles), strict=True))
        members["slide/cells.csv"] = b"file\n" + "\n".join(image_names(COUNT)).encode()
        block = read_all(write_zip_members(tmp_path / "slide.zip", members))
        assert block.cell_id == names
        assert block.xy is None

    def test_the_table_is_part_of_the_identity(self, slide: Cells, tmp_path: Path) -> None:
        path = write_zip(tmp_path / "a.b.zip", slide.tiles)
        identities = {describe(path).identity}
        table = tmp_path / "a.b.cells.csv"
        for ids in (slide.cell_id, [*slide.cell_id[:-1], "another"]):
            write_table(table, {"file": image_names(COUNT), "cell_id": ids})
            identities.add(describe(path).identity)
        assert len(identities) == 3

    def test_a_named_image_that_is_not_there_is_missing(self, slide: Cells, folder: Path) -> None:
        names = [*image_names(COUNT), "00099.png", "../slide/00000.png"]
        write_table(folder / "cells.csv", {"file": names})
        block = read_all(folder)
        assert block.readable.tolist() == [True] * COUNT + [False, False]
        assert {fault.reason for fault in block.faults.values()} == {Reason.MISSING_TILES}
        assert "00099.png" in block.faults[COUNT].detail

    def test_an_image_that_the_table_does_not_name_is_bad_format(self, folder: Path) -> None:
        write_table(folder / "cells.csv", {"file": image_names(COUNT)[1:]})
        with pytest.raises(BadFormatError, match=r"does not name: '00000\.png'"):
            describe(folder)

    def test_whole_numbers_are_ids_too(self, folder: Path) -> None:
        write_table(folder / "cells.parquet", {"file": image_names(COUNT), "cell_id": range(COUNT)})
        assert read_all(folder).cell_id == ["0", "1", "2", "3", "4", "5"]

    def test_names_with_commas_quotes_and_newlines(self, slide: Cells, tmp_path: Path) -> None:
        names = ['a,"b".png', "new\nline.png", "NA.png"]
        folder = tmp_path / "slide"
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(encode(slide.tiles[0]))
        write_table(folder / "cells.csv", {"file": names, "cell_id": ["NA", "null", "-"]})
        block = read_all(folder)
        assert block.readable.all()
        assert block.cell_id == ["NA", "null", "-"]

    def test_a_table_without_images_is_empty(self, tmp_path: Path) -> None:
        (tmp_path / "slide").mkdir()
        write_table(tmp_path / "slide" / "cells.csv", {"file": ["a.png"]})
        with pytest.raises(EmptyArchiveError):
            describe(tmp_path / "slide")

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("", "cannot be read"),
            ("name,x,y\n00000.png,1,2\n", "no column 'file'"),
            ("file,x\n00000.png,1\n", "one of the columns x and y"),
            ("file,file\n00000.png,00000.png\n", "column 'file' twice"),
            ("file\n00000.png\n00000.png\n", "more than once"),
            ("file,x,y\n00000.png,1,zwei\n", "cannot be read"),
            ("file,x,y\n00000.png,1,\n", "column 'y' has no value in data row 1"),
            ("file,x,y\n00000.png,1,inf\n", "data row 1 is not finite"),
            ("file,x,y\n00000.png,1,nan\n", "data row 1"),
            ("file,x,y\n00000.png,1\n", "cannot be read"),
            ("file,cell_id\n00000.png,\n", "column 'cell_id' has no value"),
            ("\xff\xfe", "cannot be read"),
        ],
    )
    def test_a_bad_csv_is_bad_format(self, folder: Path, text: str, why: str) -> None:
        (folder / "cells.csv").write_bytes(text.encode("latin-1"))
        with pytest.raises(BadFormatError, match=why) as caught:
            describe(folder)
        assert "cells.csv" in str(caught.value)

    @pytest.mark.parametrize(
        ("columns", "why"),
        [
            ({"file": [b"00000.png"]}, "holds binary"),
            ({"file": [None]}, "no value in data row 1"),
            ({"file": ["00000.png"], "x": ["1"], "y": ["2"]}, "not numbers"),
            ({"file": ["00000.png"], "x": [1.0], "y": [float("nan")]}, "not finite"),
            ({"file": ["00000.png"], "cell_id": [1.5]}, "holds double"),
        ],
    )
    def test_a_bad_parquet_is_bad_format(
        self, folder: Path, columns: dict[str, list[Any]], why: str
    ) -> None:
        write_table(folder / "cells.parquet", columns)
        with pytest.raises(BadFormatError, match=why):
            describe(folder)

    def test_a_damaged_parquet_is_bad_format(self, folder: Path) -> None:
        table = write_table(folder / "cells.parquet", {"file": image_names(COUNT)})
        whole = table.read_bytes()
        for damaged in (b"", whole[:-9], whole[:40], bytes(len(whole))):
            table.write_bytes(damaged)
            with pytest.raises(BadFormatError, match="cannot be read as a cells table"):
                describe(folder)

    def test_a_table_beyond_the_limits_is_refused(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_table(folder / "cells.parquet", {"file": image_names(COUNT)})
        for limit in ("MAX_MEMBERS", "MAX_TABLE_BYTES"):
            with monkeypatch.context() as patch:
                patch.setattr(cells_table, limit, COUNT - 1)
                with pytest.raises(OverLimitError, match=r"cells\.parquet"):
                    describe(folder)

    def test_two_tables_are_bad_format(self, folder: Path) -> None:
        write_table(folder / "cells.csv", {"file": image_names(COUNT)})
        write_table(Path(f"{folder}.cells.parquet"), {"file": image_names(COUNT)})
        with pytest.raises(BadFormatError, match="2 cells tables"):
            describe(folder)


def test_every_error_survives_the_way_to_the_driver(folder: Path) -> None:
    (folder / "x.png").symlink_to("nowhere.png")
    with pytest.raises(SlideError) as caught:
        describe(folder)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
