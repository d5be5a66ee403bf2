"""Which replicas a cluster has room for, node by node. Pure: who asks brings the nodes.

How replicas are cut is decided once, by the nodes that are there when a run starts: a run
computes on GPUs or on CPUs, and never on both. Nodes that join later are cut the same way.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from cvm_batch.errors import UsageError
from cvm_batch.screening.executor import Hardware

#: Replicas in a row that may die on one share before they serve; a run whose shares are all like
#: that has no hope.
MAX_FAILED_STARTS = 3
#: Seconds until a share is tried again after the second replica that was lost on it in a row;
#: twice as long after each further one. The first is replaced at once: a slide may have killed it.
_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 2.0, 300.0
#: Leases that a replica answers before its share counts as sound again: a sick GPU may pass the
#: sentinels, and die over the first real work.
_SOUND_AFTER_LEASES = 8
#: Within so long, one error of two nodes is not the nodes' but the run's. Longer than a backoff.
_TOGETHER_SECONDS = 900.0
#: Ray counts resources in ten-thousandths.
_PRECISION = 10_000
#: Blocks that one replica has read elsewhere at once: enough to hide the way there, and no
#: more than memory holds.
_LEAST_READERS, _MOST_READERS = 4, 64


@dataclass(frozen=True)
class Node:
    """A node that is alive, and what of it nobody holds at the moment."""

    name: str
    cpus: int
    gpus: int
    free_cpus: float
    free_gpus: float


@dataclass(frozen=True)
class Share:
    """The resources of one replica, on one node: threads that suit one node do not suit
    another."""

    node: str
    place: int
    """Which of the node's shares it is."""
    gpus: float
    cpus: float
    threads: int


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """How a run's replicas are cut."""

    wanted: int | None
    """Replicas in all; None: as many as there is room for."""
    per_gpu: int
    """0 where replicas run on CPUs."""
    cpus_each: int | None = None
    """CPUs of a replica that runs on them; None: all that its node has."""

    @classmethod
    def of(cls, nodes: Sequence[Node], wanted: int | None, per_gpu: int | None) -> Sizing:
        """One replica per GPU, or as many as are asked for; without GPUs, one per node, or
        ``wanted`` over all CPUs.

        Raises UsageError where the cluster has too little.
        """
        gpus, cpus = sum(node.gpus for node in nodes), sum(node.cpus for node in nodes)
        if gpus:
            sizing = cls(wanted=wanted, per_gpu=per_gpu or 1)
            if wanted is not None and wanted > gpus * sizing.per_gpu:
                room = f", for {sizing.per_gpu} replicas each" if sizing.per_gpu > 1 else ""
                raise UsageError(f"--replicas {wanted}, but the cluster has {gpus} GPUs{room}.")
            return sizing
        if per_gpu is not None:
            raise UsageError(
                f"--replicas-per-gpu {per_gpu}, but the cluster has no GPU. Leave it out to run "
                "on CPUs; a cluster that grows by itself needs one GPU node when a run starts."
            )
        if not cpus:
            raise UsageError(
                "The cluster has neither GPUs nor CPUs. Keep one node for replicas up: what a "
                "run computes on is decided when it starts."
            )
        if wanted is None:
            return cls(wanted=None, per_gpu=0)
        if wanted > cpus:
            raise UsageError(f"--replicas {wanted}, but the cluster has {cpus} CPUs.")
        # As many CPUs each as leave room for all, none of which can lie on two nodes.
        largest = max(node.cpus for node in nodes)
        each = next(
            n for n in range(largest, 0, -1) if sum(node.cpus // n for node in nodes) >= wanted
        )
        return cls(wanted=wanted, per_gpu=0, cpus_each=each)

    def shares(self, nodes: Sequence[Node]) -> list[Share]:
        """All that the nodes have room for: each node's first before any node's second."""
        found = [share for node in nodes for share in self._of_node(node)]
        return sorted(found, key=lambda share: share.place)

    def hardware(self, nodes: Sequence[Node]) -> Hardware:
        """What the replicas will have together."""
        if self.per_gpu:
            gpus = sum(node.gpus for node in nodes)
            used = gpus if self.wanted is None else math.ceil(self.wanted / self.per_gpu)
            return Hardware("cuda", min(gpus, used))
        shares = self.shares(nodes)[: self.wanted]
        return Hardware("cpu", sum(share.threads for share in shares))

    def readers(self, nodes: Sequence[Node]) -> int:
        """Blocks that each replica should have read elsewhere at once: one runs and one waits
        on every CPU that no replica holds."""
        replicas = len(self.shares(nodes)[: self.wanted])
        each = math.ceil(2 * self._spare_cpus(nodes) / max(1, replicas))
        return min(max(_LEAST_READERS, each), _MOST_READERS)

    def check_decoding(self, nodes: Sequence[Node]) -> None:
        """Raise UsageError where no CPU is left to decode for replicas."""
        if not self.per_gpu:
            raise UsageError(
                "--decode-on cluster is for replicas on GPUs: here they hold all CPUs, and "
                "take far longer to classify a tile than to decode it. Leave it out."
            )
        if not self._spare_cpus(nodes):
            raise UsageError(
                "--decode-on cluster, but replicas hold every CPU of the cluster. Add a node "
                "with CPUs, or take fewer replicas per GPU."
            )

    def _spare_cpus(self, nodes: Sequence[Node]) -> int:
        """CPUs that no replica holds; a task needs a whole one."""
        taken: dict[str, float] = dict.fromkeys((node.name for node in nodes), 0)
        for share in self.shares(nodes)[: self.wanted]:
            taken[share.node] += share.cpus
        return sum(int(node.cpus - taken[node.name]) for node in nodes)

    def _of_node(self, node: Node) -> Iterator[Share]:
        if self.per_gpu:
            count = node.gpus * self.per_gpu
            gpus: float = 1 if self.per_gpu == 1 else _floor(1 / self.per_gpu)
            cpus: float = 1 if node.cpus >= count else _floor(node.cpus / max(1, count))
            threads = max(1, node.cpus // max(1, count))
        else:
            each = self.cpus_each or node.cpus
            count = node.cpus // each if each else 0
            gpus, cpus, threads = 0, each, each
        for place in range(count):
            yield Share(node.name, place, gpus, cpus, threads)


@dataclass
class _Record:
    """What became of the replicas on one share."""

    lost: int = 0
    """In a row, since it was last sound."""
    failed_starts: int = 0
    """Those of them that died before they served, since one did."""
    answered: int = 0
    """Leases, by the replica that serves now."""
    not_before: float = 0.0


class Fleet:
    """Which shares want a replica: all but those that are taken, wait out a loss or have proved
    no good. The caller brings the time, in seconds of any clock that goes forward."""

    def __init__(self, sizing: Sizing, nodes: Sequence[Node]) -> None:
        self.sizing = sizing
        self.like = max(sizing.shares(nodes), key=lambda share: share.cpus)
        """What to ask a cluster for that should grow."""
        self._records: defaultdict[Share, _Record] = defaultdict(_Record)
        self._left_alone: set[Share] = set()
        self._troubled: dict[tuple[str, str], float] = {}

    def missing(self, nodes: Sequence[Node], taken: Collection[Share], now: float) -> list[Share]:
        """Shares to start replicas on now, those with room at this moment first."""
        candidates = self._candidates(nodes, taken, now)
        if self.sizing.wanted is None:
            return candidates
        at_once, later = _by_room(nodes, candidates)
        return [*at_once, *later][: max(0, self.sizing.wanted - len(taken))]

    def misplaced(
        self, nodes: Sequence[Node], taken: Collection[Share], waiting: Sequence[Share], now: float
    ) -> list[Share]:
        """Of the taken shares on which replicas are ``waiting`` for room, those that are better
        given up, since another share has room now; where all shares are wanted, none."""
        if self.sizing.wanted is None:
            return []
        at_once, _ = _by_room(nodes, self._candidates(nodes, taken, now))
        return list(waiting[: len(at_once)])

    def _candidates(
        self, nodes: Sequence[Node], taken: Collection[Share], now: float
    ) -> list[Share]:
        candidates = [
            share
            for share in self.sizing.shares(nodes)
            if share not in taken
            and share not in self._left_alone
            and now >= self._records[share].not_before
        ]
        return sorted(candidates, key=lambda share: self._records[share].lost)

    def started(self, share: Share) -> None:
        """A replica serves on it."""
        record = self._records[share]
        record.failed_starts = record.answered = 0

    def answered(self, share: Share) -> None:
        """Its replica has answered a lease."""
        record = self._records[share]
        record.answered += 1
        if record.answered >= _SOUND_AFTER_LEASES:
            record.lost = 0

    def lost(self, share: Share, now: float, *, served: bool) -> float:
        """A replica died on it, and not with its node; return when it is tried again."""
        record = self._records[share]
        record.lost += 1
        record.failed_starts += not served
        if record.lost > 1:
            backoff = _BACKOFF_SECONDS * 2.0 ** min(record.lost - 2, 32)
            record.not_before = now + min(backoff, _LONGEST_BACKOFF_SECONDS)
        return record.not_before

    def leave_alone(self, share: Share) -> None:
        """No further replica is started on it."""
        self._left_alone.add(share)

    def hopeless(self, nodes: Sequence[Node]) -> bool:
        """Whether on every share replicas die before they serve."""
        shares = self.sizing.shares(nodes)
        return bool(shares) and all(
            share in self._left_alone or self._records[share].failed_starts >= MAX_FAILED_STARTS
            for share in shares
        )

    def alone_with(self, trouble: str, node: str, now: float) -> bool:
        """Note an error that may be a node's own; False where another has had it lately too."""
        others = [
            at
            for (what, other), at in self._troubled.items()
            if what == trouble and other != node and now - at < _TOGETHER_SECONDS
        ]
        self._troubled[trouble, node] = now
        return not others


def _by_room(nodes: Sequence[Node], shares: Sequence[Share]) -> tuple[list[Share], list[Share]]:
    """Shares that fit into what nobody holds at this moment, and the others."""
    cpus = {node.name: node.free_cpus for node in nodes}
    gpus = {node.name: node.free_gpus for node in nodes}
    at_once: list[Share] = []
    later: list[Share] = []
    for share in shares:
        cpus[share.node] -= share.cpus
        gpus[share.node] -= share.gpus
        fits = min(cpus[share.node], gpus[share.node]) >= 0
        (at_once if fits else later).append(share)
    return at_once, later


def _floor(resources: float) -> float:
    return math.floor(resources * _PRECISION) / _PRECISION
