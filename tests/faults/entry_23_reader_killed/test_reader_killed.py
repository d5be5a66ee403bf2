"""Damaged: a slide that ends each process that opens it, or each that decodes it.

Expected: ``failed``, exit code 3, ``decoder_crashed`` where planning finds it and
``replica_lost`` where replicas die of it; its neighbours are not charged.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cvm_batch.errors import Reason
from cvm_batch.results.schemas import Status
from cvm_batch.screening.ray_executor import RayExecutor
from tests.archives.making import write_zip
from tests.faults.killers import arm
from tests.faults.night import CELLS, NEIGHBOUR, Expected, Night, slide_of

EXPECTED = Expected(Status.FAILED, Reason.DECODER_CRASHED)


def test_slide_that_crashes_while_it_is_planned(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("before.zip", "killer.zip", "z-after.zip")):
        write_zip(night.slides / name, slide_of(seed=number).tiles)
    arm(tmp_path / "armed", monkeypatch)
    found = night.submit()
    row = found.assert_ends("killer.zip", EXPECTED)
    assert "SIGSEGV" in row["detail"]
    assert found.rows["before.zip"]["status"] == Status.COMPLETE
    assert found.rows["z-after.zip"]["status"] == Status.COMPLETE


@pytest.mark.timeout(240)
def test_slide_that_crashes_the_replicas(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("before.zip", "grenade.zip", "z-after.zip")):
        write_zip(night.slides / name, slide_of(seed=number).tiles)
    arm(tmp_path / "armed", monkeypatch)
    found = night.submit(executor=RayExecutor(address=None, replicas=None))
    row = found.assert_ends("grenade.zip", Expected(Status.FAILED, Reason.REPLICA_LOST))
    assert "3 replicas died with nothing but this slide on them" in row["detail"]
    for name in ("before.zip", "z-after.zip", NEIGHBOUR):
        assert found.rows[name]["status"] == Status.COMPLETE
        assert sum(found.rows[name]["class_counts"].values()) == CELLS
