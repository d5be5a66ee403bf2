"""Packing killed over and over, and what comes of it in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.archives.making import cells, write_zip
from tests.archives.packing_slides import contents, leftovers

CROPS = 20_000
KILLS = 10

pytestmark = pytest.mark.campaign


def start(slides: Path, out: Path) -> subprocess.Popen[bytes]:
    """A pack with all its processes in a group of their own."""
    command = [sys.executable, "-m", "cvm_batch", "pack", slides, "--out", out, "--jobs", "2"]
    return subprocess.Popen([*map(str, command)], start_new_session=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def chunks_written(out: Path) -> int:
    return sum(1 for _ in out.rglob("records/*.json"))


def kill_after(process: subprocess.Popen[bytes], out: Path, chunks: int, pause: float) -> None:
    """When so many chunks more are there, and ``pause`` seconds later, in the midst of others."""
    before = chunks_written(out)
    while chunks_written(out) < before + chunks:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    time.sleep(pause)
    kill(process)


@pytest.mark.timeout(1800)
def test_killed_ten_times_it_packs_the_same_bytes(tmp_path: Path) -> None:
    some = cells(500, px=(100, 100)).tiles
    tiles = [some[number % len(some)] for number in range(CROPS)]
    write_zip(tmp_path / "slides" / "slide.zip", tiles, ".jpg")
    assert start(tmp_path / "slides", tmp_path / "undisturbed").wait() == 0
    rng = np.random.default_rng(0)
    out = tmp_path / "killed"
    for _ in range(KILLS):
        process = start(tmp_path / "slides", out)
        kill_after(process, out, int(rng.integers(0, 6)), float(rng.uniform(0, 0.1)))
        assert contents(out) == {}, "nothing is seen of it before it is whole"
    assert start(tmp_path / "slides", out).wait() == 0
    assert leftovers(out) == []
    assert contents(out) == contents(tmp_path / "undisturbed")
