"""Damaged: a connection that drops, for a while or for good.

Expected: retries with growing pauses; if it passes, ``complete``, exit code 0; if not,
``failed``, ``read_error``, exit code 3, and the next run tries again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvm_batch.errors import ExitCode, Reason
from cvm_batch.results.schemas import Status
from tests.archives.making import write_folder, write_zip
from tests.archives.object_store import S3, SECRET, Fault, is_read, serving_s3
from tests.faults.night import CELLS, Expected, Night, slide_of

EXPECTED = Expected(Status.FAILED, Reason.READ_ERROR)


def test_disk_that_does_not_answer(night: Night) -> None:
    folder = write_folder(night.slides / "slide", slide_of().tiles)
    (folder / "00003.png").unlink()
    # The kernel answers EIO to whoever reads this file at 0, root included. Not that of
    # "self", which is another file in each process.
    (folder / "00003.png").symlink_to(f"/proc/{os.getpid()}/mem")
    night.submit().assert_ends("slide", EXPECTED)
    (folder / "00003.png").unlink()
    (folder / "00003.png").write_bytes((folder / "00004.png").read_bytes())
    found = night.submit()
    assert found.exit_code is ExitCode.COMPLETE
    assert found.rows["slide"]["status"] == Status.COMPLETE


@pytest.fixture
def server() -> Iterator[S3]:
    with serving_s3() as server:
        yield server


@pytest.fixture
def slide(server: S3, tmp_path: Path) -> str:
    """The address of a slide on object storage."""
    return server.put_all(write_zip(tmp_path / "slide.zip", slide_of().tiles), "lab/slide.zip")


@pytest.mark.parametrize("how", [503, Fault.CUT])
def test_connection_that_comes_back(night: Night, server: S3, slide: str, how: Fault | int) -> None:
    server.fail(how, times=2, only=is_read)
    found = night.submit(slide, night.slides)
    assert found.exit_code is ExitCode.COMPLETE
    assert found.rows["slide.zip"]["status"] == Status.COMPLETE
    assert sum(found.rows["slide.zip"]["class_counts"].values()) == CELLS


def test_connection_that_stays_away(night: Night, server: S3, slide: str) -> None:
    server.fail(Fault.DROP, only=is_read)
    row = night.submit(slide, night.slides).assert_ends("slide.zip", EXPECTED)
    assert slide in row["detail"]
    assert SECRET not in row["detail"]
    server.mend()
    found = night.submit(slide, night.slides)
    assert found.exit_code is ExitCode.COMPLETE
    assert found.rows["slide.zip"]["status"] == Status.COMPLETE


def test_server_that_refuses_from_the_start(night: Night, server: S3, slide: str) -> None:
    """Also where nothing is known of a slide but its address, it has its row."""
    server.fail(403)
    row = night.submit(slide, night.slides).assert_ends("slide.zip", EXPECTED)
    assert "credentials" in row["detail"]
