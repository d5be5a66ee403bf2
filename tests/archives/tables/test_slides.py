"""Manifests: what their rows say, and that no doubtful row is guessed at."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.discovery import discover
from cvm_batch.archives.tables.slides import ListedSlide, Preparation, read_slides_table
from cvm_batch.errors import SlideIdCollisionError, UsageError
from tests.archives.making import cells, write_folder, write_zip

DIGEST = "ab" * 32


def read(text: str | bytes, name: str = "night.csv") -> tuple[ListedSlide, ...]:
    data = text.encode() if isinstance(text, str) else text
    return read_slides_table(data, name, f"/archive/{name}", "/archive")


def read_parquet(columns: dict[str, Any]) -> tuple[ListedSlide, ...]:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink)
    return read(sink.getvalue().to_pybytes(), "night.parquet")


FULL = ListedSlide(
    slide_id="P-17",
    address=SlideAddress(
        uri="/archive/a/p17.svs",
        cells_uri="/tables/p17.csv",
        sha256=DIGEST,
        cells_expected=4100,
    ),
    priority=7,
    preparation=Preparation.LIQUID_BASED,
    further={"ward": "7b"},
)


def test_every_column_of_a_csv() -> None:
    assert read(
        "slide_id,uri,cells_uri,priority,preparation,cells_expected,sha256,ward\n"
        f"P-17,a/p17.svs,/tables/p17.csv,7,ThinPrep,4100,sha256:{DIGEST.upper()},7b\n"
        "P-18,b.zip,,,,,,\n"
    ) == (FULL, ListedSlide(slide_id="P-18", address=SlideAddress(uri="/archive/b.zip")))


def test_every_column_of_a_parquet() -> None:
    assert read_parquet(
        {
            "slide_id": ["P-17"],
            "uri": pa.array(["a/p17.svs"]).dictionary_encode(),
            "cells_uri": ["/tables/p17.csv"],
            "priority": pa.array([7], pa.int8()),
            "preparation": ["liquid_based"],
            "cells_expected": [4100.0],  # what pandas makes of a column with gaps
            "sha256": [DIGEST],
            "ward": ["7b"],
        }
    ) == (FULL,)


@pytest.mark.parametrize(
    "text",
    [
        "slide_id;uri;ward\nP-17;a.zip;7b\n",
        "\ufeffSlide ID, URI ,ward\n P-17 ,a.zip, 7b\n",
        'slide_id,uri,ward\r\n"P-17","a.zip","7b"\r\n,,\r\n',
    ],
)
def test_what_spreadsheets_write_is_understood(text: str) -> None:
    (slide,) = read(text)
    assert (slide.slide_id, slide.address.uri) == ("P-17", "/archive/a.zip")
    assert slide.further == {"ward": "7b"}


def test_addresses_are_relative_to_the_table() -> None:
    def addresses(folder: str) -> list[str]:
        text = b"slide_id,uri\n1,a.zip\n2,../b.zip\n3,s3://else/c.zip\n"
        listed = read_slides_table(text, "night.csv", "the table", folder)
        return [slide.address.uri for slide in listed]

    assert addresses("/nights/1") == ["/nights/1/a.zip", "/nights/b.zip", "s3://else/c.zip"]
    assert addresses("s3://lab/1") == ["s3://lab/1/a.zip", "s3://lab/b.zip", "s3://else/c.zip"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("slide,uri\n1,a.zip\n", "no column 'slide_id'"),
        ("slide_id,uri,uri\n1,a.zip,b.zip\n", "'uri' twice"),
        ("slide_id,uri\n1,\n", "data row 1, column 'uri': has no value"),
        ("slide_id,uri\n1,a,b.zip\n", "3 values in data row 1, but 2 columns"),
        ("slide_id,uri,priority\n1,a.zip,soon\n", "'soon' is no whole number"),
        ("slide_id,uri,priority\n1,a.zip,1.000\n", "'1.000' is no whole number"),
        ("slide_id,uri,cells_expected\n1,a.zip,-1\n", "no number of cells"),
        ("slide_id,uri,sha256\n1,a.zip,1234\n", "not the 64 hexadecimal digits"),
        ("slide_id,uri,preparation\n1,a.zip,blood\n", "conventional or liquid_based"),
        ("slide_id,uri\n1,ftp://x/a.zip\n", "ftp://"),
        ("slide_id,uri\n1,a.zip\n2,./a.zip\n", "would count twice"),
        ("slide_id,uri\n", "lists no slide"),
        ("", "no column 'slide_id'"),
        ('slide_id,uri\n"1,a.zip\n', "cannot be read"),
    ],
)
def test_a_doubtful_table_is_refused_by_row_and_column(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=r"night\.csv") as caught:
        read(text)
    assert told in str(caught.value)


def test_one_id_twice_names_both_rows() -> None:
    with pytest.raises(SlideIdCollisionError, match="data rows 1 and 3"):
        read("slide_id,uri\n1,a.zip\n2,b.zip\n1,c.zip\n")


@pytest.mark.parametrize("name", ["night.csv", "night.parquet"])
@given(data=st.binary(max_size=300))
def test_anything_is_read_or_refused(name: str, data: bytes) -> None:
    with suppress(UsageError):
        assert all(slide.slide_id and slide.address.uri for slide in read(data, name))


def test_a_manifest_is_found_and_its_slides_with_it(tmp_path: Path) -> None:
    write_zip(tmp_path / "slides" / "a.zip", cells(2).tiles)
    manifest = tmp_path / "night.csv"
    manifest.write_text("slide_id,uri,priority\nP-1,slides/a.zip,3\n")
    (slide,) = discover([str(manifest)]).slides
    assert (slide.slide_id, slide.priority) == ("P-1", 3)
    assert slide.address.uri == str(tmp_path / "slides" / "a.zip")


def test_a_manifest_beside_folders_is_not_taken_for_one_of_slides(tmp_path: Path) -> None:
    write_folder(tmp_path / "slides" / "a", cells(2).tiles)
    (tmp_path / "slides" / "notes.csv").write_text("who,what\nme,nothing\n")
    found = discover([str(tmp_path / "slides")])
    assert [slide.slide_id for slide in found.slides] == ["a"]
    assert [Path(ignored.uri).name for ignored in found.ignored] == ["notes.csv"]


def test_one_id_from_a_manifest_and_a_folder_is_an_error(tmp_path: Path) -> None:
    write_zip(tmp_path / "slides" / "a.zip", cells(2).tiles)
    manifest = tmp_path / "night.csv"
    manifest.write_text("slide_id,uri\na.zip,slides/a.zip\n")
    with pytest.raises(SlideIdCollisionError, match=r"a\.zip"):
        discover([str(manifest), str(tmp_path / "slides")])


def test_a_damaged_parquet_neither_ends_the_process_nor_fills_the_memory() -> None:
    """Each bit turned round; in a process of its own, since Arrow has aborted on some."""
    script = """
import io, resource
import pyarrow as pa
from pyarrow import parquet
from cvm_batch.archives.tables.slides import read_slides_table
from cvm_batch.errors import UsageError

packed = io.BytesIO()
parquet.write_table(pa.table({"slide_id": ["1"], "uri": ["a.zip"]}), packed)
whole, refused = packed.getvalue(), 0
for bit in range(8 * len(whole)):
    data = bytearray(whole)
    data[bit // 8] ^= 1 << bit % 8
    try:
        assert read_slides_table(bytes(data), "night.parquet", "the manifest", "/slides")
    except UsageError:
        refused += 1
assert refused > len(whole), refused
assert pa.default_memory_pool().max_memory() < 1 << 30
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
