"""Suspects: parts whose replica was lost. Each runs alone, so that none is charged for another.

Alone is alone on its replica; and for a part under which nodes went away, alone on its node:
the node's other replicas run empty before it starts and get nothing until it has ended. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from cvm_batch.screening.blame import risks_its_node
from cvm_batch.screening.ledger import Ledger
from cvm_batch.screening.policy import LeasePolicy
from cvm_batch.screening.serving import Serving
from cvm_batch.screening.trust import Trust
from cvm_batch.screening.waiting import PartQueue, most_urgent
from cvm_batch.screening.work import Part


class Wait(Enum):
    """What is told to a replica that is to run empty."""

    UNTIL_ALONE = auto()


@dataclass
class _Lane:
    """Suspects of one kind, and the places, replicas or nodes, that are kept for them.

    A place is known by the replica that is to run the suspect there.
    """

    queue: PartQueue
    emptied: dict[int | str, int] = field(default_factory=dict)
    """Places where nothing is handed out, so that the suspect will be alone."""
    running: dict[int | str, int] = field(default_factory=dict)
    """Places where it runs, or has just ended."""

    @property
    def kept(self) -> int:
        return len(self.emptied) + len(self.running)

    def keeper(self, place: int | str) -> int | None:
        """The replica that the place is kept for."""
        return self.running.get(place, self.emptied.get(place))

    def release(self, place: int | str, replica: int) -> None:
        if self.keeper(place) == replica:
            self.emptied.pop(place, None)
            self.running.pop(place, None)


class Suspects:
    """Which suspects wait, and what is kept for them."""

    def __init__(
        self, policy: LeasePolicy, ledger: Ledger, priorities: Sequence[int], trust: Trust
    ) -> None:
        self._policy = policy
        self._priorities = priorities
        self._trust = trust
        self._by_replica = _Lane(PartQueue(ledger, priorities))
        self._by_node = _Lane(PartQueue(ledger, priorities))
        # All that serve, by their node.
        self._serving: dict[str, dict[int, Serving]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_replica.queue or self._by_node.queue)

    def push(self, part: Part) -> None:
        (self._by_node if risks_its_node(part) else self._by_replica).queue.push(part)

    def resort(self) -> None:
        """Say so when priorities have changed, or a slide has failed."""
        self._by_replica.queue.resort()
        self._by_node.queue.resort()

    def add(self, replica: int, state: Serving) -> None:
        self._serving.setdefault(self._trust.node_of(replica), {})[replica] = state

    def remove(self, replica: int) -> None:
        self.release(replica)
        node = self._trust.node_of(replica)
        del self._serving[node][replica]
        if not self._serving[node]:
            del self._serving[node]

    def release(self, replica: int) -> None:
        """It takes no suspects for now, and its node need not run empty for it."""
        self._by_replica.release(replica, replica)
        self._by_node.release(self._trust.node_of(replica), replica)

    def bars(self, replica: int) -> bool:
        """Whether its node is kept for a suspect that another replica is to run."""
        return self._by_node.keeper(self._trust.node_of(replica)) not in (None, replica)

    def next_for(self, replica: int, limit: float, urgency: int | None) -> Part | Wait | None:
        """The suspect that this replica, which nothing `bars`, is to run now; or None where it is
        free for other work.

        ``limit``: tiles that it can take. ``urgency``: the highest priority among all other
        work that waits, or None where there is none.
        """
        self.release(replica)
        node = self._trust.node_of(replica)
        beside = self._serving[node]
        above = most_urgent(urgency, self._by_replica.queue.urgency)
        found = self._offer(self._by_node, node, replica, limit, above, beside.values())
        if found is None:
            alone = [beside[replica]]
            found = self._offer(self._by_replica, replica, replica, limit, urgency, alone)
        return found

    def _offer(
        self,
        lane: _Lane,
        place: int | str,
        replica: int,
        limit: float,
        urgency: int | None,
        there: Iterable[Serving],
    ) -> Part | Wait | None:
        """Keep ``place``, where the replicas ``there`` are, if it may be and there is need."""
        busy = any(state.held for state in there)
        # No more places run empty than there are suspects to wait for it.
        most_emptied = len(lane.queue) if busy else math.inf
        if len(lane.emptied) >= most_emptied or lane.kept >= self._share(lane, urgency):
            return None
        waiting = lane.queue.pop_first(lambda part: self._suits(part, replica, limit, urgency))
        if waiting is None:
            return None
        if busy:
            lane.queue.put_back([waiting])
            lane.emptied[place] = replica
            return Wait.UNTIL_ALONE
        lane.running[place] = replica
        return waiting.part

    def _share(self, lane: _Lane, urgency: int | None) -> int:
        """Places that may be kept: all of them only where no other work waits."""
        places = len(self._trust.usable_on if lane is self._by_node else self._trust.usable)
        return max(1, places if urgency is None else places // self._policy.suspect_share)

    def _suits(self, suspect: Part, replica: int, limit: float, urgency: int | None) -> bool:
        return (
            len(suspect) <= limit
            and (urgency is None or urgency <= self._priorities[suspect.slide.number])
            and not self._trust.elsewhere(suspect, replica)
        )
