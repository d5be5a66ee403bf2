"""The seam between the driver and whatever runs replicas."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cvm_batch.cpus import usable_cpus
from cvm_batch.screening.work import Lease, Loss, PartOutcome, ReplicaInfo, ReplicaSpec


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
    """What it is done with since it began to serve."""
    signs: int = 0
    """Grows with whatever else it gets done: blocks read, bytes hashed or copied."""


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

    def prepare(self) -> None:
        """Begin what takes its time and does not depend on the plan: there will be work."""
        ...

    def start(self, spec: ReplicaSpec) -> None:
        """Begin to start replicas; each announces itself by ReplicaReady."""
        ...

    def submit(self, replica: int, lease: Lease) -> None:
        """Hand a lease to a ready replica, which works on two at a time."""
        ...

    def wait(self, timeout: float) -> list[Event]:
        """What has happened, after at most ``timeout`` seconds.

        Where a node has gone, all its replicas are told as lost at once: an idle one that was
        not would be handed what has just lost that node, and that be charged for another.
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


def hardware_here() -> Hardware:
    """This machine's, as far as this process may use it."""
    if _has_gpu_driver():
        import torch

        if torch.cuda.is_available():
            return Hardware("cuda", torch.cuda.device_count())
    return Hardware("cpu", usable_cpus())


def _has_gpu_driver() -> bool:
    """Without one, PyTorch need not be loaded to hear that there is no GPU."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
