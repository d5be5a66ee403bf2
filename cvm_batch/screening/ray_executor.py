"""Replicas as Ray actors, each pinned to a GPU or to a node's CPUs.

Plain actors, not Ray Data: docs/decisions/0004. An actor is never restarted by Ray
(``max_restarts=0``, at most once): the driver replaces it and knows what it held.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import CvmBatchError, RunAbortedError, SentinelError, UsageError
from cvm_batch.screening.executor import (
    Event,
    Hardware,
    LeaseDone,
    ReplicaLost,
    ReplicaProgress,
    ReplicaReady,
    hardware_here,
)
from cvm_batch.screening.work import Lease, Loss, PartOutcome, ReplicaInfo, ReplicaSpec

# A hospital's cluster calls nobody: off unless somebody has switched it on. Ray reads
# its settings on import.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

#: Replicas in a row that may die on one share of the cluster before they serve; then the
#: share is left alone.
_MAX_FAILED_STARTS = 3
#: Leases that an actor works on at once, and one thread to say how far it is.
_ACTOR_THREADS = 3
#: Only outcomes pass through the object store: counts and names, no tiles.
_OBJECT_STORE_BYTES = 256 * 2**20


class ReplicaActor:
    """A replica in a process of its own."""

    def start(self, spec: ReplicaSpec) -> ReplicaInfo:
        # PyTorch is loaded in the actor alone, not in the driver that names its class.
        from cvm_batch.screening.replica import Replica

        # Not in __init__: an error there would arrive as the actor's death, without its type.
        self._replica = Replica(spec)
        return self._replica.info()

    def classify(self, lease: Lease) -> Sequence[PartOutcome]:
        return self._replica.classify(lease)

    def tiles_done(self) -> int:
        return self._replica.tiles_done


@dataclass(frozen=True)
class _Share:
    """The resources of one replica."""

    gpus: float
    cpus: int
    threads: int
    failed_starts: int = 0
    """Replicas in a row that died on it before they served."""


class _Kind(Enum):
    START = auto()
    LEASE = auto()
    PROGRESS = auto()


@dataclass(frozen=True)
class _Call:
    """An answer that is awaited."""

    replica: int
    kind: _Kind
    lease: int = -1


class RayExecutor:
    """Replicas on a Ray cluster, or on a Ray of its own on this machine."""

    name = "ray"

    def __init__(self, *, address: str | None = None, replicas: int | None = None) -> None:
        self._address = address
        self._wanted = replicas
        self._spec: ReplicaSpec | None = None
        self._actors: dict[int, tuple[Any, _Share]] = {}
        self._calls: dict[Any, _Call] = {}
        self._lost_already: list[Event] = []
        self._next_replica = 0
        self._asked_at = 0.0
        # Ray's own processes are killed when the thread ends that started them (PR_SET_PDEATHSIG):
        # so this one is kept until all is over.
        self._starter = ThreadPoolExecutor(1, "start Ray")
        self._starting: Future[None] | None = None

    def hardware(self) -> Hardware:
        if self._address is None:
            return hardware_here()  # Ray is started later: a run may find nothing to do
        self._connect()
        shares = _shares(ray.nodes(), self._wanted)
        gpus = sum(share.gpus for share in shares)
        if gpus:
            return Hardware("cuda", math.ceil(gpus))
        return Hardware("cpu", sum(share.cpus for share in shares))

    def prepare(self) -> None:
        # A Ray of one's own takes some seconds to come up, mostly of waiting.
        self._starting = self._starter.submit(self._connect)

    def start(self, spec: ReplicaSpec) -> None:
        if self._starting is not None:
            self._starting.result()
        self._connect()
        self._spec = spec
        for share in _shares(ray.nodes(), self._wanted):
            self._start_replica(share)

    def submit(self, replica: int, lease: Lease) -> None:
        actor, _ = self._actors[replica]
        self._calls[actor.classify.remote(lease)] = _Call(replica, _Kind.LEASE, lease.number)

    def wait(self, timeout: float) -> list[Event]:
        self._ask_for_progress()
        events, self._lost_already = self._lost_already, []
        # Progress is no reason to wake up: it is taken along with what is.
        calls = [ref for ref, call in self._calls.items() if call.kind is not _Kind.PROGRESS]
        if events:
            timeout = 0
        if calls:
            ray.wait(calls, num_returns=1, timeout=timeout)
        else:  # every replica is idle: retries wait out their time
            time.sleep(timeout)
        answered, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        # A replica that died takes its other calls with it: those are gone from _calls.
        return events + [self._event(ref) for ref in answered if ref in self._calls]

    def end(self, replica: int, detail: str) -> None:
        self._lost_already.append(self._lost(_Call(replica, _Kind.LEASE), detail, Loss.HUNG))

    def close(self) -> None:
        if self._starting is not None:
            wait_for([self._starting])
        for replica in list(self._actors):
            self._remove(replica)
        ray.shutdown()
        self._starter.shutdown()

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self._address is None:
            options |= {
                "num_cpus": usable_cpus(),
                "object_store_memory": _OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
            }
        try:
            _knock(self._address)
            with _our_signal_handlers():
                ray.init(address=self._address or "local", **options)
        except (OSError, RuntimeError, ValueError) as error:
            where = self._address or "on this machine"
            raise UsageError(
                f"Ray could not be reached or started ({where}): {error}. Check --address, or "
                "use --executor local to run in this process."
            ) from error

    def _start_replica(self, share: _Share) -> None:
        assert self._spec is not None
        actor = (
            ray.remote(ReplicaActor)
            .options(
                num_gpus=share.gpus,
                num_cpus=share.cpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=_ACTOR_THREADS,
            )
            .remote()
        )
        number = self._next_replica
        self._next_replica += 1
        self._actors[number] = (actor, share)
        call = actor.start.remote(replace(self._spec, threads=share.threads))
        self._calls[call] = _Call(number, _Kind.START)

    def _ask_for_progress(self) -> None:
        """One question to each replica at a time, some hundred a second in all."""
        now = time.monotonic()
        if now - self._asked_at < max(1.0, len(self._actors) / 200):
            return
        self._asked_at = now
        asked = {call.replica for call in self._calls.values() if call.kind is _Kind.PROGRESS}
        busy = {call.replica for call in self._calls.values() if call.kind is _Kind.LEASE}
        for replica in busy - asked:
            actor, _ = self._actors[replica]
            self._calls[actor.tiles_done.remote()] = _Call(replica, _Kind.PROGRESS)

    def _event(self, ref: Any) -> Event:
        call = self._calls.pop(ref)
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            return self._failed(call, error)
        except RayActorError as error:
            preempted = isinstance(error, ActorDiedError) and error.preempted
            return self._lost(call, str(error), Loss.PREEMPTED if preempted else Loss.DIED)
        except RayError as error:  # as where the answer was lost with its node
            return self._lost(call, repr(error))
        if call.kind is _Kind.LEASE:
            return LeaseDone(call.replica, call.lease, answer)
        if call.kind is _Kind.PROGRESS:
            return ReplicaProgress(call.replica, answer)
        actor, share = self._actors[call.replica]
        self._actors[call.replica] = (actor, replace(share, failed_starts=0))
        return ReplicaReady(call.replica, answer)

    def _failed(self, call: _Call, error: RayTaskError) -> Event:
        """What to make of an exception in a replica."""
        cause = error.cause
        if isinstance(cause, SentinelError) and len(self._actors) > 1:
            # This device computes wrongly; the others go on without it.
            self._remove(call.replica)
            return ReplicaLost(call.replica, str(cause))
        if isinstance(cause, CvmBatchError):
            raise cause from None
        # The device or the process is not to be trusted any more.
        return self._lost(call, repr(cause))

    def _lost(self, call: _Call, detail: str, loss: Loss = Loss.DIED) -> ReplicaLost:
        """Put another replica in the place of a dead one."""
        share = self._remove(call.replica)
        if call.kind is _Kind.START and loss is not Loss.PREEMPTED:
            share = replace(share, failed_starts=share.failed_starts + 1)
        if share.failed_starts < _MAX_FAILED_STARTS:
            self._start_replica(share)
        elif not self._actors:
            raise RunAbortedError(
                f"{share.failed_starts} replicas in a row died before they could serve; the "
                f"last one: {detail}. Check the nodes' memory and drivers, then submit again."
            )
        return ReplicaLost(call.replica, detail, loss)

    def _remove(self, replica: int) -> _Share:
        actor, share = self._actors.pop(replica)
        ray.kill(actor)
        self._calls = {ref: call for ref, call in self._calls.items() if call.replica != replica}
        return share


def _knock(address: str | None) -> None:
    """Raise OSError where nothing listens: Ray would go on trying for minutes."""
    host, _, port = (address or "").rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _our_signal_handlers() -> Iterator[None]:
    """Keep SIGTERM's handler: ray.init puts one of its own there, which ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _shares(nodes: Sequence[dict[str, Any]], wanted: int | None) -> list[_Share]:
    """One replica per GPU; without GPUs, one per node, or ``wanted`` over all CPUs.

    Raises UsageError where the cluster has too little.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    cpus = [int(resources.get("CPU", 0)) for resources in alive]
    gpus = [int(resources.get("GPU", 0)) for resources in alive]
    if any(gpus):
        shares = [
            _Share(1, 1, max(1, cpu // gpu))
            for cpu, gpu in zip(cpus, gpus, strict=True)
            for _ in range(gpu)
        ]
        if wanted is not None and wanted > len(shares):
            raise UsageError(f"--replicas {wanted}, but the cluster has {len(shares)} GPUs.")
        return shares[:wanted]
    if wanted is None:
        return [_Share(0, cpu, cpu) for cpu in cpus if cpu]
    if wanted > sum(cpus):
        raise UsageError(f"--replicas {wanted}, but the cluster has {sum(cpus)} CPUs.")
    # As many CPUs each as leave room for all, none of which can lie on two nodes.
    each = next(n for n in range(max(cpus), 0, -1) if sum(cpu // n for cpu in cpus) >= wanted)
    return [_Share(0, each, each)] * wanted
