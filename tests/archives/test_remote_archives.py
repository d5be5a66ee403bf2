"""Slides on object storage and web servers give the same tiles as the same files on a disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import SlideArchive, TileBlock
from cvm_batch.archives.contents import changed_at, content_of
from cvm_batch.archives.discovery import discover
from cvm_batch.archives.formats import identity_of, open_archive
from cvm_batch.archives.places.local_copies import BYTES_VARIABLE, FOLDER_VARIABLE
from cvm_batch.errors import BadFormatError, InputChangedError, OverLimitError, UsageError
from tests.archives.making import (
    Cells,
    cells,
    image_names,
    table_of,
    write_folder,
    write_table,
    write_tar,
    write_zarr,
    write_zip,
)
from tests.archives.object_store import S3, Fault, Web, is_read, serving_files, serving_s3
from tests.archives.wsi_making import write_tiff

COUNT, SIDE, COLUMNS = 24, 16, 6
NAMES = [
    "folder",
    "night/packed.zarr.zip",
    "night/v2.zarr",
    "night/v3.zarr",
    "tar.tar",
    "whole.tif",
    "zip.zip",
]


def the_cells() -> Cells:
    """On a grid, so that a whole slide can hold them."""
    rows, columns = np.divmod(np.arange(COUNT), COLUMNS)
    xy = np.stack([columns, rows], axis=1) * SIDE + SIDE / 2
    return Cells(cells(COUNT, px=(SIDE, SIDE)).tiles, xy, [f"cell-{n}" for n in range(COUNT)])


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One slide in each format, on a disk."""
    folder, slide = tmp_path_factory.mktemp("slides"), the_cells()
    tiles = np.asarray(slide.tiles)
    for name, form in (("v2.zarr", 2), ("v3.zarr", 3), ("packed.zarr.zip", 3)):
        write_zarr(
            folder / "night" / name,
            tiles,
            xy=slide.xy,
            cell_id=slide.cell_id,
            zarr_format=form,
            chunk=7,
        )
    write_folder(folder / "folder", tiles)
    write_zip(folder / "zip.zip", tiles)
    write_tar(folder / "tar.tar", slide)
    for stem in ("folder", "zip", "tar"):
        write_table(folder / f"{stem}.cells.csv", table_of(slide, image_names(COUNT)))
    _write_whole_slide(folder / "whole.tif", slide)
    return folder


def _write_whole_slide(path: Path, slide: Cells) -> None:
    grid = np.asarray(slide.tiles).reshape(-1, COLUMNS, SIDE, SIDE, 3)
    write_tiff(path, grid.transpose(0, 2, 1, 3, 4).reshape(-1, COLUMNS * SIDE, 3))
    columns = {name: values for name, values in table_of(slide, ()).items() if name != "file"}
    side = [SIDE] * len(slide)
    write_table(path.with_name("whole.cells.csv"), columns | {"width": side, "height": side})


@pytest.fixture(scope="module")
def s3(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """Object storage that holds the folder of slides as ``s3://slides/lab``."""
    with serving_s3() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(tmp_path_factory.mktemp("copies")))
        server.put_all(slides, "lab")
        yield server


@pytest.fixture
def web() -> Iterator[Web]:
    with serving_files() as server:
        yield server


def open_uri(uri: str) -> SlideArchive:
    return open_archive(SlideAddress(uri=uri))


def read_uri(uri: str) -> TileBlock:
    with closing(open_uri(uri)) as archive:
        return archive.read(0, archive.describe().tiles)


def assert_same(block: TileBlock, other: TileBlock) -> None:
    assert block.readable.all()
    np.testing.assert_array_equal(block.tiles, other.tiles)
    np.testing.assert_array_equal(block.xy, other.xy)
    assert block.cell_id == other.cell_id


@pytest.mark.parametrize("name", NAMES)
def test_the_same_tiles_as_on_the_disk(s3: S3, slides: Path, name: str) -> None:
    block = read_uri(s3.uri(f"lab/{name}"))
    assert_same(block, read_uri(str(slides / name)))
    by_id = dict(zip(block.cell_id or (), block.tiles, strict=True))
    slide = the_cells()
    for cell_id, tile in zip(slide.cell_id, slide.tiles, strict=True):
        np.testing.assert_array_equal(by_id[cell_id], tile)


@pytest.mark.parametrize("name", NAMES)
def test_the_identity_is_stable_and_known_without_opening(s3: S3, name: str) -> None:
    address = SlideAddress(uri=s3.uri(f"lab/{name}"))
    with closing(open_archive(address)) as archive:
        info = archive.describe()
        assert info.tiles == COUNT
        assert archive.describe() is info
    assert identity_of(address) == info.identity


@pytest.mark.parametrize("name", NAMES)
def test_what_it_holds_and_when_it_came(s3: S3, slides: Path, name: str) -> None:
    address = SlideAddress(uri=s3.uri(f"lab/{name}"))
    on_disk = content_of(SlideAddress(uri=str(slides / name)))
    assert content_of(address).identity == on_disk.identity
    assert content_of(address).stamps == identity_of(address) != on_disk.stamps
    assert time.time() - 3600 < changed_at(address) < time.time() + 60


