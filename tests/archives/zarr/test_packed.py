"""Packed slides: their manifest tells their own files from lost, damaged and foreign ones."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvm_batch.archives.archive import ExpectedFrom, Integrity
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.archives.packing.manifest import PackManifest, read_manifest
from cvm_batch.archives.places.disk import DiskPlace
from cvm_batch.errors import (
    BadFormatError,
    BadScaleError,
    ChecksumMismatchError,
    InputChangedError,
    Reason,
)
from tests.archives.contract import assert_block
from tests.archives.making import (
    Cells,
    cells,
    encode,
    table_of,
    write_table,
    write_zip_members,
)
from tests.archives.packed_making import CHUNK, pack_small, write_packed
from tests.archives.reading import describe, edit_json, flip_bit, identity_at, open_at, read_all

COUNT = 23


@pytest.fixture(scope="module")
def slide() -> Cells:
    return cells(COUNT)


@pytest.fixture(scope="module")
def undamaged(slide: Cells, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_packed(tmp_path_factory.mktemp("packed") / "slide.zarr", slide)


@pytest.fixture
def path(undamaged: Path, tmp_path: Path) -> Path:
    """A packed slide to damage."""
    return shutil.copytree(undamaged, tmp_path / "slide.zarr")


def manifest_of(path: Path) -> PackManifest:
    manifest = read_manifest(DiskPlace.of(path))
    assert manifest is not None
    return manifest


def rewrite_manifest(path: Path, manifest: PackManifest) -> None:
    (path / "manifest.json").write_bytes(manifest.to_bytes())


class TestIdentity:
    def test_it_is_the_manifest_s_digest_wherever_the_slide_lies(
        self, undamaged: Path, path: Path
    ) -> None:
        digest = manifest_of(path).digest
        assert describe(path).identity == identity_at(path) == digest
        assert describe(undamaged).identity == digest

    def test_the_manifest_says_how_many_tiles_there_are(self, path: Path) -> None:
        info = describe(path)
        assert (info.tiles, info.expected_from) == (COUNT, ExpectedFrom.PACK_MANIFEST)
        assert info.integrity is Integrity.VERIFIED
        assert info.mpp == (0.25, 0.25)

    def test_a_slide_that_lacks_a_file_is_another_until_it_is_back(self, path: Path) -> None:
        """Else nobody would try again once it is copied."""
        digest = manifest_of(path).digest
        chunk = path / "tiles/c.1.0.0.0"
        data = chunk.read_bytes()
        with closing(open_at(path)) as archive:
            for damage in (chunk.unlink, lambda: chunk.write_bytes(data[:-1])):
                damage()
                damaged = archive.describe().identity
                assert damaged == identity_at(path) != digest
            chunk.write_bytes(data)
            assert archive.describe().identity == identity_at(path) == digest

    def test_a_broken_manifest_leaves_the_identity_of_the_files(self, path: Path) -> None:
        (path / "manifest.json").write_text("{")
        first = identity_at(path)
        (path / "manifest.json").write_text("{}")
        assert identity_at(path) != first
        with pytest.raises(BadFormatError, match=r"manifest\.json"):
            describe(path)

    def test_files_that_somebody_laid_beside_are_no_matter(self, slide: Cells, path: Path) -> None:
        (path / ".DS_Store").write_bytes(b"x")
        assert describe(path).identity == manifest_of(path).digest
        assert_block(read_all(path), slide, 0, {})


class TestDamage:
    def test_a_lost_chunk_is_missing_tiles(self, slide: Cells, path: Path) -> None:
        (path / "tiles/c.1.0.0.0").unlink()
        assert describe(path).missing == CHUNK
        lost = dict.fromkeys(range(7, 14), Reason.MISSING_TILES)
        assert_block(read_all(path), slide, 0, lost)

    def test_chunks_in_each_other_s_place_are_found(self, path: Path) -> None:
        """Each of them is whole, so that its own checksum says nothing."""
        one, other = path / "tiles/c.0.0.0.0", path / "tiles/c.1.0.0.0"
        first = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(first)
        with pytest.raises(ChecksumMismatchError, match="by its manifest"):
            read_all(path)

    @pytest.mark.parametrize("name", ["tiles/c.1.0.0.0", "xy/c.0.0", "cell_id/c.0"])
    def test_another_slide_s_chunk_is_found(self, path: Path, tmp_path: Path, name: str) -> None:
        other = write_packed(tmp_path / "other.zarr", cells(COUNT, seed=1))
        shutil.copy(other / name, path / name)
        with pytest.raises(ChecksumMismatchError, match=name):
            read_all(path)

    @pytest.mark.parametrize("name", ["zarr.json", "tiles/zarr.json", "xy/zarr.json"])
    def test_metadata_that_are_lost_or_changed_are_found(self, path: Path, name: str) -> None:
        """Without its metadata, a column would be one that the slide never had."""
        edit_json(path / name, lambda value: value["attributes"].update(mpp=0.5))
        with pytest.raises(ChecksumMismatchError, match=name):
            describe(path)
        (path / name).unlink()
        with pytest.raises(ChecksumMismatchError, match=f"'{name}' .* is not there"):
            describe(path)

    def test_an_array_that_was_not_packed_is_refused(self, path: Path) -> None:
        shutil.copytree(path / "cell_id", path / "padded")
        with pytest.raises(ChecksumMismatchError, match="not among the files that were packed"):
            describe(path)

    @pytest.mark.parametrize("name", ["xy/c.0.0", "cell_id/c.0"])
    def test_a_lost_chunk_of_a_column_is_bad_format(self, path: Path, name: str) -> None:
        (path / name).unlink()
        with pytest.raises(BadFormatError, match=f"lacks the chunk '{name}'"):
            read_all(path)

    def test_a_chunk_beyond_the_slide_is_refused(self, path: Path) -> None:
        shutil.copy(path / "tiles/c.1.0.0.0", path / "tiles/c.4.0.0.0")
        with pytest.raises(BadFormatError, match="beyond the 23 tiles"):
            describe(path)

    def test_a_manifest_of_another_number_of_tiles_is_refused(self, path: Path) -> None:
        files = manifest_of(path).files
        rewrite_manifest(path, PackManifest(tiles=COUNT + 1, files=files))
        with pytest.raises(BadFormatError, match="23 tiles, but its manifest tells of 24"):
            describe(path)

    def test_a_manifest_of_names_that_no_file_can_have_is_bad_format(self, path: Path) -> None:
        manifest = manifest_of(path)
        files = dict(manifest.files)
        files["tiles/\ud800"] = files.pop("tiles/c.1.0.0.0")
        rewrite_manifest(path, PackManifest(tiles=COUNT, files=files))
        with pytest.raises(BadFormatError, match=r"manifest\.json"):
            describe(path)
        assert identity_at(path) != manifest.digest

    def test_a_chunk_that_is_replaced_meanwhile_is_found(self, path: Path) -> None:
        with closing(open_at(path)) as archive:
            shutil.copy(path / "tiles/c.1.0.0.0", path / "tiles/c.2.0.0.0")
            with pytest.raises(InputChangedError, match="changed"):
                archive.read(14, COUNT)

    @settings(max_examples=150, deadline=None)
    @given(name=st.sampled_from(["manifest.json", "zarr.json", "tiles/zarr.json", "xy/c.0.0",
                                 "tiles/c.0.0.0.0", "tiles/c.3.0.0.0", "cell_id/c.0"]),
           seed=st.integers(0, 2**32 - 1))  # fmt: skip
    def test_every_flipped_bit_is_found(self, undamaged: Path, name: str, seed: int) -> None:
        file = undamaged / name
        whole = file.read_bytes()
        flip_bit(file, np.random.default_rng(seed))
        try:
            with pytest.raises((ChecksumMismatchError, BadFormatError)):
                read_all(undamaged)
        finally:
            file.write_bytes(whole)


class TestUnreadableTiles:
    @pytest.fixture
    def images(self, slide: Cells, tmp_path: Path) -> Path:
        """A slide of two tiles that are no images, and one that is not there."""
        images = {f"{n:05d}.png": encode(tile) for n, tile in enumerate(slide.tiles)}
        table = table_of(slide, list(images))
        images |= {"00003.png": b"no image", "00009.png": b""}
        del images["00016.png"]
        sources = tmp_path / "sources"
        write_zip_members(sources / "slide.zip", images)
        write_table(sources / "slide.cells.csv", table)
        return sources

    def test_they_stay_unreadable(self, slide: Cells, images: Path, tmp_path: Path) -> None:
        path = pack_small(images, tmp_path / "packed") / "slide.zarr"
        block = read_all(path)
        assert_block(block, slide, 0, dict.fromkeys((3, 9, 16), Reason.UNREADABLE_TILES))
        np.testing.assert_array_equal(block.xy, slide.xy)
        assert block.cell_id == slide.cell_id

    def test_a_lost_chunk_of_which_they_are_is_bad_format(
        self, images: Path, tmp_path: Path
    ) -> None:
        """Else they would be shown as blank glass."""
        path = pack_small(images, tmp_path / "packed") / "slide.zarr"
        (path / "readable/c.0").unlink()
        with pytest.raises(BadFormatError, match=r"lacks the chunk 'readable/c\.0'"):
            read_all(path)

    def test_of_varying_sizes_they_do_not_count_for_the_scale(self, tmp_path: Path) -> None:
        sides = [40, 42]
        images = {f"{n}.png": encode(np.zeros((s, s, 3), np.uint8)) for n, s in enumerate(sides)}
        images |= {f"{n}.png": b"" for n in range(2, 7)}
        write_zip_members(tmp_path / "sources/slide.zip", images)
        path = pack_small(tmp_path / "sources", tmp_path / "packed") / "slide.zarr"
        assert describe(path).tile_px is None
        assert describe(path, OpenOptions(tile_um=20, mpp=(0.5, 0.5))).tiles == 7
        with pytest.raises(BadScaleError, match=r"10\.2 um wide"):
            describe(path, OpenOptions(tile_um=20, mpp=(0.25, 0.25)))
