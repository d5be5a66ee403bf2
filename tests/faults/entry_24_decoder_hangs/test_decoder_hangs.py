"""Damaged: a slide over which a native decoder never comes back.

Expected: ``failed``, ``timeout``, exit code 3; the run does not stall, and the process that hangs
is ended.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from cvm_batch.archives import describing
from cvm_batch.errors import ExitCode, Reason
from cvm_batch.model.bundle import Bundle
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
    assert "hung or died with nothing but this slide on them" in row["detail"]
    for name in ("before.zip", "z-after.zip"):
        assert found.rows[name]["status"] == Status.COMPLETE
        assert sum(found.rows[name]["class_counts"].values()) == CELLS
    assert replica_processes() == []


def test_replica_in_the_drivers_own_process_hangs(
    night: Night, tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can end it there: so the run ends, with all that it has, and lets go of the folder."""
    for name in ("stupor.zip", "z-after.zip"):
        write_zip(night.slides / name, slide_of(seed=1).tiles)
    arm(tmp_path / "armed", monkeypatch)
    submit = ["submit", str(night.slides), "--model", str(tiny_bundle.path)]
    submit += ["--out", str(night.results), "--executor", "local", "--precision", "fp32"]
    submit += ["--batch-size", "4", "--priority", "stupor.zip=-1", "--patience", "4"]
    ended = subprocess.run(
        [sys.executable, "-m", "cvm_batch", *submit],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ended.returncode == ExitCode.ABORTED
    assert "The replica in this process hangs: " in ended.stderr
    (path,) = (night.results / "runs").iterdir()
    manifest = json.loads(path.read_text())
    assert (manifest["state"], manifest["exit_code"]) == ("aborted", ExitCode.ABORTED)
    assert "hangs" in manifest["error"]
    again = night.submit()
    assert again.exit_code is ExitCode.COMPLETE
    assert set(again.rows) == {"neighbour.zip", "stupor.zip", "z-after.zip"}
