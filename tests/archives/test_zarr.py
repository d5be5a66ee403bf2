"""Zarr slides: read as zarr itself reads them, and refused where zarr would guess."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pyarrow as pa
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from cvm_batch.archives.archive import Integrity
from cvm_batch.archives.formats import open_archive
from cvm_batch.archives.limits import MAX_CHUNK_BYTES, MAX_METADATA_BYTES
from cvm_batch.errors import (
    BadFormatError,
    ChecksumMismatchError,
    EmptyArchiveError,
    InputChangedError,
    OverLimitError,
    Reason,
    SlideError,
    UnsafeArchiveError,
)
from tests.archives.contract import assert_block
from tests.archives.making import Cells, cells, write_zarr
from tests.archives.reading import assert_honest, describe, flip_bit, read_all

COUNT = 23
CHUNK = 7
V3_CODECS: dict[str, tuple[Sequence[Any], bool]] = {
    "none": ([], False),
    "crc32c": ([Crc32cCodec()], True),
    "blosc-lz4": ([BloscCodec(cname="lz4")], False),
    "blosc-zstd": ([BloscCodec(cname="zstd", shuffle="shuffle", typesize=2)], False),
    "blosc-crc32c": ([BloscCodec(cname="lz4hc"), Crc32cCodec()], True),
    "crc32c-inside": ([Crc32cCodec(), ZstdCodec()], True),
    "zstd": ([ZstdCodec(level=3)], False),
    "zstd-checksum": ([ZstdCodec(checksum=True)], True),
    "gzip": ([GzipCodec(level=1)], True),
}
V2_CODECS: dict[str, tuple[Sequence[Any], bool]] = {
    "none": ([], False),
    "blosc": ([numcodecs.Blosc(cname="blosclz")], False),
    "zstd": ([numcodecs.Zstd(level=1)], False),
    "zstd-checksum": ([numcodecs.Zstd(level=1, checksum=True)], True),
    "lz4": ([numcodecs.LZ4()], False),
    "zlib": ([numcodecs.Zlib()], True),
    "gzip": ([numcodecs.GZip()], True),
    "crc32": ([numcodecs.CRC32()], True),
    "crc32-end": ([numcodecs.CRC32(location="end")], True),
    "crc32c": ([numcodecs.CRC32C()], True),
    "adler32": ([numcodecs.Adler32()], True),
}


@pytest.fixture(scope="module")
def slide() -> Cells:
    return cells(COUNT)


@pytest.fixture(scope="module")
def packed(slide: Cells, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zarr") / "slide.zarr"
    return write_zarr(path, slide.tiles, xy=slide.xy, cell_id=slide.cell_id, mpp=0.25, chunk=CHUNK)


@pytest.fixture(scope="module")
def old(slide: Cells, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zarr") / "slide.zarr"
    return write_zarr(path, slide.tiles, zarr_format=2, chunk=CHUNK)


@pytest.fixture
def v3(packed: Path, tmp_path: Path) -> Path:
    """A packed v3 slide to damage."""
    return shutil.copytree(packed, tmp_path / "slide.zarr", copy_function=shutil.copy)


@pytest.fixture
def v2(old: Path, tmp_path: Path) -> Path:
    """A v2 slide as most are, with blosc and no checksum, to damage."""
    return shutil.copytree(old, tmp_path / "slide.zarr", copy_function=shutil.copy)


def edit(document: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a metadata document in place."""
    value = json.loads(document.read_text())
    change(value)
    document.write_text(json.dumps(value))


