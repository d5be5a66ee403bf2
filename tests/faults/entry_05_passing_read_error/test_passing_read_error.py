"""Damaged: a connection that drops, for a while or for good.

Expected: retries with growing pauses; if it passes, ``complete``, exit code 0; if not,
``failed``, ``read_error``, exit code 3, and the next run tries again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from cvm_batch.errors import ExitCode, Reason
from cvm_batch.results.schemas import Status
from cvm_batch.screening.summary import Progress
from tests.archives.making import write_folder, write_zip
from tests.archives.object_store import S3, SECRET, Fault, is_read, serving_s3
from tests.faults.night import CELLS, Expected, Night, slide_of

EXPECTED = Expected(Status.FAILED, Reason.READ_ERROR)
#: Requests until the clients give up.
READS_OF_ONE_ATTEMPT = 8


def test_disk_that_does_not_answer(night: Night) -> None:
    folder = write_folder(night.slides / "slide", slide_of().tiles)
    (folder / "00003.png").unlink()
    # The kernel answers EIO to whoever reads this file at 0, root included. Not that of
    # "self", which is another file in each process.
    (folder / "00003.png").symlink_to(f"/proc/{os.getpid()}/mem")
    row = night.submit().assert_ends("slide", EXPECTED)
    assert row["attempts"] == 3
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


def drop_from_now_on(server: S3, times: float) -> Callable[[Progress], None]:
    """Where a run reports that its plan is made, so that it is replicas who cannot read."""
    pending = [times]

    def report(progress: Progress) -> None:
        if pending:
            server.fail(Fault.DROP, only=is_read, times=pending.pop())

    return report


def test_connection_that_drops_while_slides_are_read(night: Night, server: S3, slide: str) -> None:
    """For longer than one attempt lasts; the slide is taken up again a while later."""
    found = night.submit(slide, night.slides, report=drop_from_now_on(server, READS_OF_ONE_ATTEMPT))
    assert found.exit_code is ExitCode.COMPLETE
    row = found.rows["slide.zip"]
    assert (row["status"], row["attempts"]) == (Status.COMPLETE, 2)
    assert row["finished_at"] - row["started_at"] >= timedelta(seconds=1)
    assert sum(row["class_counts"].values()) == CELLS


@pytest.mark.campaign
def test_connection_that_stays_away_while_slides_are_read(
    night: Night, server: S3, slide: str
) -> None:
    """Tried three times, with growing pauses."""
    found = night.submit(slide, night.slides, report=drop_from_now_on(server, math.inf))
    row = found.assert_ends("slide.zip", EXPECTED)
    assert row["attempts"] == 3
    assert row["finished_at"] - row["started_at"] >= timedelta(seconds=1 + 2)


def test_server_that_refuses_from_the_start(night: Night, server: S3, slide: str) -> None:
    """Also where nothing is known of a slide but its address, it has its row."""
    server.fail(403)
    row = night.submit(slide, night.slides).assert_ends("slide.zip", EXPECTED)
    assert "credentials" in row["detail"]
