"""``cvm-batch results`` as a user types it, over slides of hostile names."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner, Result

from cvm_batch.cli import cli
from cvm_batch.errors import CvmBatchError, ResultsError, UsageError
from cvm_batch.pseudonyms import KEY_VARIABLE, Pseudonyms
from cvm_batch.results.exporting.summary import schema
from cvm_batch.results.verifying import verify_results
from cvm_batch.texts import printable
from tests.archives.object_store import serving_s3
from tests.results.nights import HOSTILE, Night, content

KEY = "0123456789abcdef-key"
ALL = {*HOSTILE, "hsil.zip", "changed.zip", "normal", "failed.zip", "holed", "holed-normal"}


def told(*arguments: object, answer: str | None = None) -> Result:
    command = ["results", *map(str, arguments)]
    return CliRunner().invoke(cli, command, standalone_mode=False, input=answer)


def error_of(*arguments: object) -> CvmBatchError:
    error = told(*arguments).exception
    assert isinstance(error, CvmBatchError)
    return error


def in_csv(name: str) -> str:
    """A slide's name as spreadsheets get it."""
    return printable(f"'{name}" if name.startswith(("=", "-", "@", "+")) else name)


@pytest.mark.parametrize("slide", HOSTILE)
def test_a_slide_s_cells_for_qupath(night: Night, tmp_path: Path, slide: str) -> None:
    file = tmp_path / "cells.geojson"
    ended = told("geojson", "--results", night.results, "--file", file, "--", slide)
    assert ended.return_value == 0
    features = json.loads(file.read_text())["features"]
    assert len(features) == 20
    assert {f["properties"]["classification"]["name"] for f in features} == {"NILM"}
    asked = ("--results", night.results, "--group", "hsil_plus", "--top", "--", slide)
    assert json.loads(told("geojson", *asked).stdout)["features"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["cells.geojson"]


@pytest.mark.parametrize("slide", HOSTILE)
def test_a_slide_s_cells_as_csv(night: Night, slide: str) -> None:
    ended = told("csv", "--results", night.results, "--", slide)
    lines = list(csv.DictReader(io.StringIO(ended.stdout)))
    assert [line["index"] for line in lines] == [str(n) for n in range(20)]
    assert {line["slide_id"] for line in lines} == {in_csv(slide)}


def test_all_slides_as_csv(night: Night, tmp_path: Path) -> None:
    file = tmp_path / "slides.csv"
    assert told("csv", "--results", night.results, "--file", file).return_value == 0
    with file.open(newline="", encoding="utf-8") as opened:
        lines = list(csv.DictReader(opened))
    assert {line["slide_id"] for line in lines} == set(map(in_csv, ALL))
    assert [line["status"] for line in lines].count("complete") == len(ALL) - 3


def test_a_slide_that_was_not_read_whole_is_told(night: Night) -> None:
    ended = told("csv", "holed", "--results", night.results)
    assert ended.return_value == 3
    assert "The slide is incomplete: 1 cells could not be read." in ended.stderr
    ended = told("geojson", "holed", "--results", night.results)
    assert ended.return_value == 3
    assert "29 cells left out: their position is not known." in ended.stderr
    error = error_of("geojson", "failed.zip", "--results", night.results)
    assert "failed (checksum_mismatch)" in str(error)


def test_a_file_that_cannot_be_written_leaves_nothing(night: Night, tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("old")
    asked = ("csv", "failed.zip", "--results", night.results, "--file", tmp_path / "old.csv")
    assert isinstance(error_of(*asked), ResultsError)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    nowhere = tmp_path / "none" / "a.csv"
    error = error_of("csv", "--results", night.results, "--file", nowhere)
    assert "cannot be written: No such file or directory" in str(error)
    inside = night.results / "slides" / "a.csv"
    assert "among the results" in str(error_of("csv", "--results", night.results, "--file", inside))


def test_the_summary_is_as_the_schema_says(night: Night) -> None:
    published = json.loads(told("schema").stdout)
    assert published == schema()
    newest = json.loads(told("summary", "--results", night.results).stdout)
    assert newest["run_id"] == night.second_run
    first = json.loads(told("summary", "--results", night.results, "--run", night.first_run).stdout)
    assert {one["slide_id"] for one in first["not_complete"]} == {
        *("failed.zip", "holed", "holed-normal")
    }
    for summary in (newest, first):
        jsonschema.validate(summary, published)
    error = error_of("summary", "--results", night.results, "--run", "none")
    assert "no run none" in str(error)


def test_pseudonyms(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    for command in (("pseudonyms",), ("summary", "--pseudonyms")):
        assert f"set {KEY_VARIABLE}" in str(error_of(*command, "--results", night.results))
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    lines = list(csv.reader(io.StringIO(told("pseudonyms", "--results", night.results).stdout)))
    key = Pseudonyms(KEY.encode())
    assert dict(lines[1:]) == {in_csv(name): key.of(name) for name in ALL}
    summary = json.loads(told("summary", "--pseudonyms", "--results", night.results).stdout)
    jsonschema.validate(summary, schema())
    assert [one["slide_id"] for one in summary["not_complete"]] == [key.of("failed.zip")]


def test_folders_and_slides_that_are_not_there(night: Night, tmp_path: Path) -> None:
    for command in (("csv",), ("summary",), ("geojson", "a")):
        assert "holds no runs" in str(error_of(*command, "--results", tmp_path))
    for command in (("csv", "other"), ("geojson", "other")):
        assert "'other'" in str(error_of(*command, "--results", night.results))
    assert isinstance(error_of("csv", "--top", "--results", night.results), UsageError)
    assert list(tmp_path.iterdir()) == []


def test_exports_from_object_storage(night: Night) -> None:
    commands = (("csv",), ("csv", "hsil.zip"), ("geojson", "--", HOSTILE[1]), ("summary",))
    with serving_s3() as server:
        address = server.put_all(night.results, "lab/results")
        for name, *rest in commands:
            there = told(name, "--results", address, *rest)
            assert there.exception is None
            assert there.stdout == told(name, "--results", night.results, *rest).stdout


# Erasing


@pytest.fixture
def results(night: Night, tmp_path: Path) -> Path:
    return shutil.copytree(night.results, tmp_path / "results")


@pytest.mark.parametrize("slide", HOSTILE)
def test_a_slide_is_erased(results: Path, slide: str) -> None:
    asked = ("erase", "--yes", "--results", results, "--", slide)
    ended = told(*asked)
    assert ended.return_value == 0
    assert ended.stdout.startswith("Erased: 1 rows of 1 runs, ")
    left = csv.DictReader(io.StringIO(told("csv", "--results", results).stdout))
    assert {line["slide_id"] for line in left} == set(map(in_csv, ALL - {slide}))
    assert verify_results(results).findings == ()
    assert told(*asked).stdout.startswith("Was erased already: entry 6 ")


@pytest.mark.parametrize("answer", ["n\n", "", "\n", "x\n"])
def test_without_a_yes_nothing_is_erased(results: Path, answer: str) -> None:
    before = content(results)
    ended = told("erase", "--results", results, HOSTILE[2], answer=answer)
    assert ended.exit_code != 0
    assert r"red\\nnext line" in ended.stderr
    assert content(results) == before


def test_with_a_yes_it_is(results: Path) -> None:
    ended = told("erase", "--results", results, "changed.zip", answer="y\n")
    assert ended.return_value == 0
    assert "2 rows of 2 runs" in ended.stderr


def test_erasing_as_json(results: Path) -> None:
    assert isinstance(error_of("erase", "holed", "--json", "--results", results), UsageError)
    ended = told("erase", "holed", "--json", "--yes", "--results", results)
    assert json.loads(ended.stdout)["rows"] == 1


def test_what_is_not_there_cannot_be_erased(results: Path, tmp_path: Path) -> None:
    assert "'other'" in str(error_of("erase", "other", "--yes", "--results", results))
    nowhere = tmp_path / "nowhere"
    assert "holds no runs" in str(error_of("erase", "a", "--yes", "--results", nowhere))
    assert not nowhere.exists()
