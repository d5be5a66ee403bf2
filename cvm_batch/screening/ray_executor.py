"""Replicas as Ray actors, each on its share of a node: a GPU, a part of one, or CPUs.

Plain actors, not Ray Data: docs/decisions/0004. An actor is never restarted by Ray
(``max_restarts=0``, at most once): the driver replaces it and knows what it held.
Replicas follow the cluster as it grows and shrinks: docs/decisions/0017.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cvm_batch.errors import (
    BundleError,
    CommitError,
    CvmBatchError,
    ResultsError,
    RunAbortedError,
    SentinelError,
)
from cvm_batch.screening.executor import (
    Event,
    Hardware,
    LeaseDone,
    ReplicaLost,
    ReplicaProgress,
    ReplicaReady,
)
from cvm_batch.screening.ray_actor import ReplicaActor
from cvm_batch.screening.ray_calls import Actor, Call, Kind
from cvm_batch.screening.ray_cluster import Bids, RayCluster, this_machine
from cvm_batch.screening.settings import DecodeOn
from cvm_batch.screening.shares import MAX_FAILED_STARTS, Fleet, Node, Share, Sizing
from cvm_batch.screening.visibility import Needs, probe_arrived
from cvm_batch.screening.work import Lease, Loss, ReplicaSpec

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
#: A replica that has had no room for so long goes where there is some. Longer than a look takes.
_PLACED_SECONDS = 150.0
#: While replicas die and none answers a lease for so long, nothing is to be expected any more.
_HOPE_SECONDS = 1800.0
#: Weights from a cold share, and a network that is compiled, may take minutes to start.
START_SECONDS = 300.0
#: Errors that may be those of one node, which is not to end the night of all others.
_OF_A_NODE = (BundleError, ResultsError, CommitError)


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
        self._needs: Needs | None = None
        self._actors: dict[int, Actor] = {}
        self._placed: dict[int, float] = {}
        """Those that have had their look at their node, since when."""
        self._serving: set[int] = set()
        self._same_results: set[str] = set()
        """Nodes of which it is known that they write to the driver's results folder."""
        self._calls: dict[Any, Call] = {}
        self._lost_already: list[Event] = []
        self._fatal: CvmBatchError | None = None
        """Ends the run at the next turn: what was answered in this one is committed first."""
        self._gone: set[str] = set()  # nodes that were found lost in this turn
        self._next_replica = 0
        # Ray's own processes are killed when the thread ends that started them (PR_SET_PDEATHSIG):
        # so this one is kept until all is over.
        self._starter = ThreadPoolExecutor(1, "start Ray")
        self._starting: Future[None] | None = None
        self._asked_at = self._looked_at = self._began_at = self._idle_at = 0.0
        self._wanted_at = math.inf
        """When a share is to be tried again, as far as that was before the next look."""
        self._bids = Bids()
        self._answered_at: float | None = None

    def hardware(self) -> Hardware:
        if self._cluster.address is None:
            nodes = [this_machine()]  # Ray is started later: a run may find nothing to do
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
        self._needs = Needs(
            paths=spec.samples,
            bundle=str(spec.bundle),
            bundle_digest=spec.bundle_digest,
            results=str(spec.results),
            probe=spec.run.run_id,
        )
        self._looked_at = self._idle_at = self._began_at = time.monotonic()
        self._fill(self._cluster.nodes())

    def submit(self, replica: int, lease: Lease) -> None:
        actor = self._actors[replica].handle
        self._calls[actor.classify.remote(lease)] = Call(replica, Kind.LEASE, lease.number)

    def wait(self, timeout: float) -> list[Event]:
        if self._fatal is not None:
            raise self._fatal
        self._ask_for_progress()
        # Progress is no reason to wake up: it is taken along with what is.
        calls = [ref for ref, call in self._calls.items() if call.kind is not Kind.PROGRESS]
        if self._lost_already:
            timeout = 0
        if calls:
            ray.wait(calls, num_returns=1, timeout=timeout)
        else:  # every replica is idle: retries wait out their time
            time.sleep(timeout)
        answered, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        # A replica that died takes its other calls with it: those are gone from _calls.
        found = [self._event(ref) for ref in answered if ref in self._calls]
        if self._gone:
            self._drop_those_on(self._gone)  # idle ones do not say so
            self._gone.clear()
        # Now that all answers are read: this process may have waited for its results' store.
        if self._fatal is None:
            self._follow_the_cluster()
        lost, self._lost_already = self._lost_already, []
        # Losses last: what such a replica has answered just now is its work all the same.
        return [*(event for event in found if event is not None), *lost]

    def end(self, replica: int, detail: str) -> None:
        self._lost_already.append(self._lost(Call(replica, Kind.LEASE), detail, Loss.HUNG))

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
        now = time.monotonic()
        for share in self._fleet.missing(nodes, self._taken(), now):
            self._start_replica(share, readers, now)

    def _taken(self) -> dict[Share, int]:
        return {actor.share: replica for replica, actor in self._actors.items()}

    def _give_up_those_that_do_not_start(self, now: float) -> None:
        """Those that serve are watched by the dispatcher."""
        for replica, placed_at in list(self._placed.items()):
            if replica not in self._serving and now - placed_at > START_SECONDS:
                detail = f"it did not start within {START_SECONDS:.0f} s"
                self._lost_already.append(self._lost(Call(replica, Kind.START), detail, Loss.HUNG))

    def _move_those_without_room(self, nodes: Sequence[Node]) -> None:
        """An actor waits for its own node, also when another has joined meanwhile."""
        now = time.monotonic()
        waiting = [
            actor.share
            for replica, actor in self._actors.items()
            if replica not in self._placed and now - actor.begun_at > _PLACED_SECONDS
        ]
        taken = self._taken()
        for share in self._fleet.misplaced(nodes, taken, waiting, now):
            self._remove(taken[share])

    def _start_replica(self, share: Share, readers: int | None, now: float) -> None:
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
        spec = replace(self._spec, threads=share.threads, readers=readers)
        self._actors[number] = Actor(actor, share, spec, now)
        self._calls[actor.look.remote(self._needs, share.node)] = Call(number, Kind.LOOK)

    def _follow_the_cluster(self) -> None:
        """Replicas on nodes that have joined, none on nodes that have left."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_SECONDS and now < self._wanted_at:
            return
        self._looked_at, self._wanted_at = now, math.inf
        nodes = self._cluster.nodes()
        left = {actor.share.node for actor in self._actors.values()}
        self._drop_those_on(left - {node.name for node in nodes})
        self._give_up_those_that_do_not_start(now)
        self._move_those_without_room(nodes)
        self._fill(nodes)
        if self._cluster.address is not None and self._wanted is None:
            self._ask_for_nodes(now)

    def _drop_those_on(self, gone: Collection[str]) -> None:
        for replica, actor in list(self._actors.items()):
            if actor.share.node in gone:
                self._remove(replica)
                event = ReplicaLost(replica, "its node has left the cluster", Loss.NODE_LOST)
                self._lost_already.append(event)

    def _ask_for_nodes(self, now: float) -> None:
        """Ask a cluster that grows by itself for as many replicas again, once those that serve
        have been busy for a while."""
        if self._serving - self._busy() or self._bids.granted():
            self._idle_at = now
        busy = now - self._idle_at >= _BUSY_SECONDS
        count = min(max(1, len(self._serving)), _MOST_BIDS) if busy else 0
        self._bids.keep(count, self._fleet.like)

    def _busy(self) -> set[int]:
        return {call.replica for call in self._calls.values() if call.kind is Kind.LEASE}

    def _ask_for_progress(self) -> None:
        """One question to each replica at a time, some hundred a second in all."""
        now = time.monotonic()
        if now - self._asked_at < max(1.0, len(self._actors) / 200):
            return
        self._asked_at = now
        asked = {call.replica for call in self._calls.values() if call.kind is Kind.PROGRESS}
        for replica in self._busy() - asked:
            actor = self._actors[replica].handle
            self._calls[actor.progress.remote()] = Call(replica, Kind.PROGRESS)

    def _event(self, ref: Any) -> Event | None:
        call = self._calls.pop(ref)
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            return self._failed(call, error)
        except RayError as error:
            return self._lost(call, str(error), self._how_lost(call, error))
        match call.kind:
            case Kind.LOOK:
                return self._looked(call, answer)
            case Kind.LEASE:
                self._fleet.answered(self._share_of(call))
                self._answered_at = time.monotonic()
                return LeaseDone(call.replica, call.lease, answer)
            case Kind.PROGRESS:
                return ReplicaProgress(call.replica, *answer)
        self._serving.add(call.replica)
        self._fleet.started(self._share_of(call))
        return ReplicaReady(call.replica, answer)

    def _share_of(self, call: Call) -> Share:
        return self._actors[call.replica].share

    def _looked(self, call: Call, lacking: Sequence[str]) -> Event | None:
        """The actor has its place: let its replica start there, if the node sees what it must."""
        self._placed[call.replica] = time.monotonic()
        actor = self._actors[call.replica]
        node = actor.share.node
        assert self._needs is not None
        if not lacking and node not in self._same_results:
            if not probe_arrived(self._needs, node):
                lacking = [f"another folder at {self._needs.results}: what it writes is not here"]
            else:
                self._same_results.add(node)
        if lacking:
            return self._unfit(call, lacking)
        started = actor.handle.start.remote(actor.spec, self._decode_on)
        self._calls[started] = Call(call.replica, Kind.START)
        return None

    def _unfit(self, call: Call, lacking: Sequence[str]) -> ReplicaLost:
        """A node that does not see what the driver sees: it may later."""
        assert self._needs is not None
        self._same_results.discard(self._share_of(call).node)
        seen = self._needs.seen_here()
        gone = {f"no {path}" for path in {*self._needs.paths} - {*seen.paths}}
        self._needs = seen
        if gone.issuperset(lacking):
            self._remove(call.replica)
            self._fill(self._cluster.nodes())
            return ReplicaLost(call.replica, f"{'; '.join(lacking)}, nor here", Loss.PREEMPTED)
        return self._lost(call, f"on its node: {'; '.join(lacking)}")

    def _how_lost(self, call: Call, error: RayError) -> Loss:
        """By itself, with its node, or with a node that the cluster took away."""
        if isinstance(error, RayActorError) and error.preempted:
            return Loss.PREEMPTED
        node = self._share_of(call).node
        if not self._cluster.lost(node):
            return Loss.DIED
        self._gone.add(node)
        return Loss.NODE_LOST

    def _failed(self, call: Call, error: RayTaskError) -> Event | None:
        """What to make of an exception in a replica."""
        cause = error.cause
        share = self._share_of(call)
        if isinstance(cause, SentinelError) and len(self._actors) > 1:
            # This device computes wrongly; the others go on without it.
            self._fleet.leave_alone(share)
            self._remove(call.replica)
            return ReplicaLost(call.replica, str(cause))
        if isinstance(cause, _OF_A_NODE) and self._goes_on_without(share.node, cause):
            self._same_results.discard(share.node)
            # What it held is not to blame, and goes to others.
            return replace(self._lost(call, str(cause)), loss=Loss.PREEMPTED)
        if isinstance(cause, CvmBatchError):
            self._fatal = self._fatal or cause
            return None
        # The device or the process is not to be trusted any more.
        return self._lost(call, repr(cause))

    def _goes_on_without(self, node: str, error: CvmBatchError) -> bool:
        """Whether another node has replicas, and none has had the same error lately."""
        alone = self._fleet.alone_with(type(error).__name__, node, time.monotonic())
        return alone and any(actor.share.node != node for actor in self._actors.values())

    def _lost(self, call: Call, detail: str, loss: Loss = Loss.DIED) -> ReplicaLost:
        """Put another replica in the place of a dead one, at once or after a while, unless its
        node died with it."""
        served = call.replica in self._serving
        share = self._remove(call.replica)
        nodes = self._cluster.nodes()
        if loss not in (Loss.PREEMPTED, Loss.NODE_LOST):
            again = self._fleet.lost(share, time.monotonic(), served=served)
            self._wanted_at = min(self._wanted_at, again)
            self._check_hope(nodes, detail)
        self._fill(nodes)
        return ReplicaLost(call.replica, detail, loss)

    def _check_hope(self, nodes: Sequence[Node], detail: str) -> None:
        """End the run where trying on would only keep the results folder."""
        if self._answered_at is None and not self._actors and self._fleet.hopeless(nodes):
            self._fatal = self._fatal or RunAbortedError(
                f"{MAX_FAILED_STARTS} replicas in a row were lost before they could serve; the "
                f"last one: {detail}. Check the nodes' memory, drivers and mounts, then submit "
                "again."
            )
        silent = time.monotonic() - (self._answered_at or self._began_at)
        if not self._serving and silent > _HOPE_SECONDS:
            self._fatal = self._fatal or RunAbortedError(
                f"Replicas die, and none has answered for {silent / 60:.0f} minutes; the last "
                f"one: {detail}. Check the nodes' memory, drivers and mounts, then submit again."
            )

    def _remove(self, replica: int) -> Share:
        actor = self._actors.pop(replica)
        self._serving.discard(replica)
        self._placed.pop(replica, None)
        ray.kill(actor.handle)
        self._calls = {ref: call for ref, call in self._calls.items() if call.replica != replica}
        return actor.share
