"""Zarr slides: however their arrays are laid out, they are read as zarr itself reads them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, TransposeCodec

from cvm_batch.archives.archive import Integrity, TileBlock
from cvm_batch.archives.limits import MAX_TILE_PIXELS
from cvm_batch.archives.opening import ArrayNames, OpenOptions
from cvm_batch.errors import (
    BadFormatError,
    BadScaleError,
    ChecksumMismatchError,
    InputChangedError,
    OverLimitError,
    Reason,
    SlideError,
)
from tests.archives.contract import assert_block
from tests.archives.making import Cells, cells, write_varying_zarr, write_zarr
from tests.archives.reading import assert_honest, describe, flip_bit, open_at, read_all

COUNT, CHUNK = 23, 7
PX = (12, 10)
UNSTABLE = pytest.mark.filterwarnings("ignore:The data type")


@pytest.fixture(scope="module")
def slide() -> Cells:
    return cells(COUNT, px=PX)


def by_zarr(path: Path) -> NDArray[np.uint8]:
    tiles: NDArray[np.uint8] = zarr.open_group(path, mode="r")["tiles"][...]
    return tiles


def assert_as_by_zarr(path: Path, slide: Cells) -> None:
    tiles = by_zarr(path)
    np.testing.assert_array_equal(tiles, slide.tiles)
    assert_block(read_all(path), slide, 0, {})
    with closing(open_at(path)) as archive:
        for start, stop in ((0, 1), (5, 9), (CHUNK, 2 * CHUNK), (20, COUNT)):
            np.testing.assert_array_equal(archive.read(start, stop).tiles, tiles[start:stop])


class TestLayout:
    @pytest.mark.parametrize("separator", [".", "/"])
    @pytest.mark.parametrize("encoding", ["default", "v2"])
    def test_any_chunk_name_is_found(
        self, slide: Cells, tmp_path: Path, encoding: str, separator: str
    ) -> None:
        key = {"name": encoding, "separator": separator}
        path = write_zarr(tmp_path / "a.zarr", slide.tiles, chunk=CHUNK, chunk_key_encoding=key)
        assert_as_by_zarr(path, slide)

    @pytest.mark.parametrize("zarr_format", [2, 3])
    @pytest.mark.parametrize(
        "chunks", [(5, 12, 10, 3), (7, 12, 10, 1), (7, 5, 10, 3), (4, 7, 4, 2), (50, 20, 20, 5)]
    )
    def test_chunks_of_any_shape(
        self, slide: Cells, tmp_path: Path, zarr_format: int, chunks: tuple[int, ...]
    ) -> None:
        path = tmp_path / "a.zarr"
        write_zarr(path, slide.tiles, zarr_format=zarr_format, chunks=chunks)
        assert_as_by_zarr(path, slide)

    @pytest.mark.parametrize("chunks", [(7, 12, 10, 3), (4, 7, 4, 2)])
    def test_columns_first(self, slide: Cells, tmp_path: Path, chunks: tuple[int, ...]) -> None:
        path = tmp_path / "a.zarr"
        write_zarr(path, slide.tiles, zarr_format=2, chunks=chunks, order="F")
        assert_as_by_zarr(path, slide)

    @pytest.mark.parametrize("order", [(0, 3, 1, 2), (3, 1, 0, 2)])
    def test_transposed(self, slide: Cells, tmp_path: Path, order: tuple[int, ...]) -> None:
        turned = [TransposeCodec(order=order), TransposeCodec(order=(1, 0, 3, 2))]
        path = write_zarr(tmp_path / "a.zarr", slide.tiles, chunk=CHUNK, filters=turned)
        assert_as_by_zarr(path, slide)

    @pytest.mark.parametrize("zarr_format", [2, 3])
    @pytest.mark.parametrize("chunks", [(7, 3, 12, 10), (7, 1, 12, 10), (4, 2, 5, 10)])
    def test_channels_first(
        self, slide: Cells, tmp_path: Path, zarr_format: int, chunks: tuple[int, ...]
    ) -> None:
        turned = np.asarray(slide.tiles).transpose(0, 3, 1, 2)
        path = tmp_path / "a.zarr"
        write_zarr(path, turned, zarr_format=zarr_format, chunks=chunks)
        assert describe(path).tile_px == PX
        assert_block(read_all(path), slide, 0, {})

    @pytest.mark.parametrize(
        ("names", "read"), [("nyxc", (0, 1, 2, 3)), ("ncyx", (0, 2, 3, 1)), ("nxyc", (0, 2, 1, 3))]
    )
    def test_names_of_axes_say_which_is_which(
        self, tmp_path: Path, names: str, read: tuple[int, ...]
    ) -> None:
        stored = np.random.default_rng(0).integers(0, 255, (5, 3, 3, 3)).astype(np.uint8)
        path = write_zarr(tmp_path / "a.zarr", stored, dimension_names=list(names))
        np.testing.assert_array_equal(read_all(path).tiles, stored.transpose(read))

    def test_tiles_must_be_the_first_axis(self, slide: Cells, tmp_path: Path) -> None:
        path = write_zarr(tmp_path / "a.zarr", slide.tiles, dimension_names=list("yxnc"))
        with pytest.raises(BadFormatError, match="the first must be the tiles"):
            describe(path)

    def test_arrays_of_other_names(self, slide: Cells, tmp_path: Path) -> None:
        path = write_zarr(tmp_path / "a.zarr", slide.tiles, tiles_name="crops")
        zarr.open_group(path)["where"] = slide.xy
        options = OpenOptions(arrays=ArrayNames(tiles="crops", xy="where"))
        block = read_all(path, options)
        assert_block(block, slide, 0, {})
        np.testing.assert_array_equal(block.xy, slide.xy)
        with pytest.raises(BadFormatError, match=r"no array 'tiles'; there is 'crops', 'where'"):
            describe(path)

    def test_another_name_that_is_not_there_is_bad_format(self, v3: Path) -> None:
        options = OpenOptions(arrays=ArrayNames(cell_id="name"))
        with pytest.raises(BadFormatError, match="--array cell_id=NAME"):
            describe(v3, options)


@UNSTABLE
class TestVaryingSizes:
    @pytest.fixture
    def tiles(self) -> list[NDArray[np.uint8]]:
        rng = np.random.default_rng(5)
        shapes = rng.integers(1, 30, (COUNT, 2)).tolist()
        return [rng.integers(0, 255, (h, w, 3)).astype(np.uint8) for h, w in shapes]

    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_each_tile_has_its_own(
        self, tiles: list[NDArray[np.uint8]], tmp_path: Path, zarr_format: int
    ) -> None:
        path = write_varying_zarr(tmp_path / "a.zarr", tiles, zarr_format=zarr_format)
        assert describe(path).tile_px is None
        with closing(open_at(path)) as archive:
            for start, stop in ((0, COUNT), (5, 9), (22, 23)):
                self.assert_same(archive.read(start, stop), tiles[start:stop])

    def test_a_missing_chunk_is_told(self, tiles: list[NDArray[np.uint8]], tmp_path: Path) -> None:
        path = write_varying_zarr(tmp_path / "a.zarr", tiles)
        (path / "tiles/c/3").unlink()
        assert describe(path).missing == 2
        slide = Cells(tiles, np.zeros((COUNT, 2)), [])
        assert_block(read_all(path), slide, 0, dict.fromkeys((21, 22), Reason.MISSING_TILES))

    def test_sizes_that_are_not_those_of_the_pixels_are_bad_format(
        self, tiles: list[NDArray[np.uint8]], tmp_path: Path
    ) -> None:
        path = write_varying_zarr(tmp_path / "a.zarr", tiles)
        zarr.open_group(path)["size"][8, 0] += 1
        with pytest.raises(BadFormatError, match="other lengths than their sizes say"):
            read_all(path)

    @pytest.mark.parametrize("side", [0, -3, 2**31 - 1])
    def test_senseless_sizes_are_bad_format(
        self, tiles: list[NDArray[np.uint8]], tmp_path: Path, side: int
    ) -> None:
        path = write_varying_zarr(tmp_path / "a.zarr", tiles)
        zarr.open_group(path)["size"][8, 0] = side
        with pytest.raises(BadFormatError, match=str(side)):
            read_all(path)

    def test_giant_tiles_are_refused(self, tiles: list[NDArray[np.uint8]], tmp_path: Path) -> None:
        path = write_varying_zarr(tmp_path / "a.zarr", tiles)
        zarr.open_group(path)["size"][8] = [5000, 4000]
        with pytest.raises(
            OverLimitError, match=f"5000 x 4000 pixels, more than {MAX_TILE_PIXELS}"
        ):
            read_all(path)

    def test_chunks_that_are_giant_together_are_refused(self, tmp_path: Path) -> None:
        tiles = [np.zeros((1, 1, 3), np.uint8)] * 20
        path = write_varying_zarr(tmp_path / "a.zarr", tiles, chunk=20)
        zarr.open_group(path)["size"][:] = 2000
        with pytest.raises(OverLimitError, match="by the sizes of its tiles"):
            read_all(path)

    def test_without_sizes_nobody_knows_them(
        self, tiles: list[NDArray[np.uint8]], tmp_path: Path
    ) -> None:
        path = write_varying_zarr(tmp_path / "a.zarr", tiles)
        shutil.rmtree(path / "size")
        with pytest.raises(BadFormatError, match="no array 'size'"):
            describe(path)

    def test_the_median_shows_the_magnification(self, tmp_path: Path) -> None:
        sides = [40, 40, 41, 39, 40, 200, 3]  # a cluster, and a cell at the border
        tiles = [np.zeros((side, side, 3), np.uint8) for side in sides]
        path = write_varying_zarr(tmp_path / "a.zarr", tiles)
        assert describe(path, OpenOptions(tile_um=20, mpp=(0.5, 0.5))).tiles == len(sides)
        with pytest.raises(BadScaleError, match=r"10\.0 um wide"):
            describe(path, OpenOptions(tile_um=20, mpp=(0.25, 0.25)))

    @staticmethod
    def assert_same(block: TileBlock, tiles: list[NDArray[np.uint8]]) -> None:
        assert block.readable.all()
        for found, tile in zip(block.tiles, tiles, strict=True):
            np.testing.assert_array_equal(found, tile)


class TestShards:
    #: 28 of 23 tiles in two files, in chunks of two.
    SHARDED: Mapping[str, Any] = {"chunks": (2, 12, 10, 3), "shards": (14, 12, 10, 3)}

    @pytest.mark.parametrize("location", ["start", "end"])
    def test_chunks_are_found_in_their_shard(
        self, slide: Cells, tmp_path: Path, location: str
    ) -> None:
        shards = {"shape": self.SHARDED["shards"], "index_location": location}
        settings = dict(self.SHARDED) | {"shards": shards}
        path = write_zarr(tmp_path / "a.zarr", slide.tiles, **settings)
        assert_as_by_zarr(path, slide)
        assert describe(path).chunk_tiles == 2
        assert describe(path).integrity is Integrity.VERIFIED

    @pytest.mark.parametrize("endian", ["little", "big"])
    @pytest.mark.parametrize("checksums", [[], [Crc32cCodec()]])
    def test_any_index(
        self, slide: Cells, tmp_path: Path, endian: str, checksums: list[Any]
    ) -> None:
        sharding = ShardingCodec(
            chunk_shape=(2, 4, 10, 3),
            codecs=[BytesCodec(), Crc32cCodec()],
            index_codecs=[BytesCodec(endian=endian), *checksums],
            index_location="start",
        )
        path = tmp_path / "a.zarr"
        write_zarr(path, slide.tiles, chunks=(14, 12, 10, 3), serializer=sharding, compressors=())
        assert_as_by_zarr(path, slide)
        verified = Integrity.VERIFIED if checksums else Integrity.UNVERIFIED
        assert describe(path).integrity is verified

    def test_a_missing_shard_is_told_beforehand(self, slide: Cells, tmp_path: Path) -> None:
        path = write_zarr(tmp_path / "a.zarr", slide.tiles, **self.SHARDED)
        (path / "tiles/c/1/0/0/0").unlink()
        assert describe(path).missing == COUNT - 14
        lost = dict.fromkeys(range(14, COUNT), Reason.MISSING_TILES)
        assert_block(read_all(path), slide, 0, lost)

    def test_chunks_that_were_not_written_are_found_on_reading(
        self, slide: Cells, tmp_path: Path
    ) -> None:
        """zarr gives their fill value: blank glass."""
        group = zarr.create_group(tmp_path / "a.zarr")
        tiles = group.create_array("tiles", shape=(COUNT, *PX, 3), dtype="u1", **self.SHARDED)
        tiles[:6] = np.asarray(slide.tiles)[:6]
        tiles[14:] = np.asarray(slide.tiles)[14:]
        path = tmp_path / "a.zarr"
        assert describe(path).missing == 0
        lost = dict.fromkeys(range(6, 14), Reason.MISSING_TILES)
        assert_block(read_all(path), slide, 0, lost)

    def test_in_a_zip_that_is_deflated(self, slide: Cells, tmp_path: Path) -> None:
        path = write_zarr(tmp_path / "a.zarr", slide.tiles, **self.SHARDED)
        packed = shutil.make_archive(str(path), "zip", path)
        assert_block(read_all(Path(packed)), slide, 0, {})

    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_no_flipped_bit_gives_a_wrong_tile(
        self, slide: Cells, tmp_path_factory: pytest.TempPathFactory, seed: int
    ) -> None:
        path = tmp_path_factory.mktemp("slides") / "a.zarr"
        write_zarr(path, slide.tiles, **self.SHARDED)
        flip_bit(path / "tiles/c/0/0/0/0", np.random.default_rng(seed))
        with pytest.raises(ChecksumMismatchError, match="crc32c"):
            read_all(path)

    @pytest.mark.parametrize("length", [0, 10, 115, -1])
    def test_a_truncated_shard_is_found(self, slide: Cells, tmp_path: Path, length: int) -> None:
        path = write_zarr(tmp_path / "a.zarr", slide.tiles, **self.SHARDED)
        shard = path / "tiles/c/0/0/0/0"
        shard.write_bytes(shard.read_bytes()[:length])
        with pytest.raises(ChecksumMismatchError, match="a chunk of the shard 'tiles/c/0/0/0/0'"):
            read_all(path)

    @pytest.mark.parametrize(
        ("entry", "match"),
        [
            ((10**6, 10), "points out of the file"),
            ((2**64 - 2, 2**63), "points out of the file"),
            ((0, 2**64 - 1), "points out of the file"),
            ((0, 40), "overlap"),
        ],
    )
    def test_an_index_that_lies_is_bad_format(
        self, slide: Cells, tmp_path: Path, entry: tuple[int, int], match: str
    ) -> None:
        index = ShardingCodec(
            chunk_shape=(2, 12, 10, 3), codecs=[BytesCodec()], index_codecs=[BytesCodec()]
        )
        path = tmp_path / "a.zarr"
        write_zarr(path, slide.tiles, chunks=(14, 12, 10, 3), serializer=index, compressors=())
        shard = path / "tiles/c/0/0/0/0"
        data = shard.read_bytes()
        lying = np.array(entry, "<u8").tobytes()
        shard.write_bytes(data[: -7 * 16 + 16] + lying + data[-7 * 16 + 32 :])
        with pytest.raises(BadFormatError, match=match):
            read_all(path)


class TestMissing:
    def test_a_missing_chunk_is_no_blank_glass(self, slide: Cells, v2: Path) -> None:
        (v2 / "tiles/2.0.0.0").unlink()
        assert describe(v2).missing == CHUNK
        lost = dict.fromkeys(range(14, 21), Reason.MISSING_TILES)
        assert_block(read_all(v2), slide, 0, lost)

    def test_a_part_of_tiles_that_is_missing(self, slide: Cells, tmp_path: Path) -> None:
        path = write_zarr(tmp_path / "a.zarr", slide.tiles, chunks=(CHUNK, 12, 10, 1))
        (path / "tiles/c/3/0/0/2").unlink()
        (path / "tiles/c/3/0/0/1").unlink()
        assert describe(path).missing == 2
        assert_block(read_all(path), slide, 0, dict.fromkeys((21, 22), Reason.MISSING_TILES))

    def test_a_chunk_deleted_after_opening_is_found(self, v3: Path) -> None:
        with closing(open_at(v3)) as archive:
            archive.read(0, COUNT)
            (v3 / "tiles/c/2/0/0/0").unlink()
            with pytest.raises(InputChangedError, match="tiles/c/2/0/0/0 is gone"):
                archive.read(0, COUNT)
            assert archive.describe().missing == CHUNK

    def test_an_unwritten_archive_has_only_missing_tiles(self, tmp_path: Path) -> None:
        group = zarr.create_group(tmp_path / "a.zarr")
        group.create_array("tiles", shape=(5, 4, 4, 3), chunks=(2, 4, 4, 3), dtype="u1")
        assert describe(tmp_path / "a.zarr").missing == 5
        block = read_all(tmp_path / "a.zarr")
        assert not block.readable.any()
        assert len(block.faults) == 5

    def test_chunks_that_are_not_asked_for_do_no_harm(self, slide: Cells, v3: Path) -> None:
        (v3 / "tiles/c/1/0/0/0").write_bytes(b"damaged")
        with closing(open_at(v3)) as archive:
            assert_block(archive.read(14, COUNT), slide, 14, {})
            with pytest.raises(ChecksumMismatchError):
                archive.read(13, 14)

    def test_no_damaged_byte_gives_a_wrong_tile_in_a_zip(
        self, slide: Cells, tmp_path: Path
    ) -> None:
        path = write_zarr(tmp_path / "a.zarr.zip", slide.tiles, zarr_format=2, chunk=CHUNK)
        whole = path.read_bytes()
        rng = np.random.default_rng(2)
        for _ in range(40):
            path.write_bytes(whole)
            flip_bit(path, rng)
            try:
                block = read_all(path)
            except SlideError:
                continue
            assert_honest(block, slide)
