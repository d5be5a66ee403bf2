"""Replicas as Ray actors, each pinned to a GPU or to a node's CPUs.

Plain actors, not Ray Data: docs/decisions/0004. An actor is never restarted by Ray
(``max_restarts=0``, at most once): the driver replaces it and knows what it held.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import CvmBatchError, RunAbortedError, UsageError
from cvm_batch.screening.executor import Event, LeaseDone, ReplicaLost, ReplicaReady
from cvm_batch.screening.replica import Replica, ReplicaSpec
from cvm_batch.screening.work import Lease, PartOutcome, ReplicaInfo

# A hospital's cluster calls nobody: off unless somebody has switched it on. Ray reads
# its settings on import.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayActorError, RayTaskError

#: Consecutive replicas that may die before they serve, until the run is given up.
_MAX_FAILED_STARTS = 3
#: Leases at once, and one thread to spare for a stop.
_ACTOR_THREADS = 3
#: Only outcomes pass through the object store: counts and names, no tiles.
_OBJECT_STORE_BYTES = 256 * 2**20


class ReplicaActor:
    """A replica in a process of its own."""

    def start(self, spec: ReplicaSpec) -> ReplicaInfo:
        # Not in __init__: an error there would arrive as the actor's death, without its type.
        self._replica = Replica(spec)
        return self._replica.info()

    def classify(self, lease: Lease) -> Sequence[PartOutcome]:
        return self._replica.classify(lease)


@dataclass(frozen=True)
class _Share:
    """The resources of one replica."""

    gpus: float
    cpus: int
    threads: int


@dataclass(frozen=True)
class _Call:
    """An answer that is awaited; of ``start`` where there is no lease."""

    replica: int
    lease: int | None = None


class RayExecutor:
    """Replicas on a Ray cluster, or on a Ray of its own on this machine."""

    name = "ray"

    def __init__(self, *, address: str | None = None, replicas: int | None = None) -> None:
        self._address = address
        self._wanted = replicas
        self._spec: ReplicaSpec | None = None
        self._actors: dict[int, tuple[Any, _Share]] = {}
        self._calls: dict[Any, _Call] = {}
        self._next_replica = 0
        self._failed_starts = 0

    def device_type(self) -> str:
        if self._address is None:
            return "cuda" if torch.cuda.is_available() else "cpu"
        self._connect()
        return "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"

    def start(self, spec: ReplicaSpec) -> None:
        self._connect()
        self._spec = spec
        for share in _shares(ray.nodes(), self._wanted):
            self._start_replica(share)

    def submit(self, replica: int, lease: Lease) -> None:
        actor, _ = self._actors[replica]
        self._calls[actor.classify.remote(lease)] = _Call(replica, lease.number)

    def wait(self, timeout: float) -> list[Event]:
        calls = list(self._calls)
        if not calls:  # every replica is idle: retries wait out their time
            time.sleep(timeout)
            return []
        ray.wait(calls, num_returns=1, timeout=timeout)
        answered, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
        # A replica that died takes its other calls with it: those are gone from _calls.
        return [self._event(ref) for ref in answered if ref in self._calls]

    def close(self) -> None:
        for actor, _ in self._actors.values():
            ray.kill(actor)
        ray.shutdown()

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        quiet = {"log_to_driver": False, "logging_level": "error"}
        try:
            if self._address is not None:
                ray.init(address=self._address, **quiet)
                return
            ray.init(
                address="local",
                num_cpus=usable_cpus(),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
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
        self._calls[call] = _Call(number)

    def _event(self, ref: Any) -> Event:
        call = self._calls.pop(ref)
        try:
            answer = ray.get(ref)
        except RayActorError as error:
            return self._lost(call, str(error))
        except RayTaskError as error:
            if isinstance(error.cause, CvmBatchError):
                raise error.cause from None
            # The device or the process is not to be trusted any more.
            return self._lost(call, repr(error.cause))
        if call.lease is None:
            self._failed_starts = 0
            return ReplicaReady(call.replica, answer)
        return LeaseDone(call.replica, call.lease, answer)

    def _lost(self, call: _Call, detail: str) -> ReplicaLost:
        actor, share = self._actors.pop(call.replica)
        ray.kill(actor)
        self._calls = {ref: c for ref, c in self._calls.items() if c.replica != call.replica}
        self._failed_starts += call.lease is None
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise RunAbortedError(
                f"{self._failed_starts} replicas in a row died before they could serve; the "
                f"last one: {detail}. Check the nodes' memory and drivers, then submit again."
            )
        self._start_replica(share)
        return ReplicaLost(call.replica, detail)


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
    each = sum(cpus) // wanted
    if not each:
        raise UsageError(f"--replicas {wanted}, but the cluster has {sum(cpus)} CPUs.")
    return [_Share(0, each, each)] * wanted