class TestCodecs:
    @pytest.mark.parametrize("name", V3_CODECS)
    def test_v3_is_read_as_by_zarr(self, slide: Cells, tmp_path: Path, name: str) -> None:
        codecs, verifies = V3_CODECS[name]
        path = write_zarr(tmp_path / "a.zarr", slide.tiles, chunk=CHUNK, compressors=codecs)
        self.assert_as_by_zarr(path, slide, verifies)

    @pytest.mark.parametrize("name", V2_CODECS)
    def test_v2_is_read_as_by_zarr(self, slide: Cells, tmp_path: Path, name: str) -> None:
        codecs, verifies = V2_CODECS[name]
        path = write_zarr(
            tmp_path / "a.zarr", slide.tiles, zarr_format=2, chunk=CHUNK, compressors=codecs
        )
        self.assert_as_by_zarr(path, slide, verifies)

    def test_v2_filters_are_undone(self, slide: Cells, tmp_path: Path) -> None:
        group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
        group.create_array(
            "tiles",
            shape=slide.tiles.shape,
            chunks=(CHUNK, *slide.tiles.shape[1:]),
            dtype="u1",
            filters=[numcodecs.Adler32(), numcodecs.CRC32C()],
            compressors=numcodecs.Zstd(),
        )[...] = slide.tiles
        self.assert_as_by_zarr(tmp_path / "a.zarr", slide, verifies=True)

    @staticmethod
    def assert_as_by_zarr(path: Path, slide: Cells, verifies: bool) -> None:
        block = read_all(path)
        by_zarr = zarr.open_group(path, mode="r")["tiles"][...]
        np.testing.assert_array_equal(block.tiles, by_zarr)
        np.testing.assert_array_equal(block.tiles, slide.tiles)
        expected = Integrity.VERIFIED if verifies else Integrity.UNVERIFIED
        assert describe(path).integrity is expected

    @pytest.mark.parametrize("separator", [".", "/"])
    @pytest.mark.parametrize("encoding", ["default", "v2"])
    def test_any_chunk_name_is_found(
        self, slide: Cells, tmp_path: Path, encoding: str, separator: str
    ) -> None:
        group = zarr.create_group(tmp_path / "a.zarr")
        group.create_array(
            "tiles",
            shape=slide.tiles.shape,
            chunks=(CHUNK, *slide.tiles.shape[1:]),
            dtype="u1",
            chunk_key_encoding={"name": encoding, "separator": separator},
        )[...] = slide.tiles
        assert_block(read_all(tmp_path / "a.zarr"), slide, 0, {})

    def test_a_zstd_frame_without_its_size_is_read(self, slide: Cells, tmp_path: Path) -> None:
        """As streaming encoders of other languages write it."""
        path = write_zarr(tmp_path / "a.zarr", slide.tiles, compressors=[ZstdCodec()])
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(slide.tiles.tobytes())
        (path / "tiles/c/0/0/0/0").write_bytes(sink.getvalue().to_pybytes())
        assert_block(read_all(path), slide, 0, {})


class TestCells:
    @pytest.mark.parametrize("zarr_format", [2, 3])
    @pytest.mark.parametrize(
        ("cell_id", "read"),
        [
            (["", "ä", "細胞", "x" * 300], ["", "ä", "細胞", "x" * 300]),
            (np.array([3, 0, 7, 2**40]), ["3", "0", "7", str(2**40)]),
        ],
    )
    def test_ids_are_text_or_whole_numbers(
        self, tmp_path: Path, zarr_format: int, cell_id: Any, read: list[str]
    ) -> None:
        path = write_zarr(
            tmp_path / "a.zarr", cells(4).tiles, cell_id=cell_id, zarr_format=zarr_format
        )
        assert read_all(path).cell_id == read

    @pytest.mark.filterwarnings("ignore:The data type")
    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_fixed_length_text_is_read(self, tmp_path: Path, zarr_format: int) -> None:
        path = write_zarr(tmp_path / "a.zarr", cells(3).tiles, zarr_format=zarr_format)
        group = zarr.open_group(path, mode="a")
        group.create_array("cell_id", shape=(3,), chunks=(2,), dtype="U5")[...] = ["a", "ä", "ccc"]
        assert read_all(path).cell_id == ["a", "ä", "ccc"]

    @pytest.mark.parametrize("dtype", ["f4", "f8", ">f8", "i4", "u2"])
    def test_coordinates_of_any_number_type(self, tmp_path: Path, dtype: str) -> None:
        xy = np.arange(8).reshape(4, 2)
        for zarr_format in (2, 3):
            path = tmp_path / f"a{zarr_format}.zarr"
            write_zarr(path, cells(4).tiles, xy=xy.astype(dtype), zarr_format=zarr_format)
            block = read_all(path)
            np.testing.assert_array_equal(block.xy, xy)
            assert block.xy.dtype == np.float64

    def test_chunks_of_coordinates_may_lie_any_way(self, tmp_path: Path) -> None:
        slide = cells(COUNT)
        path = write_zarr(tmp_path / "a.zarr", slide.tiles)
        group = zarr.open_group(path, mode="a")
        group.create_array("xy", shape=(COUNT, 2), chunks=(5, 1), dtype="f8")[...] = slide.xy
        np.testing.assert_array_equal(read_all(path).xy, slide.xy)

    def test_without_them_there_are_none(self, v2: Path) -> None:
        block = read_all(v2)
        assert block.xy is None
        assert block.cell_id is None
        assert describe(v2).mpp is None

    def test_mpp_is_read(self, v3: Path) -> None:
        assert describe(v3).mpp == 0.25

    @pytest.mark.parametrize("mpp", [0, -0.25, "0.25", True, [0.25], float("nan"), float("inf")])
    def test_an_absurd_mpp_is_bad_format(self, v3: Path, mpp: Any) -> None:
        edit(v3 / "zarr.json", lambda value: value["attributes"].update(mpp=mpp))
        with pytest.raises(BadFormatError, match="mpp"):
            describe(v3)

    def test_coordinates_that_are_not_finite_are_bad_format(self, tmp_path: Path) -> None:
        xy = np.array([[1, 2], [3, np.nan]])
        path = write_zarr(tmp_path / "a.zarr", cells(2).tiles, xy=xy)
        with pytest.raises(BadFormatError, match="not finite"):
            read_all(path)

    def test_a_missing_chunk_of_them_is_bad_format(self, v3: Path) -> None:
        (v3 / "xy/c/0/0").unlink()
        with pytest.raises(BadFormatError, match="lacks the chunk 'xy/c/0/0'"):
            read_all(v3)


