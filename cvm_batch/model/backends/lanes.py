"""Lanes: how one model serves several batches at once.

A lane is the working memory of one batch and the thread that fills and empties it. On a GPU
two lanes are what overlaps copies with computing; on a CPU one lane a core, each with small
batches that stay in its cache, never waits for the other cores at the end of a layer.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cvm_batch.model.engine import Classified
from cvm_batch.model.guards import SentinelGuard
from cvm_batch.tiles import Tiles


class Lane(Protocol):
    """Used by one thread at a time."""

    batch_size: int

    def probabilities(self, tiles: Tiles) -> NDArray[np.float32]:
        """Probabilities [n, classes] of at most ``batch_size`` tiles, in memory of their own.

        Raises torch.OutOfMemoryError.
        """
        ...

    def shrink(self, batch_size: int) -> None:
        """Give memory back, and take no more than ``batch_size`` tiles from now on."""
        ...


class LanedEngine:
    """An `InferenceEngine` made of lanes, guarded by the bundle's sentinels.

    They are classified before anything else, again by a lane that ran out of memory, and
    by one whose outputs were not finite: so a broken device is told from a tile that
    overflows.
    """

    def __init__(
        self, lanes: Sequence[Lane], guard: SentinelGuard, *, threads_per_lane: int | None = None
    ) -> None:
        """``threads_per_lane``: of one operation on a CPU. Raises SentinelError."""
        self.precision = guard.precision
        self.backend = guard.backend
        self.batch_size = lanes[0].batch_size
        self.lanes = len(lanes)
        self._guard = guard
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in lanes:
            self._free.put(lane)
        self._shrinking = threading.Lock()
        self._pool = ThreadPoolExecutor(
            len(lanes),
            thread_name_prefix="lane",
            initializer=partial(_set_threads, threads_per_lane),
        )
        try:
            self.sentinel_difference = guard.check(self.probabilities, self.lanes * self.batch_size)
        except BaseException:
            self.close()
            raise

    def start(self, tiles: Tiles) -> Future[Classified]:
        return self._pool.submit(self._classify, tiles)

    def probabilities(self, tiles: Tiles) -> NDArray[np.float32]:
        size = self.batch_size
        # An empty batch is a batch too: it has the right shape.
        started = [self.start(tiles[at : at + size]) for at in range(0, max(1, len(tiles)), size)]
        return np.concatenate([future.result().probabilities for future in started])

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _classify(self, tiles: Tiles) -> Classified:
        lane = self._free.get()
        try:
            started = time.perf_counter()
            found = self._within_memory(lane, tiles)
            if not np.isfinite(found).all():
                self._verify(lane)
            return Classified(found, time.perf_counter() - started)
        finally:
            self._free.put(lane)

    def _within_memory(self, lane: Lane, tiles: Tiles) -> NDArray[np.float32]:
        """Halve the batch until it fits."""
        doubtful = False
        while True:
            try:
                if doubtful:
                    self._verify(lane)
                return self._in_batches(lane, tiles)
            except torch.OutOfMemoryError:
                if lane.batch_size == 1:
                    raise
                with self._shrinking:
                    self.batch_size = min(self.batch_size, lane.batch_size // 2)
                doubtful = True

    def _in_batches(self, lane: Lane, tiles: Tiles) -> NDArray[np.float32]:
        size = self.batch_size
        if lane.batch_size > size:
            lane.shrink(size)
        return np.concatenate(
            [lane.probabilities(tiles[at : at + size]) for at in range(0, max(1, len(tiles)), size)]
        )

    def _verify(self, lane: Lane) -> None:
        self.sentinel_difference = self._guard.check(
            lambda tiles: self._in_batches(lane, tiles), lane.batch_size
        )


def _set_threads(count: int | None) -> None:
    if count is not None:  # OpenMP keeps the number per calling thread
        torch.set_num_threads(count)
