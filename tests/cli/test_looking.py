"""``inspect`` and ``verify`` as a user types them."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cvm_batch.archives.inspecting import inspect_slide
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.archives.tables.slides import ListedSlide
from cvm_batch.archives.verifying import verify_slide
from cvm_batch.cli import cli
from cvm_batch.cli.opening import opening_options
from cvm_batch.errors import NoSlidesError, UsageError
from cvm_batch.model.bundle import SPEC_FILE, WEIGHTS_FILE, Bundle
from tests.archives.making import cells, image_names, write_folder, write_zarr, write_zip
from tests.archives.reading import flip_bit
from tests.cli.test_commands import cvm_batch_run, submit


def told(*arguments: object) -> tuple[int, list[dict[str, Any]]]:
    ended = cvm_batch_run(*arguments, "--json")
    assert "Traceback" not in ended.stderr
    return ended.returncode, json.loads(ended.stdout)


def test_inspect_shows_what_a_slide_is(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "slide.zarr", cells(40, px=(20, 30)).tiles, mpp=0.25)
    code, (shown,) = told("inspect", path)
    assert code == 0
    assert (shown["slide_id"], shown["format"]) == ("slide.zarr", "zarr")
    assert (shown["tiles"], shown["looked_at"], shown["unreadable"]) == (40, 40, 0)
    assert shown["sizes_seen"] == [{"height": 20, "width": 30, "tiles": 40}]
    assert (shown["mpp"], shown["integrity"]) == ([0.25, 0.25], "verified")


def test_inspect_tells_what_could_not_be_read(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "slide", cells(5).tiles)
    (path / "00002.png").write_bytes(b"no image")
    ended = cvm_batch_run("inspect", path)
    assert ended.returncode == 0
    assert "5 tiles, 1 of them unreadable" in ended.stdout
    assert "'00002.png' does not decode" in ended.stdout


def test_inspect_of_a_broken_slide_ends_with_3(tmp_path: Path) -> None:
    write_zip(tmp_path / "slides" / "good.zip", cells(3).tiles)
    (tmp_path / "slides" / "broken.zip").write_bytes(b"PK\3\4 and then nothing")
    code, shown = told("inspect", tmp_path / "slides")
    assert code == 3
    assert {each["slide_id"]: each.get("reason") for each in shown} == {
        "good.zip": None,
        "broken.zip": "bad_format",
    }


def test_contact_sheet_shows_the_slide_s_cells(tmp_path: Path) -> None:
    tiles = np.zeros((3, 48, 48, 3), np.uint8)
    tiles[0, ..., 0] = tiles[1, ..., 1] = tiles[2, ..., 2] = 255
    path = write_zip(tmp_path / "slide.zip", tiles)
    sheet = tmp_path / "sheet.png"
    assert cvm_batch_run("inspect", path, "--contact-sheet", sheet).returncode == 0
    with Image.open(sheet) as picture:
        pure = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
        counts = {colour: n for n, colour in picture.getcolors(1 << 16) or []}
        assert {counts[colour] for colour in pure} == {96 * 96}


@pytest.mark.parametrize("sheet", ["sheet.jpg", "two.png"])
def test_contact_sheets_that_cannot_be_are_refused(tmp_path: Path, sheet: str) -> None:
    for name in ("a.zip", "b.zip"):
        write_zip(tmp_path / "slides" / name, cells(1).tiles)
    slides = tmp_path / "slides" / ("a.zip" if sheet == "sheet.jpg" else "")
    ended = cvm_batch_run("inspect", slides, "--contact-sheet", tmp_path / sheet)
    assert ended.returncode == 2
    assert "--contact-sheet" in ended.stderr
    assert not (tmp_path / sheet).exists()


def test_verify_tells_whole_slides_from_damaged_ones(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    write_zip(slides / "whole.zip", cells(9).tiles)
    write_folder(slides / "plain", cells(4).tiles)
    damaged = write_zarr(slides / "damaged.zarr", cells(40).tiles)
    flip_bit(damaged / "tiles/c/0/0/0/0", np.random.default_rng(0))
    code, checked = told("verify", slides)
    assert code == 3
    found = {each["name"]: (each["good"], each["detail"]) for each in checked}
    assert found["whole.zip"] == (True, "9 tiles, every checksum agrees")
    assert found["plain"][0]
    assert "no checksum is recorded" in found["plain"][1]
    assert not found["damaged.zarr"][0]
    assert "checksum_mismatch" in found["damaged.zarr"][1]


def test_verify_reads_recorded_digests(tmp_path: Path) -> None:
    slide = write_folder(tmp_path / "slide", cells(3).tiles)
    lines = [
        f"{hashlib.sha256((slide / name).read_bytes()).hexdigest()}  slide/{name}\n"
        for name in image_names(3)
    ]
    (tmp_path / "slide.sha256").write_text("".join(lines))
    code, (checked,) = told("verify", slide)
    assert (code, checked["detail"]) == (0, "3 tiles, every checksum agrees")
    (slide / "00001.png").write_bytes((slide / "00002.png").read_bytes())
    code, (checked,) = told("verify", slide)
    assert code == 3
    assert "00001.png" in checked["detail"]


def test_verify_of_bundles_and_results(tiny_bundle: Bundle, tmp_path: Path) -> None:
    write_zip(tmp_path / "slides" / "a.zip", cells(20, px=(40, 40)).tiles)
    results = tmp_path / "results"
    assert submit(tmp_path / "slides", tiny_bundle.path, results)[0] == 0
    bundle = shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    code, checked = told("verify", bundle, results)
    assert (code, [each["what"] for each in checked]) == (0, ["bundle", "results"])
    assert "1 slides and 20 cells add up" in checked[1]["detail"]

    flip_bit(bundle / WEIGHTS_FILE, np.random.default_rng(0))
    flip_in_a_page(next(results.glob("cells/**/*.parquet")))
    code, checked = told("verify", bundle, results)
    assert code == 3
    assert [each["good"] for each in checked] == [False, False]


def flip_in_a_page(path: Path) -> None:
    """Damage data, not the footer: a bit of that may mean nothing."""
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start + column.total_compressed_size - 1] ^= 1
    path.write_bytes(content)


def in_process(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)), standalone_mode=False)


@pytest.mark.parametrize("command", ["inspect", "verify", "pack"])
def test_nothing_at_all_is_wrong_use(tmp_path: Path, command: str) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "notes.txt").write_text("no slide")
    out = ["--out", tmp_path / "packed"] if command == "pack" else []
    ended = in_process(command, tmp_path / "slides", *out)
    assert isinstance(ended.exception, NoSlidesError)
    assert "notes.txt" in ended.stderr
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("name", [SPEC_FILE, WEIGHTS_FILE])
def test_what_is_left_of_a_bundle_is_verified_as_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    ended = in_process("verify", tmp_path, "--json")
    (checked,) = json.loads(ended.stdout)
    assert (ended.return_value, checked["what"], checked["good"]) == (3, "bundle", False)


@pytest.mark.parametrize(
    "left", ["runs/20260131T220000Z-1a2b3c4d.json", "slides/run_date=x/a", "cells/run_date=x/a"]
)
def test_what_is_left_of_results_is_verified_as_them(tmp_path: Path, left: str) -> None:
    (tmp_path / left).parent.mkdir(parents=True)
    (tmp_path / left).write_bytes(b"")
    ended = in_process("verify", tmp_path, "--json")
    (checked,) = json.loads(ended.stdout)
    assert (ended.return_value, checked["what"], checked["good"]) == (3, "results", False)


def test_a_sheet_that_cannot_be_written_is_told_after_the_slide(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "slide.zip", cells(3).tiles)
    ended = in_process("inspect", path, "--contact-sheet", tmp_path / "nowhere" / "sheet.png")
    assert isinstance(ended.exception, UsageError)
    assert "cannot be written: No such file or directory; choose another" in str(ended.exception)
    assert "3 tiles, 0 of them unreadable" in ended.stdout


@pytest.mark.parametrize("mpp", ["nan", "inf", "-0.25", "0", "0.25,nan", "250"])
def test_a_scale_that_no_microscope_has_is_refused(mpp: str) -> None:
    ended = CliRunner().invoke(opening_options(click.Command("any")), [f"--mpp={mpp}"])
    assert ended.exit_code == 2
    assert f"'{mpp}' is not from 0.02 to 5 microns per pixel" in ended.stderr


def surprise(slide: ListedSlide, options: OpenOptions) -> object:
    """As a reader with a bug: the worker finds this by its name."""
    if slide.slide_id == "a.zip":
        raise LookupError("a bug")
    look = verify_slide if slide.slide_id == "b.zip" else inspect_slide
    return look(slide.address, options)


@pytest.mark.parametrize(("command", "other"), [("verify", "b.zip"), ("inspect", "c.zip")])
def test_a_bug_costs_its_slide_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, other: str
) -> None:
    for name in ("a.zip", other):
        write_zip(tmp_path / name, cells(3).tiles)
    module = importlib.import_module(f"cvm_batch.cli.{command}")
    monkeypatch.setattr(module, f"_{command}", surprise)
    ended = in_process(command, tmp_path, "--json")
    failed, whole = json.loads(ended.stdout)
    assert ended.return_value == 3
    assert "LookupError('a bug')" in failed["detail"]
    assert "bad_format" in (failed.get("reason") or failed["detail"])
    assert whole.get("good", "reason" not in whole)
