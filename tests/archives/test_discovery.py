"""From given paths to slides: every file is a slide, a part of one, or listed as ignored."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cvm_batch.archives import discovery
from cvm_batch.archives.discovery import Discovery
from cvm_batch.archives.formats import FORMATS, recognise
from cvm_batch.archives.opening import Opening
from cvm_batch.archives.places.disk import DiskPlace
from cvm_batch.errors import (
    BadFormatError,
    InputChangedError,
    NoSlidesError,
    ReadError,
    SlideIdCollisionError,
)
from tests.archives.making import (
    cells,
    encode,
    image_names,
    write_folder,
    write_table,
    write_zarr,
    write_zip,
)
from tests.archives.reading import identity_at, open_at
from tests.archives.wsi_making import write_svs, write_tiff

TILES = cells(2).tiles


def discover(roots: Sequence[Path]) -> Discovery:
    return discovery.discover([str(root) for root in roots])


def named(found: Discovery) -> list[tuple[str, Path]]:
    return [(slide.slide_id, Path(slide.address.uri)) for slide in found.slides]


def ids(found: Discovery) -> list[str]:
    return [slide.slide_id for slide in found.slides]


def ignored(found: Discovery, root: Path) -> dict[str, str]:
    return {Path(uri).relative_to(root).as_posix(): why for uri, why in found.ignored}


def test_every_format_is_found_below_a_root(tmp_path: Path) -> None:
    write_zip(tmp_path / "one.zip", TILES)
    write_zip(tmp_path / "night" / "ONE.ZIP", TILES)
    write_zarr(tmp_path / "night" / "two.zarr", TILES)
    write_zarr(tmp_path / "night" / "three.zarr.zip", TILES)
    write_zarr(tmp_path / "night" / "unnamed", TILES, zarr_format=2)
    write_folder(tmp_path / "night" / "deep" / "crops", TILES, ".JPG".lower())
    found = discover([tmp_path])
    assert ids(found) == [
        "night/ONE.ZIP",
        "night/deep/crops",
        "night/three.zarr.zip",
        "night/two.zarr",
        "night/unnamed",
        "one.zip",
    ]
    assert found.ignored == ()
    for slide in found.slides:
        path = tmp_path / slide.slide_id
        assert slide.address.uri == str(path)
        archive = open_at(path)
        assert archive.describe().tiles == 2
        archive.close()


def test_a_root_that_is_a_slide_has_its_own_name(tmp_path: Path) -> None:
    roots = [
        write_zip(tmp_path / "a" / "one.zip", TILES),
        write_zarr(tmp_path / "b" / "two.zarr", TILES),
        write_folder(tmp_path / "c" / "crops", TILES),
    ]
    assert ids(discover(roots)) == ["crops", "one.zip", "two.zarr"]


def test_relative_roots_are_named_and_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "crops", TILES)
    monkeypatch.chdir(tmp_path / "crops")
    for root in (Path("."), Path("../crops"), Path("../crops/../crops")):
        assert named(discover([root])) == [("crops", tmp_path / "crops")]
    monkeypatch.chdir(tmp_path)
    assert named(discover([Path()])) == [("crops", tmp_path / "crops")]


def test_folders_inside_an_image_folder_are_slides_of_their_own(tmp_path: Path) -> None:
    write_folder(tmp_path / "slide", TILES)
    write_folder(tmp_path / "slide" / "again", TILES)
    write_zip(tmp_path / "slide" / "more.zip", TILES)
    (tmp_path / "slide" / "empty").mkdir()
    (tmp_path / "slide" / "notes.txt").touch()
    found = discover([tmp_path])
    assert ids(found) == ["slide", "slide/again", "slide/more.zip"]
    assert set(ignored(found, tmp_path)) == {"slide/empty", "slide/notes.txt"}


def test_folders_inside_a_zarr_are_not(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", TILES)
    write_folder(path / "thumbnails", TILES)
    assert ids(discover([tmp_path])) == ["a.zarr"]


def test_what_is_ignored_is_listed_with_its_reason(tmp_path: Path) -> None:
    write_zip(tmp_path / "one.zip", TILES)
    write_zarr(tmp_path / "two.zarr", TILES)
    (tmp_path / "empty").mkdir()
    (tmp_path / "readme.txt").touch()
    (tmp_path / "two.cells.csv").touch()
    (tmp_path / "lost.cells.parquet").touch()
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.zip")
    why = ignored(discover([tmp_path]), tmp_path)
    assert why == {
        "empty": "an empty folder",
        "readme.txt": "not a slide archive of a known format",
        "two.cells.csv": "a cells table, with no slide or folder of images of its name beside it",
        "lost.cells.parquet": why["two.cells.csv"],
        "broken": "neither a file nor a folder, or a link that leads nowhere",
        "pipe.zip": why["broken"],
    }


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    write_folder(tmp_path / ".snapshots", TILES)
    write_folder(tmp_path / "slide" / ".thumbnails", TILES)
    (tmp_path / ".DS_Store").touch()
    found = discover([tmp_path])
    assert found.slides == ()
    assert ignored(found, tmp_path) == {"slide": "an empty folder"}


def test_cells_tables_belong_to_their_slides(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.b.zip", TILES)
    write_folder(tmp_path / "c.d", TILES)
    write_folder(tmp_path / "e", TILES)
    for table in ("a.b.cells.csv", "c.d.cells.parquet", "e/cells.csv"):
        write_table(tmp_path / table, {"file": image_names(2)})
    found = discover([tmp_path])
    assert ids(found) == ["a.b.zip", "c.d", "e"]
    assert found.ignored == ()


def test_a_table_whose_images_are_missing_is_a_slide(tmp_path: Path) -> None:
    (tmp_path / "slide").mkdir()
    write_table(tmp_path / "slide" / "cells.csv", {"file": image_names(2)})
    assert ids(discover([tmp_path])) == ["slide"]


def test_tiffs_with_cells_tables_are_whole_slides_and_not_crops(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tiff(tmp_path / f"{name}.tif", np.zeros((64, 64, 3), np.uint8))
    write_table(tmp_path / "a.cells.csv", {"x": [30], "y": [30]})
    (tmp_path / "thumbnail.png").write_bytes(encode(cells(1).tiles[0]))
    found = discover([tmp_path])
    assert ids(found) == ["a.tif", "b.tif"]
    assert ignored(found, tmp_path).keys() == {"thumbnail.png"}


def test_a_picture_beside_whole_slides_is_no_slide(tmp_path: Path) -> None:
    write_svs(tmp_path / "night" / "a.svs", np.zeros((64, 64, 3), np.uint8))
    write_table(tmp_path / "night" / "a.cells.csv", {"x": [30], "y": [30]})
    (tmp_path / "night" / "a.png").write_bytes(encode(cells(1).tiles[0]))
    found = discover([tmp_path])
    assert ids(found) == ["night/a.svs"]
    assert ignored(found, tmp_path).keys() == {"night/a.png"}


def test_a_dicom_file_hides_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "night").mkdir()
    (tmp_path / "night" / "a.dcm").write_bytes(b"no slide, but taken for one")
    write_zip(tmp_path / "night" / "b.zip", TILES)
    (tmp_path / "night" / "notes.txt").write_text("")
    found = discover([tmp_path])
    assert ids(found) == ["night", "night/b.zip"]
    assert ignored(found, tmp_path).keys() == {"night/notes.txt"}


def test_a_root_given_twice_is_told_as_such(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", TILES)
    with pytest.raises(SlideIdCollisionError, match="given twice"):
        discover([path, path])


def test_a_table_above_folders_is_not(tmp_path: Path) -> None:
    write_folder(tmp_path / "class" / "a", TILES)
    write_table(tmp_path / "class" / "cells.csv", {"file": image_names(2)})
    found = discover([tmp_path])
    assert ids(found) == ["class/a"]
    assert set(ignored(found, tmp_path)) == {"class/cells.csv"}


def test_one_stem_in_two_folders_makes_two_ids(tmp_path: Path) -> None:
    write_zip(tmp_path / "a" / "slide.zip", TILES)
    write_zip(tmp_path / "b" / "slide.zip", TILES)
    assert ids(discover([tmp_path])) == ["a/slide.zip", "b/slide.zip"]


def test_one_id_from_two_roots_is_an_error_that_names_both(tmp_path: Path) -> None:
    write_zip(tmp_path / "a" / "slide.zip", TILES)
    write_zip(tmp_path / "b" / "slide.zip", TILES)
    with pytest.raises(SlideIdCollisionError) as caught:
        discover([tmp_path / "a", tmp_path / "b"])
    for part in (tmp_path / "a/slide.zip", tmp_path / "b/slide.zip", "'slide.zip'"):
        assert str(part) in str(caught.value)


def test_a_root_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoSlidesError, match="There is nothing at"):
        discover([tmp_path / "nowhere"])


def test_names_of_all_kinds_survive(tmp_path: Path) -> None:
    names = ["Müller, 7.zip", "zwei\nZeilen.zip", "細胞.zip", " leer .zip", "y" * 250 + ".zip"]
    for name in names:
        write_zip(tmp_path / name, TILES)
    os.rename(
        write_zip(tmp_path / "x.zip", TILES), os.path.join(os.fsencode(tmp_path), b"\xfc.zip")
    )
    found = discover([tmp_path])
    assert ids(found) == sorted([*names, "\\xfc.zip"])
    assert all(open_at(Path(slide.address.uri)).describe().tiles == 2 for slide in found.slides)


def test_links_do_not_lead_in_circles(tmp_path: Path) -> None:
    write_zip(tmp_path / "real" / "slide.zip", TILES)
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "real" / "self").symlink_to("self")
    (tmp_path / "a-link").symlink_to("real")
    found = discover([tmp_path])
    assert ids(found) == ["real/slide.zip"]
    assert set(ignored(found, tmp_path)) == {"a-link", "real/up", "real/self"}


def test_linked_slides_are_found(tmp_path: Path) -> None:
    (tmp_path / "tonight").mkdir()
    for target in (
        write_zip(tmp_path / "disk" / "one.zip", TILES),
        write_folder(tmp_path / "disk" / "crops", TILES),
        write_zip(tmp_path / "box" / "two.zip", TILES).parent,
    ):
        (tmp_path / "tonight" / target.name).symlink_to(target)
    assert ids(discover([tmp_path / "tonight"])) == ["box/two.zip", "crops", "one.zip"]


def test_order_does_not_depend_on_that_of_the_roots(tmp_path: Path) -> None:
    roots = [write_zip(tmp_path / name, TILES) for name in ("b.zip", "a.zip", "c.zip")]
    assert discover(roots) == discover(roots[::-1])


class TestFormats:
    def test_each_has_a_name_of_its_own(self) -> None:
        assert len({known.name for known in FORMATS}) == len(FORMATS)

    def test_a_path_that_no_format_takes_is_bad_format(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").touch()
        for path in (tmp_path, tmp_path / "notes.txt"):
            assert recognise(DiskPlace.of(path)) is None
            with pytest.raises(BadFormatError, match="is no slide archive: known are zarr"):
                open_at(path)

    def test_a_path_that_is_not_there_may_come_back(self, tmp_path: Path) -> None:
        with pytest.raises(ReadError, match="There is nothing at"):
            open_at(tmp_path / "slide.zip")

    def test_a_damaged_archive_has_an_identity(self, tmp_path: Path) -> None:
        path = write_zip(tmp_path / "slide.zip", TILES)
        whole = identity_at(path)
        path.write_bytes(b"damaged")
        damaged = identity_at(path)
        assert damaged != whole
        with pytest.raises(BadFormatError):
            open_at(path)
        assert identity_at(path) == damaged

    def test_an_archive_deleted_while_it_is_opened_is_a_changed_input(self, tmp_path: Path) -> None:
        known = recognise(DiskPlace.of(write_zip(tmp_path / "slide.zip", TILES)))
        (tmp_path / "slide.zip").unlink()
        assert known is not None
        with pytest.raises(InputChangedError, match="is gone"):
            known.open(Opening(place=DiskPlace.of(tmp_path / "slide.zip")))
