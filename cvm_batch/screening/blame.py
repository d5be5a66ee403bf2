"""What becomes of a part whose replica was lost: tried again, suspected, or charged. Pure."""

from __future__ import annotations

from dataclasses import replace

from cvm_batch.errors import Reason
from cvm_batch.screening.policy import LeasePolicy
from cvm_batch.screening.work import Failure, Loss, Part

#: Nodes that go away under a part until it is suspected: the first is an accident.
_NODES_SUSPICIOUS = 2


def risks_its_node(part: Part) -> bool:
    """Whether it may be what takes nodes down: it must have one to itself."""
    return part.nodes >= _NODES_SUSPICIOUS


def runs_alone(part: Part) -> bool:
    """Whether what it has been through is reason enough, however its last attempt ended."""
    return bool(part.deaths) or risks_its_node(part)


def after_loss(part: Part, loss: Loss, *, alone: bool) -> Part:
    """The next attempt. Only what was ``alone`` on its replica is charged for a death."""
    return replace(
        part,
        attempt=part.attempt + 1,
        deaths=part.deaths + (alone and loss in (Loss.DIED, Loss.HUNG)),
        nodes=part.nodes + (loss is Loss.NODE_LOST),
    )


def suspected(again: Part, loss: Loss, *, alone: bool) -> bool:
    """Whether the next attempt is to run alone. Once alone, it stays so for further losses."""
    innocent = loss is Loss.PREEMPTED or (loss is Loss.NODE_LOST and not risks_its_node(again))
    return alone or not innocent


def verdict(
    again: Part, loss: Loss, detail: str, policy: LeasePolicy, *, alone: bool
) -> Failure | None:
    """Why there is to be no further attempt, or None where there is one."""
    if alone and again.nodes >= policy.max_nodes:
        return Failure(
            Reason.REPLICA_LOST,
            f"{again.nodes} nodes went away while they read this slide, the last "
            f"{again.nodes - _NODES_SUSPICIOUS} of them with nothing else on the node: {detail}. "
            "Look at the slide's files and at the nodes' memory; a further submit tries again.",
        )
    if again.deaths < policy.max_attempts:
        return None
    if loss is Loss.HUNG:
        return Failure(
            Reason.TIMEOUT,
            f"{again.deaths} replicas hung or died with nothing but this slide on them, the last "
            f"one without a sign of work for {policy.patience_seconds:.0f} s. Look at the slide's "
            "files, then let `cvm-batch retry` try again.",
        )
    return Failure(
        Reason.REPLICA_LOST,
        f"{again.deaths} replicas died with nothing but this slide on them; the last one: "
        f"{detail}. Look at the slide's files; a further submit tries again.",
    )
