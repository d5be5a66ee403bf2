"""Damaged: zarr metadata that name a codec which is unknown, or runs code to decode.

Expected: ``failed``, ``unsafe_archive``, exit code 3; the codec is not even looked up.
"""

from __future__ import annotations

import json

import pytest

from cvm_batch.errors import Reason
from cvm_batch.results.schemas import Status
from tests.archives.making import write_zarr
from tests.faults.night import Expected, Night, slide_of

EXPECTED = Expected(Status.FAILED, Reason.UNSAFE_ARCHIVE)


@pytest.mark.parametrize(
    "name", ["numcodecs.pickle", "pickle", "msgpack2", "json2", "no-such-codec"]
)
def test_codec_of_v3_that_is_not_on_the_list(night: Night, name: str) -> None:
    document = write_zarr(night.slides / "slide.zarr", slide_of().tiles) / "tiles/zarr.json"
    value = json.loads(document.read_text())
    value["codecs"] = [value["codecs"][0], {"name": name, "configuration": {}}]
    document.write_text(json.dumps(value))
    night.submit().assert_ends("slide.zarr", EXPECTED)


@pytest.mark.parametrize("filters", [[{"id": "pickle", "protocol": 5}], [{"id": "no-such-codec"}]])
def test_filter_of_v2_that_is_not_on_the_list(night: Night, filters: list[object]) -> None:
    path = write_zarr(night.slides / "slide.zarr", slide_of().tiles, zarr_format=2)
    document = path / "tiles/.zarray"
    value = json.loads(document.read_text())
    document.write_text(json.dumps(value | {"filters": filters}))
    night.submit().assert_ends("slide.zarr", EXPECTED)


@pytest.mark.parametrize("place", ["codecs", "index_codecs"])
def test_codec_inside_of_shards_that_is_not_on_the_list(night: Night, place: str) -> None:
    path = night.slides / "slide.zarr"
    write_zarr(path, slide_of().tiles, chunk=2, shards=(8, 40, 40, 3))
    document = path / "tiles/zarr.json"
    value = json.loads(document.read_text())
    value["codecs"][0]["configuration"][place] = ["bytes", {"name": "pickle"}]
    document.write_text(json.dumps(value))
    night.submit().assert_ends("slide.zarr", EXPECTED)
