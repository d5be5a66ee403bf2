"""Damaged: a slide over which a native decoder never comes back.

Expected: ``failed``, ``timeout``, exit code 3; the run does not stall, and the process that hangs
is ended.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest

from cvm_batch.archives import describing
from cvm_batch.errors import Reason
from cvm_batch.results.schemas import Status
from cvm_batch.screening import driver
from cvm_batch.screening.policy import LeasePolicy
from cvm_batch.screening.ray_executor import RayExecutor
from tests.archives.making import write_zip
from tests.faults.killers import arm
from tests.faults.night import CELLS, Expected, Night, slide_of
from tests.screening.test_ray_executor import replica_processes

EXPECTED = Expected(Status.FAILED, Reason.TIMEOUT)


def test_slide_that_hangs_while_it_is_planned(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zip(night.slides / "sleeper.zip", slide_of().tiles)
    arm(tmp_path / "armed", monkeypatch)
    monkeypatch.setattr(describing, "_TIMEOUT_SECONDS", 3.0)
    started = time.monotonic()
    night.submit().assert_ends("sleeper.zip", EXPECTED)
    assert time.monotonic() - started < 60


@pytest.mark.timeout(240)
def test_slide_over_which_replicas_hang(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found among its neighbours by running alone; tried again no more, to save the test time."""
    for number, name in enumerate(("before.zip", "trance.zip", "z-after.zip")):
        write_zip(night.slides / name, slide_of(seed=number).tiles)
    arm(tmp_path / "armed", monkeypatch)
    monkeypatch.setattr(driver, "LeasePolicy", partial(LeasePolicy, max_attempts=1))
    found = night.submit(executor=RayExecutor(address=None, replicas=1), patience_seconds=8.0)
    row = found.assert_ends("trance.zip", EXPECTED)
    assert "hung with nothing but this slide on them" in row["detail"]
    for name in ("before.zip", "z-after.zip"):
        assert found.rows[name]["status"] == Status.COMPLETE
        assert sum(found.rows[name]["class_counts"].values()) == CELLS
    assert replica_processes() == []
