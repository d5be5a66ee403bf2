"""What happens: the disk of the results is full, or a write or a flush fails, at any moment.

Expected: exit code 1 (2 before anything was classified) and a message that names the file and the
cause; nothing half-written is visible; submitting again, once there is room, finishes the rest,
repeats no complete slide, and the results equal the undisturbed run's.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cvm_batch.errors import ExitCode
from tests.faults.driver_steps import Trouble
from tests.faults.forked_drivers import Ended
from tests.faults.small_night import BATCHES_LAST, FLUSHES, MANIFESTS, Small
from tests.results.test_folder import small_disk

pytestmark = pytest.mark.timeout(300)

AMPLE_KILOBYTES = 16 * 1024
NO_ROOM, NO_ANSWER = "No space left on device", "Input/output error"


def assert_told(ended: Ended, results: Path, *causes: str) -> None:
    assert ended.exit_code in (ExitCode.ABORTED, ExitCode.USAGE)
    assert str(results) in ended.error
    assert any(cause in ended.error for cause in causes)


def used_kilobytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024


def test_disk_that_is_full_before_the_end(small: Small, tmp_path: Path) -> None:
    with small_disk(tmp_path / "ample", AMPLE_KILOBYTES) as disk:
        assert small.drivers.submit(disk / "results").exit_code == 0
        needed = used_kilobytes(disk)
    for share in (0.1, 0.5, 0.9):
        with small_disk(tmp_path / f"disk-{share}", int(share * needed)) as disk:
            results = disk / "results"
            assert_told(small.drivers.submit(results), results, NO_ROOM)
            subprocess.run(
                ["mount", "-o", f"remount,size={AMPLE_KILOBYTES}k", str(disk)], check=True
            )
            small.assert_another_finishes(results)


@pytest.mark.parametrize("kind", ["cells", "tops"])
def test_file_that_the_kernel_refuses_to_write_to_its_end(
    small: Small, tmp_path: Path, kind: str
) -> None:
    """As with a quota; needs no disk of its own."""
    sizes = [path.stat().st_size for path in (small.results / kind).rglob("*.parquet")]
    results = tmp_path / "results"
    ended = small.drivers.submit(results, largest_file=min(sizes) - 1)
    assert_told(ended, results, "File too large")
    small.assert_another_finishes(results)


def fail_at(trouble: Trouble, small: Small, results: Path) -> int:
    """The exit code; 0 where the failure is of a file that the run can do without."""
    ended = small.drivers.submit(results, trouble)
    if ended.exit_code:
        assert_told(ended, results, NO_ROOM, NO_ANSWER)
    small.assert_another_finishes(results)
    return ended.exit_code


def test_flush_of_a_batch_that_fails(small: Small, tmp_path: Path) -> None:
    trouble = Trouble(small.first_batch_flush, FLUSHES, fails=True)
    assert fail_at(trouble, small, tmp_path / "results") == ExitCode.ABORTED


def test_flush_of_a_folder_that_fails(small: Small, tmp_path: Path) -> None:
    """The batch has its name, and is all there."""
    trouble = Trouble(2, BATCHES_LAST, fails=True)
    assert fail_at(trouble, small, tmp_path / "results") == ExitCode.ABORTED


def test_manifest_that_cannot_be_replaced_at_the_end(small: Small, tmp_path: Path) -> None:
    trouble = Trouble(2, MANIFESTS, fails=True)
    assert fail_at(trouble, small, tmp_path / "results") == ExitCode.ABORTED


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_disk_that_fails_at_every_step(small: Small, tmp_path: Path) -> None:
    steps = range(1, len(small.steps) + 1)
    codes = [fail_at(Trouble(n, fails=True), small, tmp_path / f"results-{n}") for n in steps]
    print(f"{len(codes)} steps, {len(codes) - codes.count(0)} of which ended the run")
    assert codes.count(ExitCode.ABORTED) > len(codes) / 2