class TestDamage:
    def test_no_flipped_bit_gives_a_wrong_tile(self, slide: Cells, v3: Path) -> None:
        rng = np.random.default_rng(3)
        chunks = sorted(path for path in (v3 / "tiles/c").rglob("*") if path.is_file())
        for number in range(60):
            chunk = chunks[number % len(chunks)]
            whole = chunk.read_bytes()
            flip_bit(chunk, rng)
            with pytest.raises(ChecksumMismatchError, match="crc32c"):
                read_all(v3)
            chunk.write_bytes(whole)

    def test_no_flipped_bit_in_the_metadata_gives_a_wrong_tile(
        self, slide: Cells, v3: Path
    ) -> None:
        rng = np.random.default_rng(3)
        documents = [v3 / "zarr.json", v3 / "tiles/zarr.json", v3 / "xy/zarr.json"]
        for number in range(90):
            document = documents[number % len(documents)]
            whole = document.read_bytes()
            flip_bit(document, rng)
            try:
                block = read_all(v3)
            except SlideError:
                pass
            else:
                assert_honest(block, slide)
                assert block.xy is None or np.array_equal(block.xy, slide.xy)
            document.write_bytes(whole)

    @pytest.mark.parametrize("length", [0, 3, 15, 100, -1])
    def test_a_truncated_chunk_is_found(self, v2: Path, length: int) -> None:
        """zarr itself reads past the end of a blosc chunk: noise, or the process dies."""
        chunk = v2 / "tiles/1.0.0.0"
        chunk.write_bytes(chunk.read_bytes()[:length])
        with pytest.raises(BadFormatError, match=r"tiles/1\.0\.0\.0"):
            read_all(v2)

    def test_the_error_says_whether_a_checksum_was_there(self, v3: Path) -> None:
        chunk = v3 / "tiles/c/1/0/0/0"
        chunk.write_bytes(chunk.read_bytes()[:100])
        with pytest.raises(ChecksumMismatchError, match=r"tiles/c/1/0/0/0.*slide\.zarr"):
            read_all(v3)

    def test_chunks_that_are_not_asked_for_do_no_harm(self, slide: Cells, v3: Path) -> None:
        (v3 / "tiles/c/1/0/0/0").write_bytes(b"damaged")
        with closing(open_archive(v3)) as archive:
            assert_block(archive.read(14, COUNT), slide, 14, {})
            with pytest.raises(ChecksumMismatchError):
                archive.read(13, 14)

    def test_a_missing_chunk_is_no_blank_glass(self, slide: Cells, v2: Path) -> None:
        (v2 / "tiles/2.0.0.0").unlink()
        lost = dict.fromkeys(range(14, 21), Reason.MISSING_TILES)
        assert_block(read_all(v2), slide, 0, lost)

    def test_a_chunk_deleted_after_opening_is_found(self, v3: Path) -> None:
        with closing(open_archive(v3)) as archive:
            archive.read(0, COUNT)
            (v3 / "tiles/c/2/0/0/0").unlink()
            with pytest.raises(InputChangedError, match="tiles/c/2/0/0/0 is gone"):
                archive.read(0, COUNT)

    def test_an_unwritten_archive_has_only_missing_tiles(self, tmp_path: Path) -> None:
        group = zarr.create_group(tmp_path / "a.zarr")
        group.create_array("tiles", shape=(5, 4, 4, 3), chunks=(2, 4, 4, 3), dtype="u1")
        block = read_all(tmp_path / "a.zarr")
        assert not block.readable.any()
        assert len(block.faults) == 5

    def test_a_shape_that_cuts_chunks_off_is_bad_format(self, v2: Path) -> None:
        edit(v2 / "tiles/.zarray", lambda value: value.update(shape=[13, 12, 10, 3]))
        with pytest.raises(BadFormatError, match="beyond the 13 tiles"):
            describe(v2)


