"""Suspects: parts whose replica was lost. Each runs alone, so that none is charged for another.

Alone is alone on its replica; and for a part under which nodes went away, alone on its node:
the node's other replicas run empty before it starts and get nothing until it has ended. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from cvm_batch.screening.blame import risks_its_node
from cvm_batch.screening.ledger import Ledger
from cvm_batch.screening.policy import LeasePolicy
from cvm_batch.screening.serving import Serving
from cvm_batch.screening.trust import Trust
from cvm_batch.screening.waiting import PartQueue
from cvm_batch.screening.work import Part


class Suspects:
    """Which suspects wait, and which replicas and nodes are kept for them."""

    def __init__(
        self, policy: LeasePolicy, ledger: Ledger, priorities: Sequence[int], trust: Trust
    ) -> None:
        self._policy = policy
        self._trust = trust
        self._by_replica = PartQueue(ledger, priorities)
        self._by_node = PartQueue(ledger, priorities)
        # Replicas that run suspects, or run empty for one.
        self._replicas: set[int] = set()
        # Nodes that run one, or run empty for one, and the replica that it is for.
        self._nodes: dict[str, int] = {}
        # All that serve, by their node.
        self._serving: dict[str, dict[int, Serving]] = {}
        self._priorities = priorities

    def __bool__(self) -> bool:
        return bool(self._by_replica or self._by_node)

    def push(self, part: Part) -> None:
        (self._by_node if risks_its_node(part) else self._by_replica).push(part)

    def resort(self) -> None:
        """Say so when priorities have changed."""
        self._by_replica.resort()
        self._by_node.resort()

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
        self._replicas.discard(replica)
        node = self._trust.node_of(replica)
        if self._nodes.get(node) == replica:
            del self._nodes[node]

    def bars(self, replica: int) -> bool:
        """Whether its node is kept for a suspect that another replica is to run."""
        return self._nodes.get(self._trust.node_of(replica), replica) != replica

    def claim(self, replica: int, limit: float, urgency: int | None) -> bool:
        """Whether this replica is kept for a suspect now: nothing else may be handed to it.

        Ask `bars` first.
        ``limit``: tiles that it can take. ``urgency``: the highest priority among all other
        work that waits, or None where there is none.
        """
        node = self._trust.node_of(replica)
        if not self._suits(self._by_node.first(), replica, limit, urgency):
            self._nodes.pop(node, None)
        elif node in self._nodes or len(self._nodes) < self._share(len(self._serving), urgency):
            self._nodes[node] = replica
            return True
        if not self._suits(self._by_replica.first(), replica, limit, urgency):
            self._replicas.discard(replica)
            return False
        if replica not in self._replicas:
            if len(self._replicas) >= self._share(len(self._trust.usable), urgency):
                return False
            self._replicas.add(replica)
        return True

    def take(self, replica: int) -> Part | None:
        """The suspect that a claimed replica is kept for; None while it would not be alone."""
        node = self._trust.node_of(replica)
        replicas = self._serving[node]
        if node in self._nodes:
            busy = any(state.held for state in replicas.values())
            return None if busy else self._by_node.pop().part
        return None if replicas[replica].held else self._by_replica.pop().part

    def _suits(self, suspect: Part | None, replica: int, limit: float, urgency: int | None) -> bool:
        return (
            suspect is not None
            and len(suspect) <= limit
            and (urgency is None or urgency <= self._priorities[suspect.slide.number])
            and not self._trust.elsewhere(suspect, replica)
        )

    def _share(self, all_of_them: int, urgency: int | None) -> int:
        """Of so many, those that may be kept for suspects: all where nothing else waits."""
        if urgency is None:
            return max(1, all_of_them)
        return max(1, all_of_them // self._policy.suspect_share)
