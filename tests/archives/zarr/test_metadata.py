"""Zarr metadata: what is hostile, damaged or beyond all measure is refused before reading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cvm_batch.archives.limits import MAX_CHUNK_BYTES, MAX_METADATA_BYTES
from cvm_batch.errors import (
    BadFormatError,
    EmptyArchiveError,
    OverLimitError,
    SlideError,
    UnsafeArchiveError,
)
from tests.archives.making import Cells, write_zarr
from tests.archives.reading import assert_honest, describe, edit_json, read_all

COUNT, CHUNK = 23, 7


class TestLimits:
    def test_a_scale_of_hundreds_of_digits_is_refused(self, v3: Path) -> None:
        edit_json(v3 / "zarr.json", lambda value: value["attributes"].update(mpp=10**400))
        with pytest.raises(BadFormatError, match="mpp"):
            describe(v3)

    def test_a_giant_chunk_is_refused_from_the_metadata(self, v3: Path) -> None:
        def inflate(value: dict[str, Any]) -> None:
            value["shape"][0] = 2_000_000
            value["chunk_grid"]["configuration"]["chunk_shape"][0] = 2_000_000

        edit_json(v3 / "tiles/zarr.json", inflate)
        with pytest.raises(OverLimitError, match=str(MAX_CHUNK_BYTES)):
            describe(v3)

    @pytest.mark.parametrize("shape", [[10**12, 12, 10, 3], [10**30, 12, 10, 3]])
    def test_too_many_tiles_are_refused(self, v2: Path, shape: list[int]) -> None:
        edit_json(v2 / "tiles/.zarray", lambda value: value.update(shape=shape))
        with pytest.raises(OverLimitError, match="2000000 tiles"):
            describe(v2)

    def test_giant_tiles_are_refused(self, v2: Path) -> None:
        giant = {"shape": [23, 5000, 5000, 3], "chunks": [1, 5000, 5000, 3]}
        edit_json(v2 / "tiles/.zarray", lambda value: value.update(giant))
        with pytest.raises(OverLimitError, match="5000 x 5000"):
            describe(v2)

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
        edit_json(v2 / "tiles/.zarray", lambda document: document.update({place: value}))
        with pytest.raises(UnsafeArchiveError, match=codec["id"]):
            describe(v2)

    def test_pickled_objects_are_refused(self, v2: Path) -> None:
        (v2 / "cell_id").mkdir()
        value = json.loads((v2 / "tiles/.zarray").read_text())
        value.update(shape=[23], chunks=[23], dtype="|O", filters=[{"id": "pickle"}])
        (v2 / "cell_id/.zarray").write_text(json.dumps(value))
        with pytest.raises(UnsafeArchiveError, match="Python objects"):
            describe(v2)

    @pytest.mark.parametrize("name", ["numcodecs.pickle", "sharding", "evil"])
    def test_v3_codecs_that_are_not_on_the_list_are_refused(self, v3: Path, name: str) -> None:
        for place in (0, 1):
            edit_json(
                v3 / "tiles/zarr.json", lambda v, at=place: v["codecs"].insert(at, {"name": name})
            )
            with pytest.raises(UnsafeArchiveError, match=name):
                describe(v3)
            edit_json(v3 / "tiles/zarr.json", lambda v, at=place: v["codecs"].pop(at))

    @pytest.mark.parametrize(
        ("shape", "dtype"),
        [
            ((5, 8, 8, 4), "u1"),
            ((5, 8, 8, 1), "u1"),
            ((5, 8, 3, 8), "u1"),
            ((5, 8, 8), "u1"),
            ((5, 8, 8, 3, 1), "u1"),
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

    def test_what_lies_beyond_a_cut_edge_must_be_known(self, v2: Path) -> None:
        """Else a damaged shape would make tiles smaller than they are, and nobody saw it."""
        edit_json(v2 / "tiles/.zarray", lambda value: value.update(fill_value=None))
        assert describe(v2).tile_px == (12, 10)
        edit_json(v2 / "tiles/.zarray", lambda value: value.update(shape=[23, 11, 10, 3]))
        with pytest.raises(BadFormatError, match="do not divide them, and no fill_value"):
            describe(v2)

    def test_pixels_beyond_the_shape_are_bad_format(self, v2: Path) -> None:
        edit_json(v2 / "tiles/.zarray", lambda value: value.update(shape=[23, 11, 10, 3]))
        with pytest.raises(BadFormatError, match="pixels beyond the shape"):
            read_all(v2)

    def test_a_shape_that_cuts_tiles_off_is_bad_format(self, v2: Path) -> None:
        edit_json(v2 / "tiles/.zarray", lambda value: value.update(shape=[22, 12, 10, 3]))
        with pytest.raises(BadFormatError, match="pixels beyond the shape"):
            read_all(v2)

    def test_a_shape_that_cuts_chunks_off_is_bad_format(self, v2: Path) -> None:
        edit_json(v2 / "tiles/.zarray", lambda value: value.update(shape=[13, 12, 10, 3]))
        with pytest.raises(BadFormatError, match="beyond the 13 tiles"):
            describe(v2)

    @pytest.mark.parametrize(
        "change",
        [
            {"chunk_shape": [3, 12, 10, 3]},
            {"chunk_shape": [0, 12, 10, 3]},
            {"index_location": "middle"},
            {"index_codecs": [{"name": "bytes"}, {"name": "gzip"}]},
            {"index_codecs": [{"name": "transpose", "configuration": {"order": [1, 0]}}]},
        ],
    )
    def test_senseless_shards_are_bad_format(
        self, slide: Cells, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        chunks = {"chunks": (2, 12, 10, 3), "shards": (14, 12, 10, 3)}
        path = write_zarr(tmp_path / "a.zarr", slide.tiles, **chunks)

        def spoil(value: dict[str, Any]) -> None:
            value["codecs"][0]["configuration"].update(change)

        edit_json(path / "tiles/zarr.json", spoil)
        with pytest.raises(BadFormatError, match=r"tiles/zarr\.json"):
            describe(path)

    def test_shards_of_endless_chunks_are_refused(self, v3: Path) -> None:
        inner = {"chunk_shape": [1, 12, 10, 3], "codecs": ["bytes"], "index_codecs": ["bytes"]}

        def spoil(value: dict[str, Any]) -> None:
            value["chunk_grid"]["configuration"]["chunk_shape"][0] = 10**9
            value["codecs"] = [{"name": "sharding_indexed", "configuration": inner}]

        edit_json(v3 / "tiles/zarr.json", spoil)
        with pytest.raises(OverLimitError, match="shards of 1000000000 chunks"):
            describe(v3)

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
            {"order": "A"},
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
        edit_json(v2 / "tiles/.zarray", lambda value: value.update(change))
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
        edit_json(v3 / "tiles/zarr.json", lambda value: value.update(change))
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


class TestFlips:
    @settings(max_examples=200, deadline=None)
    @given(data=st.data())
    def test_no_flipped_bit_gives_a_wrong_tile(
        self, slide: Cells, undamaged: Path, data: st.DataObject
    ) -> None:
        documents = ["zarr.json", "tiles/zarr.json", "xy/zarr.json", "cell_id/zarr.json"]
        document = undamaged / data.draw(st.sampled_from(documents))
        whole = document.read_bytes()
        bit = data.draw(st.integers(0, 8 * len(whole) - 1))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        document.write_bytes(damaged)
        try:
            block = read_all(undamaged)
        except SlideError:
            return
        finally:
            document.write_bytes(whole)
        assert_honest(block, slide)
        np.testing.assert_array_equal(block.xy, slide.xy)
        assert block.cell_id == slide.cell_id

    @pytest.fixture(scope="class")
    @classmethod
    def undamaged(cls, slide: Cells, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("zarr") / "slide.zarr"
        return write_zarr(path, slide.tiles, xy=slide.xy, cell_id=slide.cell_id, chunk=CHUNK)
