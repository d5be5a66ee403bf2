"""A dispatcher that a test drives by hand."""

from __future__ import annotations

from cvm_batch.archives.address import SlideAddress
from cvm_batch.errors import Reason
from cvm_batch.screening.dispatcher import Dispatcher
from cvm_batch.screening.policy import LeasePolicy
from cvm_batch.screening.work import Failure, Lease, Part, PartOutcome, SlideSource

POLICY = LeasePolicy(batch_size=8, backoff_seconds=1.0)


def sources(count: int, chunk_tiles: int = 1) -> list[SlideSource]:
    return [
        SlideSource(n, f"slide-{n}", SlideAddress(uri=f"/slides/{n}"), "id", chunk_tiles)
        for n in range(count)
    ]


def dispatcher(*tiles: int, policy: LeasePolicy = POLICY, chunk_tiles: int = 1) -> Dispatcher:
    made = Dispatcher(policy)
    for source, count in zip(sources(len(tiles), chunk_tiles), tiles, strict=True):
        made.add_slide(source, count)
    made.add_replica(0)
    return made


def counted(part: Part) -> PartOutcome:
    return PartOutcome(part=part, class_counts=(len(part),), classified=len(part))


def failed(part: Part, reason: Reason) -> PartOutcome:
    return PartOutcome(part=part, failure=Failure(reason, "because"))


def outcomes(lease: Lease) -> list[PartOutcome]:
    return [counted(part) for part in lease.parts]


def lease_for(made: Dispatcher, replica: int = 0, now: float = 0.0) -> Lease:
    lease = made.next_lease(replica, now)
    assert lease is not None
    return lease
