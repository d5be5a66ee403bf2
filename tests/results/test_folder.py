"""Commits: whole or not at all, never over another; one run at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cvm_batch.errors import CommitError, ResultsError, ResultsInUseError
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


def test_replace_takes_the_place_of_an_older_file(results: ResultsFolder) -> None:
    results.replace("runs/a.json", b"start")
    results.replace("runs/a.json", b"end")
    assert (results.root / "runs/a.json").read_bytes() == b"end"


def test_preparing_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot be written: Not a directory"):
        ResultsFolder(tmp_path / "file" / "results").prepare()


def test_two_runs_cannot_hold_one_folder(results: ResultsFolder) -> None:
    other = ResultsFolder(results.root)
    with (
        results.exclusive(),
        pytest.raises(ResultsInUseError, match="Another run"),
        other.exclusive(),
    ):
        pass
    with other.exclusive():
        pass


def test_the_lock_falls_with_its_process_and_its_leftovers_go(results: ResultsFolder) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from cvm_batch.results.folder import ResultsFolder\n"
        "folder = ResultsFolder(Path(sys.argv[1]))\n"
        "with folder.exclusive():\n"
        "    folder._write_beside(b'half a night')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(results.root)], check=False)
    assert killed.returncode == -9
    assert len(visible(results)) == 2, "the lock file and the unfinished one"
    with results.exclusive():
        assert visible(results) == [".lock"]


def full_disk(path: Path) -> bool:
    """Mount a disk of 1 MB at ``path``; needs root."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)],
        check=False,
        capture_output=True,
    )
    return mounted.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    if not full_disk(disk):
        pytest.skip("this machine does not mount a tmpfs")
    try:
        results = ResultsFolder(disk / "results")
        results.prepare()
        with pytest.raises(CommitError, match="No space left on device"):
            results.publish("cells/a.parquet", os.urandom(2 * 2**20))
        assert visible(results) == []
        results.publish("cells/a.parquet", b"it fits")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


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
