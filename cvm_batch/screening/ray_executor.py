"""Replicas as Ray actors, each on its share of a node: a GPU, a part of one, or CPUs.

Plain actors, not Ray Data: docs/decisions/0004. An actor is never restarted by Ray
(``max_restarts=0``, at most once): the driver replaces it and knows what it held.
Replicas follow the cluster as it grows and shrinks: docs/decisions/0017.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import CvmBatchError, RunAbortedError, SentinelError
from cvm_batch.screening.executor import (
    Event,
    Hardware,
    LeaseDone,
    ReplicaLost,
    ReplicaProgress,
    ReplicaReady,
    hardware_here,
)
from cvm_batch.screening.ray_cluster import Bids, RayCluster
from cvm_batch.screening.settings import DecodeOn
from cvm_batch.screening.shares import MAX_FAILED_STARTS, Fleet, Node, Share, Sizing
from cvm_batch.screening.work import Lease, Loss, PartOutcome, ReplicaInfo, ReplicaSpec

#: Leases that an actor works on at once, and one thread to say how far it is.
_ACTOR_THREADS = 3
#: Where only outcomes pass through the object store: counts and names, no tiles.
_OBJECT_STORE_BYTES = 256 * 2**20
#: How often the cluster is looked at.
_LOOK_SECONDS = 5.0
#: Replicas that have been busy for so long could do with others beside them.
_BUSY_SECONDS = 60.0
#: Nodes that are asked for at once.
_MOST_BIDS = 8


class ReplicaActor:
    """A replica in a process of its own."""

    def start(self, spec: ReplicaSpec, decode_on: DecodeOn) -> ReplicaInfo:
        # PyTorch is loaded in the actor alone, not in the driver that names its class.
        from cvm_batch.screening.replica import Replica

        # Not in __init__: an error there would arrive as the actor's death, without its type.
        open_slide = None
        if decode_on is DecodeOn.CLUSTER:
            from cvm_batch.screening.cluster_decoding import ClusterArchive

            open_slide = partial(ClusterArchive, options=spec.opening)
        self._replica = Replica(spec, open_slide=open_slide)
        return self._replica.info()

    def classify(self, lease: Lease) -> Sequence[PartOutcome]:
        return self._replica.classify(lease)

    def progress(self) -> tuple[int, int]:
        """Tiles classified, and signs of other work."""
        return self._replica.tiles_done, self._replica.signs


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

    def __init__(
        self,
        *,
        address: str | None = None,
        replicas: int | None = None,
        replicas_per_gpu: int | None = None,
        decode_on: DecodeOn = DecodeOn.REPLICA,
    ) -> None:
        """``replicas`` None: as many as the cluster has room for, also when it changes."""
        tiles_pass = decode_on is DecodeOn.CLUSTER
        self._cluster = RayCluster(address, None if tiles_pass else _OBJECT_STORE_BYTES)
        self._wanted = replicas
        self._per_gpu = replicas_per_gpu
        self._decode_on = decode_on
        self._spec: ReplicaSpec | None = None
        self._actors: dict[int, tuple[Any, Share]] = {}
        self._serving: set[int] = set()
        self._calls: dict[Any, _Call] = {}
        self._lost_already: list[Event] = []
        self._next_replica = 0
        self._asked_at = 0.0
        # Ray's own processes are killed when the thread ends that started them (PR_SET_PDEATHSIG):
        # so this one is kept until all is over.
        self._starter = ThreadPoolExecutor(1, "start Ray")
        self._starting: Future[None] | None = None
        self._looked_at = 0.0
        self._bids = Bids()
        self._idle_at = 0.0

    def hardware(self) -> Hardware:
        if self._cluster.address is None:
            nodes = [_this_machine()]  # Ray is started later: a run may find nothing to do
        else:
            self._cluster.connect()
            nodes = self._cluster.nodes()
        sizing = Sizing.of(nodes, self._wanted, self._per_gpu)
        if self._decode_on is DecodeOn.CLUSTER:
            sizing.check_decoding(nodes)
        self._fleet = Fleet(sizing, nodes)
        return sizing.hardware(nodes)

    def prepare(self) -> None:
        # A Ray of one's own takes some seconds to come up, mostly of waiting.
        self._starting = self._starter.submit(self._cluster.connect)

    def start(self, spec: ReplicaSpec) -> None:
        if self._starting is not None:
            self._starting.result()
        self._cluster.connect()
        self._spec = spec
        self._fill(self._cluster.nodes())
        self._looked_at = self._idle_at = time.monotonic()

    def submit(self, replica: int, lease: Lease) -> None:
        actor, _ = self._actors[replica]
        self._calls[actor.classify.remote(lease)] = _Call(replica, _Kind.LEASE, lease.number)

    def wait(self, timeout: float) -> list[Event]:
        self._ask_for_progress()
        self._follow_the_cluster()
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
        self._cluster.close()
        self._starter.shutdown()

    def _fill(self, nodes: Sequence[Node]) -> None:
        """Start replicas wherever one is missing."""
        on_cluster = self._decode_on is DecodeOn.CLUSTER
        readers = self._fleet.sizing.readers(nodes) if on_cluster else None
        for share in self._fleet.missing(nodes, {share for _, share in self._actors.values()}):
            self._start_replica(share, readers)

    def _start_replica(self, share: Share, readers: int | None) -> None:
        assert self._spec is not None
        actor = (
            ray.remote(ReplicaActor)
            .options(
                num_gpus=share.gpus,
                num_cpus=share.cpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=_ACTOR_THREADS,
                scheduling_strategy=NodeAffinitySchedulingStrategy(share.node, soft=False),
            )
            .remote()
        )
        number = self._next_replica
        self._next_replica += 1
        self._actors[number] = (actor, share)
        spec = replace(self._spec, threads=share.threads, readers=readers)
        self._calls[actor.start.remote(spec, self._decode_on)] = _Call(number, _Kind.START)

    def _follow_the_cluster(self) -> None:
        """Replicas on nodes that have joined, none on nodes that have left."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        nodes = self._cluster.nodes()
        names = {node.name for node in nodes}
        for replica, (_, share) in list(self._actors.items()):
            if share.node not in names:
                self._remove(replica)
                event = ReplicaLost(replica, "its node has left the cluster", Loss.NODE_LOST)
                self._lost_already.append(event)
        self._fill(nodes)
        if self._cluster.address is not None and self._wanted is None:
            self._ask_for_nodes(now)

    def _ask_for_nodes(self, now: float) -> None:
        """Ask a cluster that grows by itself for as many replicas again, once those that serve
        have been busy for a while."""
        if self._serving - self._busy() or self._bids.granted():
            self._idle_at = now
        busy = now - self._idle_at >= _BUSY_SECONDS
        count = min(max(1, len(self._serving)), _MOST_BIDS) if busy else 0
        self._bids.keep(count, self._fleet.like)

    def _busy(self) -> set[int]:
        return {call.replica for call in self._calls.values() if call.kind is _Kind.LEASE}

    def _ask_for_progress(self) -> None:
        """One question to each replica at a time, some hundred a second in all."""
        now = time.monotonic()
        if now - self._asked_at < max(1.0, len(self._actors) / 200):
            return
        self._asked_at = now
        asked = {call.replica for call in self._calls.values() if call.kind is _Kind.PROGRESS}
        for replica in self._busy() - asked:
            actor, _ = self._actors[replica]
            self._calls[actor.progress.remote()] = _Call(replica, _Kind.PROGRESS)

    def _event(self, ref: Any) -> Event:
        call = self._calls.pop(ref)
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            return self._failed(call, error)
        except RayError as error:
            return self._lost(call, str(error), self._how_lost(call, error))
        if call.kind is _Kind.LEASE:
            return LeaseDone(call.replica, call.lease, answer)
        if call.kind is _Kind.PROGRESS:
            return ReplicaProgress(call.replica, *answer)
        self._serving.add(call.replica)
        _, share = self._actors[call.replica]
        self._fleet.started(share)
        return ReplicaReady(call.replica, answer)

    def _how_lost(self, call: _Call, error: RayError) -> Loss:
        """By itself, with its node, or with a node that the cluster took away."""
        _, share = self._actors[call.replica]
        if isinstance(error, RayActorError) and error.preempted:
            return Loss.PREEMPTED
        return Loss.NODE_LOST if self._cluster.lost(share.node) else Loss.DIED

    def _failed(self, call: _Call, error: RayTaskError) -> Event:
        """What to make of an exception in a replica."""
        cause = error.cause
        if isinstance(cause, SentinelError) and len(self._actors) > 1:
            # This device computes wrongly; the others go on without it.
            self._fleet.leave_alone(self._remove(call.replica))
            return ReplicaLost(call.replica, str(cause))
        if isinstance(cause, CvmBatchError):
            raise cause from None
        # The device or the process is not to be trusted any more.
        return self._lost(call, repr(cause))

    def _lost(self, call: _Call, detail: str, loss: Loss = Loss.DIED) -> ReplicaLost:
        """Put another replica in the place of a dead one, unless its node died with it."""
        share = self._remove(call.replica)
        never_served = call.kind is _Kind.START and loss not in (Loss.PREEMPTED, Loss.NODE_LOST)
        if never_served:
            self._fleet.failed(share)
        self._fill(self._cluster.nodes())
        if never_served and not self._actors:
            raise RunAbortedError(
                f"{MAX_FAILED_STARTS} replicas in a row died before they could serve; the "
                f"last one: {detail}. Check the nodes' memory and drivers, then submit again."
            )
        return ReplicaLost(call.replica, detail, loss)

    def _remove(self, replica: int) -> Share:
        actor, share = self._actors.pop(replica)
        self._serving.discard(replica)
        ray.kill(actor)
        self._calls = {ref: call for ref, call in self._calls.items() if call.replica != replica}
        return share


def _this_machine() -> Node:
    hardware, cpus = hardware_here(), usable_cpus()
    gpus = hardware.processors if hardware.device_type == "cuda" else 0
    return Node("", cpus, gpus, cpus, gpus)
