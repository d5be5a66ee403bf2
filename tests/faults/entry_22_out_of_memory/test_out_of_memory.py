"""Damaged: the device has no memory for a batch (injected: there may be no GPU here).

Expected: the batch is halved, and the run goes on, ``complete``, exit code 0. Where not even
one tile fits, nothing is counted.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cvm_batch.errors import ExitCode, RunAbortedError
from cvm_batch.model.backends.cpu import CpuLane
from cvm_batch.results.schemas import Status
from cvm_batch.tiles import Tiles
from tests.archives.making import write_folder
from tests.faults.night import Night, slide_of


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tiles that the device has room for, to be set by the test; a batch asks as a GPU would."""
    room = [1000]
    classify = CpuLane.probabilities

    def within_room(lane: CpuLane, tiles: Tiles) -> NDArray[np.float32]:
        if len(tiles) > room[0]:
            raise torch.OutOfMemoryError(f"no room for {len(tiles)} tiles")
        return classify(lane, tiles)

    monkeypatch.setattr(CpuLane, "probabilities", within_room)
    return room


@pytest.mark.parametrize("tiles", [1, 3, 5])
def test_the_batch_is_halved(night: Night, room: list[int], tiles: int) -> None:
    write_folder(night.slides / "slide", slide_of(50).tiles)
    plenty = night.submit().rows["slide"]
    room[0] = tiles
    (night.slides / "slide").rename(night.slides / "again")
    found = night.submit()
    assert found.exit_code is ExitCode.COMPLETE
    assert found.rows["again"]["status"] == Status.COMPLETE
    assert found.rows["again"]["class_counts"] == plenty["class_counts"]


def test_not_even_one_tile_fits(night: Night, room: list[int]) -> None:
    room[0] = 0
    with pytest.raises(RunAbortedError, match="no room for 1 tiles"):
        night.submit()
    assert not list((night.results / "slides").rglob("*.parquet"))
