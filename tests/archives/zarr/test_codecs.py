"""Chunks of zarr slides: decoded as zarr itself does, and refused where that would guess."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pyarrow as pa
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from cvm_batch.archives.archive import Integrity
from cvm_batch.archives.zarr.codecs import DamagedChunkError, decode_chunk, parse_codec
from cvm_batch.errors import BadFormatError, ChecksumMismatchError
from tests.archives.contract import assert_block
from tests.archives.making import Cells, write_zarr
from tests.archives.reading import describe, edit_json, flip_bit, read_all

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


def test_a_checksum_that_the_metadata_promise_must_be_there() -> None:
    promised = parse_codec("zstd", {"level": 0, "checksum": True}, "tiles")
    data = bytes(range(100))
    kept = numcodecs.Zstd(checksum=True).encode(data)
    assert bytes(decode_chunk((promised,), kept, 100)) == data
    with pytest.raises(DamagedChunkError, match="no checksum"):
        decode_chunk((promised,), numcodecs.Zstd().encode(data), 100)


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

    def test_a_zstd_frame_without_its_size_is_read(self, slide: Cells, tmp_path: Path) -> None:
        """As streaming encoders of other languages write it."""
        path = write_zarr(tmp_path / "a.zarr", slide.tiles, compressors=[ZstdCodec()])
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(slide.tiles.tobytes())
        (path / "tiles/c/0/0/0/0").write_bytes(sink.getvalue().to_pybytes())
        assert_block(read_all(path), slide, 0, {})


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
        edit_json(v2 / "tiles/.zarray", lambda value: value.update(compressor=compressor))
        (v2 / "tiles/0.0.0.0").write_bytes(chunk)
        with pytest.raises((BadFormatError, ChecksumMismatchError), match="2520"):
            read_all(v2)
