"""``cvm-batch pack`` as a user types it."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cvm_batch.archives.packing.targets import holding
from cvm_batch.cli import cli
from cvm_batch.errors import UsageError
from tests.archives.making import (
    cells,
    encode,
    write_folder,
    write_tar,
    write_zip,
    write_zip_members,
)
from tests.archives.packing_slides import assert_same, contents, leftovers
from tests.archives.reading import read_all

COMMAND = [sys.executable, "-m", "cvm_batch", "pack"]
#: Bytes that a file may have where a disk is full: metadata fit, chunks of tiles do not.
FULL = 20_000


def pack(
    *arguments: object, preexec_fn: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=preexec_fn,
    )
    assert "Traceback" not in ended.stderr
    return ended


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    write_zip(tmp_path / "slides" / "a.zip", cells(20).tiles)
    write_folder(tmp_path / "slides" / "day" / "b", cells(300, px=(30, 30)).tiles)
    return tmp_path / "slides"


def test_says_what_it_did(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    (slides / "notes.txt").write_text("")
    ended = pack(slides, "--out", out)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("2 slides: 2 packed. 320 tiles, 0.")
    assert ended.stdout.endswith(f"Packed slides: {out}\n")
    assert "notes.txt: not a slide archive" in ended.stderr
    assert (out / "a.zarr").is_dir()
    assert (out / "day" / "b.zarr").is_dir()
    again = pack(slides, "--out", out, "--jobs", 1)
    assert again.returncode == 0
    assert again.stdout.startswith("2 slides: 0 packed, 2 packed already. 0 tiles")
    forced = pack(slides, "--out", out, "--force")
    assert forced.stdout.startswith("2 slides: 2 packed. 320 tiles")


def test_what_is_wrong_is_told_and_exits_3(slides: Path, tmp_path: Path) -> None:
    (slides / "bad.zip").write_bytes(b"no zip")
    write_zip_members(slides / "torn.zip", {"0.png": b"no image", **_images(3)})
    ended = pack(slides, "--out", tmp_path / "packed")
    assert ended.returncode == 3
    assert ended.stdout.startswith("4 slides: 3 packed, 1 failed. 324 tiles")
    assert "\nNot packed:\n  bad.zip: bad_format: " in ended.stdout
    told = "\nWith tiles that could not be read:\n  torn.zip: 1 of 4: '0.png' does not decode: "
    assert told in ended.stdout
    again = pack(slides, "--out", tmp_path / "packed")
    assert again.returncode == 3
    assert told in again.stdout, "still told when it is left alone"


def _images(count: int) -> dict[str, bytes]:
    return {f"{n + 1}.png": encode(tile) for n, tile in enumerate(cells(count).tiles)}


def test_as_json(slides: Path, tmp_path: Path) -> None:
    (slides / "bad.zip").write_bytes(b"no zip")
    ended = pack(slides, "--out", tmp_path / "packed", "--json")
    assert ended.returncode == 3
    told = json.loads(ended.stdout)
    a, bad, b = told["slides"]
    assert told["left"] == 0
    assert (bad["slide_id"], bad["status"], bad["reason"]) == ("bad.zip", "failed", "bad_format")
    assert (a["slide_id"], a["status"], a["tiles"], a["unreadable"]) == ("a.zip", "packed", 20, 0)
    assert (b["slide_id"], b["tiles"]) == ("day/b", 300)
    manifest = json.loads((Path(a["archive"]) / "manifest.json").read_text())
    assert a["digest"] == manifest["digest"]


def test_wrong_use(slides: Path, tmp_path: Path) -> None:
    write_tar(slides / "a.tar", cells(3))
    out = tmp_path / "packed"
    for arguments, told in {
        (slides, "--out", out): r"a\.zarr",
        (slides / "a.zip", "--out", "s3://bucket/packed"): "a folder on a disk",
        (slides, "--out", slides / "packed"): "packed again",
        (tmp_path / "nowhere", "--out", out): "nothing at",
    }.items():
        with pytest.raises(UsageError, match=told):
            cli.main(["pack", *map(str, arguments)], standalone_mode=False)
    assert contents(out) == {}
    with holding(out):
        ended = pack(slides / "a.zip", "--out", out)
    assert ended.returncode == 2
    assert "another pack is writing" in ended.stderr


def test_a_full_disk_exits_1_and_can_be_gone_on_from(slides: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL))

    out = tmp_path / "packed"
    ended = pack(slides, "--out", out, preexec_fn=limit)
    assert ended.returncode == 1
    assert "cannot be written" in ended.stderr
    assert not (out / "day" / "b.zarr").exists()
    assert pack(slides, "--out", out).returncode == 0
    assert_same(read_all(out / "day" / "b.zarr"), read_all(slides / "day" / "b"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_and_it_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    write_zip(tmp_path / "slides" / "slide.zip", cells(8000, px=(40, 40)).tiles, ".bmp")
    out = tmp_path / "packed"
    process = subprocess.Popen(
        [*COMMAND, str(tmp_path / "slides"), "--out", str(out), "--jobs", "1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not any(out.rglob("records/*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    signalled = time.monotonic()
    told, _ = process.communicate(timeout=60)
    assert time.monotonic() - signalled < 10
    assert process.returncode == 4
    assert "1 slides are left; pack again to go on" in told
    assert len(leftovers(out)) == 1
    assert pack(tmp_path / "slides", "--out", out).returncode == 0
    assert leftovers(out) == []