@pytest.mark.parametrize("name", ["night/v3.zarr", "zip.zip"])
def test_what_passes_while_reading_changes_nothing(s3: S3, slides: Path, name: str) -> None:
    s3.fail(503, times=1)
    block = read_uri(s3.uri(f"lab/{name}"))
    s3.fail(Fault.CUT, times=1, only=is_read)
    assert_same(read_uri(s3.uri(f"lab/{name}")), block)
    assert_same(block, read_uri(str(slides / name)))


def test_discovery_finds_them_by_the_same_names(s3: S3, slides: Path) -> None:
    s3.put("lab/notes.txt", b"nothing")
    found = discover([s3.uri("lab")])
    assert [slide.slide_id for slide in found.slides] == NAMES
    assert [slide.slide_id for slide in discover([str(slides)]).slides] == NAMES
    assert [slide.address.uri for slide in found.slides] == [s3.uri(f"lab/{n}") for n in NAMES]
    assert [ignored.uri for ignored in found.ignored] == [s3.uri("lab/notes.txt")]


def test_a_manifest_on_object_storage(s3: S3) -> None:
    uri = s3.put(
        "lists/night.csv", b"slide_id,uri\none,../lab/zip.zip\ntwo,s3://slides/lab/tar.tar"
    )
    found = discover([uri])
    assert [slide.slide_id for slide in found.slides] == ["one", "two"]
    assert len(read_uri(found.slides[1].address.uri)) == COUNT


@pytest.mark.parametrize("name", ["large.zip", "large.zarr.zip"])
def test_a_part_of_a_zip_is_read_in_ranges(s3: S3, tmp_path: Path, name: str) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (400, 64, 64, 3), np.uint8)
    path = tmp_path / name
    if name.endswith(".zarr.zip"):
        write_zarr(path, tiles, chunk=4)
    else:
        write_zip(path, tiles)
    uri = s3.put_all(path, f"ranges/{name}")
    s3.sent = 0
    with closing(open_uri(uri)) as archive:
        np.testing.assert_array_equal(archive.read(200, 204).tiles, tiles[200:204])
    assert 4 * tiles[0].nbytes < s3.sent < path.stat().st_size / 20


def test_a_zip_on_a_web_server(web: Web, tmp_path: Path, slides: Path) -> None:
    for name in ("zip.zip", "zip.cells.csv"):
        web.files[f"lab/{name}"] = (slides / name).read_bytes()
    block = read_uri(web.uri("lab/zip.zip"))
    assert_same(block, read_uri(str(slides / "zip.zip")))
    assert all(seen.range for seen in web.seen if seen.method == "GET")
    found = discover([web.uri("lab/zip.zip")])
    assert [slide.slide_id for slide in found.slides] == ["zip.zip"]


def test_a_zarr_zip_on_a_web_server(web: Web, slides: Path) -> None:
    web.files["packed.zarr.zip"] = (slides / "night" / "packed.zarr.zip").read_bytes()
    assert_same(
        read_uri(web.uri("packed.zarr.zip")), read_uri(str(slides / "night" / "packed.zarr.zip"))
    )


def test_a_zarr_folder_on_a_web_server_is_refused(web: Web) -> None:
    with pytest.raises(UsageError, match=r"\.zarr\.zip"):
        open_uri(web.uri("v3.zarr"))


@pytest.mark.parametrize("name", ["zip.zip", "night/packed.zarr.zip", "night/v3.zarr"])
def test_a_change_under_the_reader_is_noticed(s3: S3, slides: Path, name: str) -> None:
    uri = s3.put_all(slides / name, f"changing/{name}")
    key = f"changing/{name}/tiles/c/1/0/0/0" if name.endswith(".zarr") else f"changing/{name}"
    with closing(open_uri(uri)) as archive:
        before = archive.describe().identity
        archive.read(0, 7)
        s3.put(key, bytes(1000))
        with pytest.raises(InputChangedError, match="changed"):
            archive.read(7, 14)
    assert identity_of(SlideAddress(uri=uri)) != before


@pytest.mark.parametrize("name", ["tar.tar", "whole.tif"])
def test_copies_are_whole_and_of_the_newest_version(s3: S3, slides: Path, name: str) -> None:
    """What is open stays as it was; what is opened anew is as it is now."""
    stem = Path(name).stem
    uri = s3.put_all(slides / name, f"copied/{name}")
    s3.put_all(slides / f"{stem}.cells.csv", f"copied/{stem}.cells.csv")
    with closing(open_uri(uri)) as archive:
        before = archive.describe().identity
        s3.put(f"copied/{name}", b"no slide any more")
        assert archive.read(0, COUNT).readable.all()
        assert identity_of(SlideAddress(uri=uri)) != before
    with pytest.raises(BadFormatError):
        open_uri(uri)


@pytest.mark.parametrize("name", ["tar.tar", "whole.tif"])
def test_files_larger_than_the_cache_are_refused(
    s3: S3, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BYTES_VARIABLE, "1000")
    with pytest.raises(OverLimitError, match=BYTES_VARIABLE):
        open_uri(s3.uri(f"lab/{name}"))