class TestBombs:
    def test_a_giant_chunk_is_refused_from_the_metadata(self, v3: Path) -> None:
        def inflate(value: dict[str, Any]) -> None:
            value["shape"][0] = 2_000_000
            value["chunk_grid"]["configuration"]["chunk_shape"][0] = 2_000_000

        edit(v3 / "tiles/zarr.json", inflate)
        with pytest.raises(OverLimitError, match=str(MAX_CHUNK_BYTES)):
            describe(v3)

    @pytest.mark.parametrize("shape", [[10**12, 12, 10, 3], [10**30, 12, 10, 3]])
    def test_too_many_tiles_are_refused(self, v2: Path, shape: list[int]) -> None:
        edit(v2 / "tiles/.zarray", lambda value: value.update(shape=shape))
        with pytest.raises(OverLimitError, match="2000000 tiles"):
            describe(v2)

    def test_giant_tiles_are_refused(self, v2: Path) -> None:
        giant = {"shape": [23, 5000, 5000, 3], "chunks": [1, 5000, 5000, 3]}
        edit(v2 / "tiles/.zarray", lambda value: value.update(giant))
        with pytest.raises(OverLimitError, match="5000 x 5000"):
            describe(v2)

    @pytest.mark.parametrize(
        ("compressor", "chunk"),
        [
            ({"id": "gzip", "level": 1}, numcodecs.GZip().encode(bytes(50_000_000))),
            ({"id": "zlib", "level": 1}, numcodecs.Zlib().encode(bytes(50_000_000))),
            ({"id": "zstd", "level": 1}, numcodecs.Zstd().encode(bytes(50_000_000))),
            ({"id": "lz4"}, numcodecs.LZ4().encode(bytes(50_000_000))),
            ({"id": "blosc"}, numcodecs.Blosc().encode(bytes(50_000_000))),
            ({"id": "lz4"}, struct.pack("<I", 0x7FFF_FFFF) + b"\0" * 20),
            ({"id": "blosc"}, struct.pack("<4BIII", 2, 1, 1, 1, 0x7FFF_FFFF, 0, 16)),
        ],
    )
    def test_a_chunk_that_unpacks_to_more_than_it_should_is_refused(
        self, v2: Path, compressor: dict[str, Any], chunk: bytes
    ) -> None:
        edit(v2 / "tiles/.zarray", lambda value: value.update(compressor=compressor))
        (v2 / "tiles/0.0.0.0").write_bytes(chunk)
        with pytest.raises((BadFormatError, ChecksumMismatchError), match="2520"):
            read_all(v2)

    def test_endless_text_is_refused(self, v3: Path) -> None:
        def plain(value: dict[str, Any]) -> None:
            value["codecs"] = [{"name": "vlen-utf8"}]

        edit(v3 / "cell_id/zarr.json", plain)
        (v3 / "cell_id/c/0").write_bytes(struct.pack("<II", 23, 0xFFFF_FFFF))
        with pytest.raises(BadFormatError, match="cut short"):
            read_all(v3)

    def test_fixed_length_text_of_any_length_is_refused(self, v2: Path) -> None:
        (v2 / "cell_id").mkdir()
        value = json.loads((v2 / "tiles/.zarray").read_text())
        value.update(shape=[23], chunks=[1], dtype="<U999999")
        (v2 / "cell_id/.zarray").write_text(json.dumps(value))
        describe(v2)  # 92 MB, which is allowed
        value.update(shape=[230], chunks=[1])
        (v2 / "cell_id/.zarray").write_text(json.dumps(value))
        with pytest.raises(BadFormatError, match="its shape must be"):
            describe(v2)


