"""Lanes that run out of memory, that compute nonsense, and how the engine takes it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cvm_batch.errors import SentinelError
from cvm_batch.model.backends.lanes import LanedEngine
from cvm_batch.model.bundle import Sentinels
from cvm_batch.model.engine import InferenceEngine
from cvm_batch.model.guards import SentinelGuard
from cvm_batch.model.precision import Precision
from cvm_batch.tiles import Tiles

CLASSES = 4
BLACK = 0
WHITE = 255


def answer(tiles: Tiles) -> NDArray[np.float32]:
    """What the lanes below compute: the first pixel, as a class."""
    levels = np.array([int(tile.flat[0]) % CLASSES for tile in tiles], dtype=int)
    return np.eye(CLASSES, dtype=np.float32)[levels]


def some_tiles(count: int) -> NDArray[np.uint8]:
    return (np.arange(count, dtype=np.uint8) % 200)[:, None, None, None].repeat(3, axis=3)


class Lane:
    """Has memory for ``room`` tiles; white ones overflow."""

    def __init__(self, batch_size: int = 8, room: int = 1000, seconds: float = 0) -> None:
        self.batch_size = batch_size
        self.room = room
        self.seconds = seconds
        self.batches: list[int] = []
        self.broken = False
        self._busy = threading.Lock()

    def probabilities(self, tiles: Tiles) -> NDArray[np.float32]:
        assert len(tiles) <= self.batch_size
        assert self._busy.acquire(blocking=False), "two threads in one lane"
        try:
            time.sleep(self.seconds)
            self.batches.append(len(tiles))
            if len(tiles) > self.room:
                raise torch.OutOfMemoryError("no room")
            found = answer(tiles)
            for row, tile in zip(found, tiles, strict=True):
                if tile.flat[0] == WHITE or self.broken:
                    row[:] = np.nan
            return found
        finally:
            self._busy.release()

    def shrink(self, batch_size: int) -> None:
        self.batch_size = batch_size


def engine_of(*lanes: Lane) -> LanedEngine:
    tiles = some_tiles(6)
    guard = SentinelGuard(Sentinels(tiles, answer(tiles)), Precision.FP32, "double")
    return LanedEngine(lanes, guard)


def assert_right(engine: InferenceEngine, tiles: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(engine.probabilities(tiles), answer(tiles))


def test_sentinels_fill_the_batches_that_will_be_served() -> None:
    lanes = [Lane(), Lane()]
    assert engine_of(*lanes).sentinel_difference == 0
    assert [size for lane in lanes for size in lane.batches] == [8, 8]


def test_all_lanes_work_at_once() -> None:
    lanes = [Lane(seconds=0.05) for _ in range(4)]
    engine = engine_of(*lanes)
    for lane in lanes:
        lane.batches.clear()
    started = time.perf_counter()
    assert_right(engine, some_tiles(8 * 16))
    assert time.perf_counter() - started < 0.05 * 16 / 2
    assert all(len(lane.batches) >= 2 for lane in lanes)


@pytest.mark.parametrize("room", [1, 3, 4, 7])
def test_out_of_memory_halves_the_batch_and_goes_on(room: int) -> None:
    lane = Lane()
    engine = engine_of(lane)
    lane.room = room
    assert_right(engine, some_tiles(30))
    assert engine.batch_size == 2 ** int(np.log2(room))
    assert max(lane.batches[-5:]) <= room
    assert_right(engine, some_tiles(30))


def test_memory_that_does_not_suffice_from_the_start() -> None:
    lane = Lane(batch_size=64, room=5)
    engine = engine_of(lane)
    assert engine.batch_size == 4
    assert_right(engine, some_tiles(100))


def test_every_lane_follows_when_one_has_no_room() -> None:
    lanes: Sequence[Lane] = [Lane(seconds=0.01), Lane(seconds=0.01)]
    engine = engine_of(*lanes)
    for lane in lanes:
        lane.room = 4
    assert_right(engine, some_tiles(200))
    assert engine.batch_size == 4
    assert [lane.batch_size for lane in lanes] == [4, 4]


def test_not_even_one_tile_fits() -> None:
    lane = Lane()
    engine = engine_of(lane)
    lane.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        engine.probabilities(some_tiles(3))
    lane.room = 8
    assert_right(engine, some_tiles(3))


def test_a_lane_is_judged_again_after_it_ran_out_of_memory() -> None:
    lane = Lane()
    engine = engine_of(lane)
    lane.room, lane.broken = 4, True
    with pytest.raises(SentinelError, match="may not serve"):
        engine.probabilities(some_tiles(8))


def test_a_tile_that_overflows_is_told_from_a_broken_device() -> None:
    lane = Lane()
    engine = engine_of(lane)
    tiles = some_tiles(8)
    tiles[3] = WHITE
    found = engine.probabilities(tiles)
    np.testing.assert_array_equal(np.isnan(found).any(axis=1), np.arange(8) == 3)
    lane.broken = True
    with pytest.raises(SentinelError, match="difference nan"):
        engine.probabilities(tiles)


def test_a_lane_comes_back_after_an_error() -> None:
    lane = Lane()
    engine = engine_of(lane)
    lane.broken = True
    for _ in range(3):
        with pytest.raises(SentinelError):
            engine.probabilities(some_tiles(2))
    lane.broken = False
    assert_right(engine, some_tiles(2))


def test_closing_twice_is_harmless() -> None:
    engine = engine_of(Lane())
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError):
        engine.start(some_tiles(1))


def test_threads_of_a_refused_engine_end() -> None:
    before = threading.active_count()
    lane = Lane()
    lane.broken = True
    with pytest.raises(SentinelError):
        engine_of(lane)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
