"""The seam between the driver and whatever runs replicas, and the in-process executor."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import CvmBatchError, RunAbortedError
from cvm_batch.screening.replica import Replica, ReplicaSpec
from cvm_batch.screening.work import Lease, Loss, PartOutcome, ReplicaInfo


@dataclass(frozen=True)
class ReplicaReady:
    """A replica has passed its sentinels and takes leases."""

    replica: int
    info: ReplicaInfo


@dataclass(frozen=True)
class LeaseDone:
    replica: int
    lease: int
    outcomes: Sequence[PartOutcome]


@dataclass(frozen=True)
class ReplicaLost:
    """A replica died, with all the leases it held, or never came up.

    Its number is not used again.
    """

    replica: int
    detail: str
    loss: Loss = Loss.DIED


@dataclass(frozen=True)
class ReplicaProgress:
    """A sign of life between two answers."""

    replica: int
    tiles: int
    """Classified since it began to serve."""


Event = ReplicaReady | LeaseDone | ReplicaProgress | ReplicaLost


@dataclass(frozen=True)
class Hardware:
    """What all replicas of a run together will have."""

    device_type: str
    """``cuda`` or ``cpu``."""
    processors: int
    """GPUs, or CPUs where there are none."""


class Executor(Protocol):
    """Starts replicas, hands them leases, tells what came of it, replaces what died."""

    name: str

    def hardware(self) -> Hardware:
        """What replicas will run on. Raises UsageError where there is too little."""
        ...

    def start(self, spec: ReplicaSpec) -> None:
        """Begin to start replicas; each announces itself by ReplicaReady."""
        ...

    def submit(self, replica: int, lease: Lease) -> None:
        """Hand a lease to a ready replica, which works on two at a time."""
        ...

    def wait(self, timeout: float) -> list[Event]:
        """What has happened, after at most ``timeout`` seconds.

        Raises CvmBatchError where no replica could do better: a bundle that fails its
        sentinels, results that cannot be written.
        """
        ...

    def end(self, replica: int, detail: str) -> None:
        """End a replica that hangs; ReplicaLost follows, with ``detail``."""
        ...

    def close(self) -> None:
        """Stop all replicas at once. Calling it twice is harmless."""
        ...


class LocalExecutor:
    """Replicas in this process: one per GPU, or one on the CPU."""

    name = "local"

    def __init__(self) -> None:
        self._replicas: dict[int, Replica] = {}
        # Threads are made as they are needed: two a replica.
        self._pool = ThreadPoolExecutor(64, thread_name_prefix="lease")
        self._events: queue.Queue[Event | BaseException] = queue.Queue()

    def hardware(self) -> Hardware:
        return hardware_here()

    def start(self, spec: ReplicaSpec) -> None:
        gpus = [torch.device("cuda", n) for n in range(torch.cuda.device_count())]
        devices = gpus or [torch.device("cpu")]
        share = replace(spec, threads=max(1, usable_cpus() // len(devices)))
        for number, device in enumerate(devices):
            self._pool.submit(self._start_replica, number, share, device)

    def submit(self, replica: int, lease: Lease) -> None:
        self._pool.submit(self._classify, replica, lease)

    def wait(self, timeout: float) -> list[Event]:
        events: list[Event] = []
        try:
            while True:
                event = self._events.get(timeout=0 if events else timeout)
                if isinstance(event, BaseException):
                    raise _abort(event) from event
                events.append(event)
        except queue.Empty:
            return events

    def end(self, replica: int, detail: str) -> None:
        raise RunAbortedError(
            f"The replica in this process hangs: {detail}. What was committed stays; submit "
            "again to go on. With --executor ray a replica that hangs is replaced."
        )

    def close(self) -> None:
        for replica in self._replicas.values():
            replica.close()
        self._pool.shutdown(cancel_futures=True)

    def _start_replica(self, number: int, spec: ReplicaSpec, device: torch.device) -> None:
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


def hardware_here() -> Hardware:
    """This machine's, as far as this process may use it."""
    if torch.cuda.is_available():
        return Hardware("cuda", torch.cuda.device_count())
    return Hardware("cpu", usable_cpus())


def _abort(error: BaseException) -> CvmBatchError:
    if isinstance(error, CvmBatchError):
        return error
    return RunAbortedError(
        f"The replica in this process failed: {error!r}. What was committed stays; "
        "submit again to go on. With --executor ray a failed replica is replaced."
    )