class TestMetadata:
    @pytest.mark.parametrize(
        "codec",
        [
            {"id": "pickle", "protocol": 5},
            {"id": "json2"},
            {"id": "msgpack2"},
            {"id": "fletcher32"},
            {"id": "unheard_of"},
        ],
    )
    @pytest.mark.parametrize("place", ["compressor", "filters"])
    def test_codecs_that_are_not_on_the_list_are_refused(
        self, v2: Path, codec: dict[str, Any], place: str
    ) -> None:
        value = codec if place == "compressor" else [codec]
        edit(v2 / "tiles/.zarray", lambda document: document.update({place: value}))
        with pytest.raises(UnsafeArchiveError, match=codec["id"]):
            describe(v2)

    def test_pickled_objects_are_refused(self, v2: Path) -> None:
        (v2 / "cell_id").mkdir()
        value = json.loads((v2 / "tiles/.zarray").read_text())
        value.update(shape=[23], chunks=[23], dtype="|O", filters=[{"id": "pickle"}])
        (v2 / "cell_id/.zarray").write_text(json.dumps(value))
        with pytest.raises(UnsafeArchiveError, match="Python objects"):
            describe(v2)

    @pytest.mark.parametrize("name", ["transpose", "numcodecs.pickle", "evil"])
    def test_v3_codecs_that_are_not_on_the_list_are_refused(self, v3: Path, name: str) -> None:
        for place in (0, 1):
            edit(v3 / "tiles/zarr.json", lambda v, at=place: v["codecs"].insert(at, {"name": name}))
            with pytest.raises(UnsafeArchiveError, match=name):
                describe(v3)
            edit(v3 / "tiles/zarr.json", lambda v, at=place: v["codecs"].pop(at))

    def test_sharded_archives_are_left_to_a_later_version(self, tmp_path: Path) -> None:
        group = zarr.create_group(tmp_path / "a.zarr")
        group.create_array(
            "tiles", shape=(8, 4, 4, 3), chunks=(2, 4, 4, 3), shards=(4, 4, 4, 3), dtype="u1"
        )[...] = cells(8, px=(4, 4)).tiles
        with pytest.raises(BadFormatError, match="a later version"):
            describe(tmp_path / "a.zarr")

    @pytest.mark.parametrize(
        ("shape", "dtype"),
        [
            ((5, 8, 8, 4), "u1"),
            ((5, 8, 8, 1), "u1"),
            ((5, 3, 8, 8), "u1"),
            ((5, 8, 8), "u1"),
            ((5, 8, 8, 3), "u2"),
            ((5, 8, 8, 3), "f4"),
            ((5, 8, 8, 3), "i1"),
            ((5, 8, 8, 3), "bool"),
        ],
    )
    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_tiles_are_uint8_rgb_exactly(
        self, tmp_path: Path, shape: tuple[int, ...], dtype: str, zarr_format: int
    ) -> None:
        group = zarr.create_group(tmp_path / "a.zarr", zarr_format=zarr_format)
        group.create_array("tiles", shape=shape, chunks=shape, dtype=dtype)
        with pytest.raises(BadFormatError, match="tiles"):
            describe(tmp_path / "a.zarr")

    def test_no_tile_is_empty(self, tmp_path: Path) -> None:
        path = write_zarr(tmp_path / "a.zarr", np.zeros((0, 8, 8, 3), np.uint8))
        with pytest.raises(EmptyArchiveError, match="no tile"):
            describe(path)

    def test_chunks_hold_whole_tiles(self, tmp_path: Path) -> None:
        group = zarr.create_group(tmp_path / "a.zarr")
        group.create_array("tiles", shape=(5, 8, 8, 3), chunks=(5, 4, 8, 3), dtype="u1")
        with pytest.raises(BadFormatError, match="whole tiles"):
            describe(tmp_path / "a.zarr")

    @pytest.mark.parametrize(
        ("name", "shape", "dtype"),
        [
            ("xy", (22, 2), "f8"),
            ("xy", (23, 3), "f8"),
            ("xy", (23,), "f8"),
            ("xy", (23, 2), str),
            ("cell_id", (22,), str),
            ("cell_id", (23, 1), "i4"),
            ("cell_id", (23,), "f8"),
        ],
    )
    def test_columns_of_other_lengths_or_types_are_bad_format(
        self, v3: Path, name: str, shape: tuple[int, ...], dtype: Any
    ) -> None:
        shutil.rmtree(v3 / name)
        zarr.open_group(v3, mode="a").create_array(name, shape=shape, dtype=dtype)
        with pytest.raises(BadFormatError, match=name):
            describe(v3)

    @pytest.mark.parametrize(
        "change",
        [
            {"shape": "23"},
            {"shape": [23.0, 12, 10, 3]},
            {"shape": [True, 12, 10, 3]},
            {"shape": [-23, 12, 10, 3]},
            {"chunks": [0, 12, 10, 3]},
            {"chunks": [7, 12, 10]},
            {"order": "F"},
            {"zarr_format": 3},
            {"dtype": [["a", "|u1"]]},
            {"dtype": "object"},
            {"compressor": "blosc"},
            {"compressor": {}},
            {"filters": {"id": "crc32"}},
            {"dimension_separator": "../"},
        ],
    )
    def test_senseless_metadata_are_bad_format(self, v2: Path, change: dict[str, Any]) -> None:
        edit(v2 / "tiles/.zarray", lambda value: value.update(change))
        with pytest.raises(BadFormatError, match=r"tiles/\.zarray"):
            describe(v2)

    @pytest.mark.parametrize(
        "change",
        [
            {"chunk_grid": {"name": "rectilinear", "configuration": {}}},
            {"chunk_key_encoding": {"name": "fancy"}},
            {"storage_transformers": [{"name": "x"}]},
            {"codecs": []},
            {"data_type": "complex64"},
            {"data_type": {"name": "struct"}},
            {"node_type": "group"},
        ],
    )
    def test_v3_that_this_version_does_not_know_is_bad_format(
        self, v3: Path, change: dict[str, Any]
    ) -> None:
        edit(v3 / "tiles/zarr.json", lambda value: value.update(change))
        with pytest.raises(BadFormatError, match=r"tiles/zarr\.json"):
            describe(v3)

    @pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\xff", '{"zarr_format": 3}'])
    def test_a_damaged_group_is_bad_format(self, v3: Path, text: str) -> None:
        (v3 / "zarr.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(BadFormatError, match=r"zarr\.json"):
            describe(v3)

    def test_endless_metadata_are_refused(self, v3: Path) -> None:
        with (v3 / "zarr.json").open("ab") as file:
            file.write(b" " * MAX_METADATA_BYTES)
        with pytest.raises(OverLimitError, match="of zarr metadata"):
            describe(v3)

    def test_a_lone_array_is_bad_format(self, v3: Path) -> None:
        with pytest.raises(BadFormatError, match="not the metadata of a zarr v3 group"):
            describe(v3 / "tiles")

    def test_a_group_without_tiles_is_bad_format(self, tmp_path: Path) -> None:
        zarr.create_group(tmp_path / "a.zarr").create_group("tiles")
        with pytest.raises(BadFormatError, match="tiles"):
            describe(tmp_path / "a.zarr")

    def test_an_empty_folder_called_zarr_is_bad_format(self, tmp_path: Path) -> None:
        (tmp_path / "a.zarr").mkdir()
        with pytest.raises(BadFormatError, match="no zarr group"):
            describe(tmp_path / "a.zarr")

    def test_a_linked_folder_inside_is_refused(self, v3: Path) -> None:
        (v3 / "tiles/loop").symlink_to(v3)
        with pytest.raises(UnsafeArchiveError, match="link to another folder"):
            describe(v3)
