"""Replicas in the driver's own process."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING

from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import CvmBatchError, ReplicaHangsError, RunAbortedError
from cvm_batch.screening.executor import (
    Event,
    Hardware,
    LeaseDone,
    ReplicaProgress,
    ReplicaReady,
    hardware_here,
)
from cvm_batch.screening.importing import import_replica
from cvm_batch.screening.work import Lease, ReplicaSpec

if TYPE_CHECKING:  # a run that finds all done needs no PyTorch
    import torch

    from cvm_batch.screening.replica import Replica

#: The batch that runs is waited for at the end; a decoder that hangs is not.
_CLOSE_SECONDS = 15.0


class LocalExecutor:
    """Replicas in this process: one per GPU, or one on the CPU."""

    name = "local"

    def __init__(self) -> None:
        self._replicas: dict[int, Replica] = {}
        # Threads are made as they are needed: two a replica.
        self._pool = ThreadPoolExecutor(64, thread_name_prefix="lease")
        self._hangs = False
        self._serving: set[int] = set()
        self._events: queue.Queue[Event | BaseException] = queue.Queue()
        self._fatal: BaseException | None = None

    def hardware(self) -> Hardware:
        return hardware_here()

    def prepare(self) -> None:
        # Some seconds of imports, while slides are looked at in other processes.
        self._pool.submit(import_replica)

    def start(self, spec: ReplicaSpec) -> None:
        import torch

        gpus = [torch.device("cuda", n) for n in range(torch.cuda.device_count())]
        devices = gpus or [torch.device("cpu")]
        share = replace(spec, threads=max(1, usable_cpus() // len(devices)))
        for number, device in enumerate(devices):
            self._pool.submit(self._start_replica, number, share, device)

    def submit(self, replica: int, lease: Lease) -> None:
        self._pool.submit(self._classify, replica, lease)

    def wait(self, timeout: float) -> list[Event]:
        events = self._told(timeout) if self._fatal is None else []
        # What was answered until then is told first, and so committed.
        if self._fatal is not None and not events:
            raise _abort(self._fatal) from self._fatal
        self._serving |= {one.replica for one in events if isinstance(one, ReplicaReady)}
        return [*events, *self._progress()]

    def _told(self, timeout: float) -> list[Event]:
        """All that is there, or what comes first."""
        events: list[Event] = []
        with suppress(queue.Empty):
            while True:
                told = self._events.get(timeout=0 if events or self._fatal else timeout)
                if isinstance(told, BaseException):
                    self._fatal = self._fatal or told
                else:
                    events.append(told)
        return events

    def _progress(self) -> Iterator[Event]:
        """Signs of life are this process's: among several replicas, one that hangs is only found
        once the others have done their work."""
        for number in sorted(self._serving):
            replica = self._replicas[number]
            yield ReplicaProgress(number, replica.tiles_done, replica.signs)

    def end(self, replica: int, detail: str) -> None:
        self._hangs = True
        raise ReplicaHangsError(
            f"The replica in this process hangs: {detail}. What was committed stays; submit "
            "again to go on. With --executor ray a replica that hangs is replaced."
        )

    def close(self) -> None:
        """Threads that do not come back are left behind: only the process's end is theirs."""
        closers = [replica.close for replica in list(self._replicas.values())]
        closers.append(partial(self._pool.shutdown, cancel_futures=True))
        threads = [Thread(target=closer, name="close", daemon=True) for closer in closers]
        for thread in threads:
            thread.start()
        end = time.monotonic() + (0 if self._hangs else _CLOSE_SECONDS)
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _start_replica(self, number: int, spec: ReplicaSpec, device: torch.device) -> None:
        from cvm_batch.screening.replica import Replica

        try:
            self._replicas[number] = Replica(spec, device=device)
            self._events.put(ReplicaReady(number, self._replicas[number].info()))
        except BaseException as error:
            self._events.put(error)

    def _classify(self, number: int, lease: Lease) -> None:
        try:
            outcomes = self._replicas[number].classify(lease)
            self._events.put(LeaseDone(number, lease.number, outcomes))
        except BaseException as error:
            self._events.put(error)


def _abort(error: BaseException) -> CvmBatchError:
    if isinstance(error, CvmBatchError):
        return error
    return RunAbortedError(
        f"The replica in this process failed: {error!r}. What was committed stays; "
        "submit again to go on. With --executor ray a failed replica is replaced."
    )
