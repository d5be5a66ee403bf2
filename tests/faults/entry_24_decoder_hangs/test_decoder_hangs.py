"""Damaged: a slide over which a native decoder never comes back.

Expected: ``failed``, ``timeout``, exit code 3; the run does not stall.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cvm_batch.archives import describing
from cvm_batch.errors import Reason
from cvm_batch.results.schemas import Status
from tests.archives.making import write_zip
from tests.faults.killers import arm
from tests.faults.night import Expected, Night, slide_of

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
