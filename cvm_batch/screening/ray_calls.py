"""What the Ray executor knows of its actors, and which of their answers it awaits."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple

from cvm_batch.screening.shares import Share
from cvm_batch.screening.work import ReplicaSpec


class Kind(Enum):
    LOOK = auto()
    START = auto()
    LEASE = auto()
    PROGRESS = auto()


class Actor(NamedTuple):
    handle: Any
    share: Share
    spec: ReplicaSpec
    begun_at: float


@dataclass(frozen=True)
class Call:
    """An answer that is awaited."""

    replica: int
    kind: Kind
    lease: int = -1
