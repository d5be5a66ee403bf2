"""Which replicas are to be believed: one on a bad node fails all it is handed, and fast. Pure.

A node that lost its slides' mount answers in milliseconds, is hungry again at once and would
draw nearly all work. So a replica whose parts all failed, over several slides, is
suspended, and then tried with one part. Where all are, it is the store and not a node:
one part at a time is tried for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from cvm_batch.errors import PASSING_REASONS, Reason
from cvm_batch.screening.policy import LeasePolicy
from cvm_batch.screening.work import Part, PartOutcome


class Standing(Enum):
    """What a replica may be handed."""

    FREE = auto()
    PROBE = auto()
    """One part, while it holds nothing else."""
    SUSPENDED = auto()


@dataclass
class _Record:
    failed_parts: int = 0
    """One after the other, with nothing in between that came to something."""
    failed_slides: set[int] = field(default_factory=set)
    suspensions: int = 0
    suspended_until: float | None = None


class Trust:
    """Records of all replicas that serve."""

    def __init__(self, policy: LeasePolicy) -> None:
        self.usable: dict[int, None] = {}
        """Replicas that are not suspended."""
        self.usable_on: Counter[str] = Counter()
        """How many of them are on each node that has any."""
        self._policy = policy
        self._records: dict[int, _Record] = {}
        self._nodes: dict[int, str] = {}  # also of replicas that are gone
        self._probing: set[int] = set()
        # While no replica is usable:
        self._dark_since: float | None = None
        self._dark_until = 0.0
        self._dark_probes = 0
        self._outage = False
        self._suspensions: list[tuple[int, float]] = []

    def add(self, replica: int, node: str) -> None:
        self._records[replica] = _Record()
        self._nodes[replica] = node
        self._believe(replica)

    def remove(self, replica: int) -> None:
        del self._records[replica]
        self._doubt(replica)
        self._probing.discard(replica)

    def node_of(self, replica: int) -> str:
        return self._nodes[replica]

    def standing(self, replica: int, now: float) -> Standing:
        until = self._records[replica].suspended_until
        if until is None:
            return Standing.FREE
        if self._probing and (replica in self._probing or not self.usable):
            return Standing.SUSPENDED
        if self.usable:
            return Standing.PROBE if now >= until else Standing.SUSPENDED
        if self._dark_since is None:  # the last usable one has died
            self._dark_since = now
        if now - self._dark_since > self._policy.outage_seconds:
            self._give_in()
            return Standing.FREE
        return Standing.PROBE if now >= self._dark_until else Standing.SUSPENDED

    def probes(self, replica: int) -> None:
        """Note that a suspended replica has been handed its one part."""
        self._probing.add(replica)

    def judge(self, replica: int, outcomes: Sequence[PartOutcome], now: float) -> None:
        """Take what a replica made of a lease.

        Parts that had failed before say more of their slide than of the replica.
        """
        record = self._records[replica]
        readable = any(outcome.failure is None for outcome in outcomes)
        # Where all are suspended the question is whether anything can be read at all.
        if readable or (not self.usable and any(map(_was_read, outcomes))):
            self._vindicate(replica, now)
            return
        probed = replica in self._probing
        if record.suspended_until is not None and not probed:
            return  # it was handed that before
        self._probing.discard(replica)
        # Damage that the only one meets is the slides': there is nobody to compare it with.
        last = list(self.usable) == [replica]
        failed = [
            outcome.part
            for outcome in outcomes
            if _speaks_against_replica(outcome) and not (last and _was_read(outcome))
        ]
        record.failed_parts += len(failed)
        record.failed_slides.update(part.slide.number for part in failed)
        doubted = (
            record.failed_parts >= self._policy.doubt_parts
            and len(record.failed_slides) >= self._policy.doubt_slides
        )
        if (probed or doubted) and not self._outage:
            self._suspend(replica, record, now)

    def elsewhere(self, part: Part, replica: int) -> bool:
        """Whether another replica should try this part again: one on a node where it has not
        failed yet, or else one that has not failed it itself."""
        if not part.failed_on:
            return False
        nodes = {self._nodes[failed] for failed in part.failed_on}
        if self.another_node(part):
            return self._nodes[replica] in nodes
        return replica in part.failed_on and any(
            other not in part.failed_on for other in self.usable
        )

    def another_node(self, part: Part) -> bool:
        """Whether a usable replica is on a node where this part has not failed yet."""
        nodes = {self._nodes[failed] for failed in part.failed_on}
        return any(self._nodes[other] not in nodes for other in self.usable)

    def newly_suspended(self) -> list[tuple[int, float]]:
        """Replicas that were suspended since the last call, and for how many seconds."""
        told, self._suspensions = self._suspensions, []
        return told

    def _believe(self, replica: int) -> None:
        if replica not in self.usable:
            self.usable[replica] = None
            self.usable_on[self._nodes[replica]] += 1

    def _doubt(self, replica: int) -> None:
        if replica in self.usable:
            del self.usable[replica]
            node = self._nodes[replica]
            self.usable_on[node] -= 1
            if not self.usable_on[node]:
                del self.usable_on[node]

    def _suspend(self, replica: int, record: _Record, now: float) -> None:
        pause = self._pause(record.suspensions)
        record.suspensions += 1
        record.suspended_until = now + pause
        self._suspensions.append((replica, pause))
        self._doubt(replica)
        if not self.usable:
            self._grow_dark(now)

    def _grow_dark(self, now: float) -> None:
        if self._dark_since is None:
            self._dark_since = now
        self._dark_until = now + self._pause(self._dark_probes)
        self._dark_probes += 1

    def _vindicate(self, replica: int, now: float) -> None:
        """It can read: and where all were suspended, so may the others."""
        if not self.usable:
            for record in self._records.values():
                record.suspended_until = now
        self._probing.discard(replica)
        self._records[replica] = _Record()
        self._believe(replica)
        self._dark_since, self._dark_probes, self._outage = None, 0, False

    def _give_in(self) -> None:
        """Work on with all of them: a run has to end, and each slide has its attempts."""
        self._outage = True
        self._probing.clear()
        for replica in self._records:
            self._records[replica] = _Record()
            self._believe(replica)

    def _pause(self, earlier: int) -> float:
        policy = self._policy
        return min(policy.longest_suspension, policy.suspend_seconds * 2.0 ** min(earlier, 30))


def _was_read(outcome: PartOutcome) -> bool:
    """Whether the store gave what it has, sound or not."""
    failure = outcome.failure
    return failure is None or failure.reason not in (Reason.READ_ERROR, Reason.INPUT_CHANGED)


def _speaks_against_replica(outcome: PartOutcome) -> bool:
    failure = outcome.failure
    return failure is not None and failure.reason in PASSING_REASONS and not outcome.part.errors
