"""Commits: whole or not at all, never over another."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cvm_batch import signs
from cvm_batch.errors import CommitError, ResultsError
from cvm_batch.results.folder import ResultsFolder


@pytest.fixture
def results(tmp_path: Path) -> ResultsFolder:
    folder = ResultsFolder(tmp_path / "results")
    folder.prepare()
    return folder


def visible(results: ResultsFolder) -> list[str]:
    return [path.name for path in results.root.rglob("*") if path.is_file()]


def test_a_published_file_is_there_and_nothing_else(results: ResultsFolder) -> None:
    results.publish("slides/run_date=2026-01-31/a.parquet", b"rows")
    assert (results.root / "slides/run_date=2026-01-31/a.parquet").read_bytes() == b"rows"
    assert visible(results) == ["a.parquet"]


def test_a_commit_cannot_be_overwritten(results: ResultsFolder) -> None:
    results.publish("slides/a.parquet", b"first")
    with pytest.raises(CommitError, match=r"a\.parquet could not be committed: File exists"):
        results.publish("slides/a.parquet", b"second")
    assert (results.root / "slides/a.parquet").read_bytes() == b"first"
    assert visible(results) == ["a.parquet"]


def test_a_commit_whose_answer_was_lost_is_found_to_be_there(results: ResultsFolder) -> None:
    results.publish("slides/a.parquet", b"rows")
    results.publish("slides/a.parquet", b"rows")
    assert visible(results) == ["a.parquet"]


def test_of_many_who_put_one_name_one_succeeds(results: ResultsFolder) -> None:
    with ThreadPoolExecutor(8) as pool:
        put = [pool.submit(results.put_new, "slides/a.parquet", bytes([n])) for n in range(8)]
        successful = [n for n in range(8) if put[n].result()]
    assert results.read("slides/a.parquet") == bytes(successful)


def test_replace_takes_the_place_of_an_older_file(results: ResultsFolder) -> None:
    results.replace("runs/a.json", b"start")
    results.replace("runs/a.json", b"end")
    assert (results.root / "runs/a.json").read_bytes() == b"end"


def test_preparing_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot be written: Not a directory"):
        ResultsFolder(tmp_path / "file" / "results").prepare()


@contextmanager
def small_disk(path: Path, kilobytes: int = 1024) -> Iterator[Path]:
    """A disk of its own at ``path``. Skips the test where none can be mounted: it needs root."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine does not mount a small disk for this user")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        results = ResultsFolder(disk / "results")
        results.prepare()
        with pytest.raises(CommitError, match="No space left on device"):
            results.publish("cells/a.parquet", os.urandom(2 * 2**20))
        assert visible(results) == []
        results.publish("cells/a.parquet", b"it fits")


def away(monkeypatch: pytest.MonkeyPatch, number: int, times: int) -> list[int]:
    """The next ``times`` commits fail with that error; a list that grows with each that does."""
    link, failed = os.link, list[int]()

    def failing(*paths: Any) -> None:
        if len(failed) < times:
            failed.append(number)
            raise OSError(number, os.strerror(number))
        link(*paths)

    monkeypatch.setattr(os, "link", failing)
    return failed


def test_a_store_that_is_away_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = ResultsFolder(tmp_path / "results", outage_seconds=60.0)
    results.prepare()
    monkeypatch.setattr("cvm_batch.results.folder._FIRST_WAIT_SECONDS", 0.01)
    signs_before = signs.seen()
    away(monkeypatch, errno.ETIMEDOUT, 3)
    results.publish("slides/a.parquet", b"rows")
    assert visible(results) == ["a.parquet"]
    assert signs.seen() >= signs_before + 3, "nobody takes it for one that hangs"


class HandTurned:
    """A clock that only sleeping moves, so that a slow machine changes no count of tries."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("number", "outage_seconds", "tries"),
    [
        (errno.ETIMEDOUT, 600.0, 44),  # at once, after 1, 3, 7 and 15 s, then every 15 s to 600
        (errno.ETIMEDOUT, 1.5, 2),
        (errno.ETIMEDOUT, 0.0, 1),
        (errno.EDQUOT, 60.0, 1),
        (errno.ESTALE, 60.0, 1),
    ],
)
def test_what_does_not_come_back_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, outage_seconds: float, tries: int
) -> None:
    monkeypatch.setattr("cvm_batch.results.folder.time", HandTurned())
    results = ResultsFolder(tmp_path / "results", outage_seconds=outage_seconds)
    results.prepare()
    failed = away(monkeypatch, number, 1_000)
    with pytest.raises(CommitError, match="could not be committed"):
        results.publish("slides/a.parquet", b"rows")
    assert len(failed) == tries


def test_a_run_that_is_over_waits_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = ResultsFolder(tmp_path / "results", outage_seconds=60.0)
    results.prepare()
    failed = away(monkeypatch, errno.ETIMEDOUT, 1_000)
    results.wait_no_longer()
    with pytest.raises(CommitError):
        results.publish("slides/a.parquet", b"rows")
    assert len(failed) == 1


def test_only_named_files_are_kept(results: ResultsFolder) -> None:
    for name in "abc":
        results.publish(f"cells/run/{name}.parquet", b"rows")
    assert results.remove_except("cells/run", {"cells/run/b.parquet"}) == 2
    assert visible(results) == ["b.parquet"]


def test_folders_are_made_as_deep_as_needed(tmp_path: Path) -> None:
    results = ResultsFolder(tmp_path / "a" / "b" / "results")
    results.prepare()
    results.publish("slides/run_date=2026-01-31/a.parquet", b"rows")
    assert visible(results) == ["a.parquet"]
