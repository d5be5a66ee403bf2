"""The dispatcher: which replica gets which parts next. Pure: the caller brings the time.

Slides go out largest first within a priority, one after the other, so that they finish
early rather than all at the end; a giant slide is shared out over all replicas. A lease
is a few seconds of work by the replica's measured speed.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cvm_batch.errors import Reason
from cvm_batch.screening.ledger import Ledger
from cvm_batch.screening.work import Failure, Lease, Part, PartOutcome, SlideSource


@dataclass(frozen=True, kw_only=True)
class LeasePolicy:
    """How work is cut and how often it is tried."""

    batch_size: int
    """Tiles that fill all lanes of a replica; leases hold whole batches where they can."""
    lease_seconds: float = 4.0
    in_flight: int = 2
    """Leases a replica holds at once: one on the device, one being decoded."""
    max_parts: int = 256
    """Parts in one lease, so that tiny slides do not make a lease that never ends."""
    max_attempts: int = 3
    """Errors that may pass, and replicas killed alone, that one part is allowed."""
    backoff_seconds: float = 1.0
    """Wait before the second attempt; doubled before each further one."""


@dataclass
class _ReplicaState:
    leases: set[int] = field(default_factory=set)
    tiles_per_second: float | None = None
    alone: bool = False
    """A suspect runs on it, and nothing else may."""
    counting_since: float = 0.0
    """When ``counted_tiles`` began to count; the replica has been busy ever since."""
    counted_tiles: int = 0


@dataclass(frozen=True)
class _OpenLease:
    lease: Lease
    replica: int


@dataclass(order=True, frozen=True)
class _Waiting:
    not_before: float
    number: int
    part: Part = field(compare=False)
    alone: bool = field(compare=False)
    """A suspect: its replica died, so it must not take neighbours with it again."""


class Dispatcher:
    """Hands out leases and takes outcomes until every slide has ended."""

    def __init__(
        self,
        slides: Sequence[SlideSource],
        tiles: Sequence[int],
        policy: LeasePolicy,
    ) -> None:
        """``slides[i].number`` is i; they go out in the order given."""
        self.ledger = Ledger(tiles)
        self._slides = slides
        self._policy = policy
        self._replicas: dict[int, _ReplicaState] = {}
        self._leases: dict[int, _OpenLease] = {}
        self._waiting: list[_Waiting] = []
        self._next_slide = 0
        self._next_tile = 0
        self._unleased = sum(tiles)
        self._numbers = itertools.count()
        self._ended = 0

    @property
    def done(self) -> bool:
        return self._ended == len(self._slides)

    @property
    def idle(self) -> bool:
        """True where no replica holds a lease."""
        return not self._leases

    def add_replica(self, replica: int) -> None:
        self._replicas[replica] = _ReplicaState()

    def next_lease(self, replica: int, now: float) -> Lease | None:
        """A lease for this replica, or None where it has enough or nothing waits."""
        state = self._replicas[replica]
        if state.alone or len(state.leases) >= self._policy.in_flight:
            return None
        suspect = self._suspect(now)
        if suspect is not None and state.leases:
            return None  # let the replica run empty, so that the suspect is alone on it
        if suspect is not None:
            self._waiting.remove(suspect)
            heapq.heapify(self._waiting)
            parts = [suspect.part]
        else:
            parts = self._take(self._lease_tiles(state), now)
        if not parts:
            return None
        state.alone = suspect is not None
        lease = Lease(next(self._numbers), tuple(parts))
        if not state.leases:
            state.counting_since, state.counted_tiles = now, 0
        state.leases.add(lease.number)
        self._leases[lease.number] = _OpenLease(lease, replica)
        for part in parts:
            account = self.ledger.accounts[part.slide.number]
            if account.first_leased is None:
                account.first_leased = now
        return lease

    def lease_done(self, number: int, outcomes: Sequence[PartOutcome], now: float) -> list[int]:
        """Take a lease's outcomes; return the numbers of the slides that ended by them.

        Answers to leases that were given up meanwhile, and to superseded attempts, are
        ignored.
        """
        opened = self._leases.pop(number, None)
        if opened is None:
            return []
        state = self._replicas[opened.replica]
        state.leases.discard(number)
        state.alone = False
        self._learn_speed(state, opened.lease.tiles, now)
        return [
            outcome.part.slide.number
            for outcome in outcomes
            if self.ledger.is_open(outcome.part) and self._settle(outcome, now)
        ]

    def replica_lost(
        self, replica: int, detail: str, now: float, *, preempted: bool = False
    ) -> list[int]:
        """Give up the replica's leases; return the numbers of the slides that ended by that.

        Each of their parts is tried again alone, since one of them may have killed it. Only
        a part that was alone already is charged, and none for a preempted node.
        """
        state = self._replicas.pop(replica)
        lost = [part for number in state.leases for part in self._leases.pop(number).lease.parts]
        ended = []
        for part in filter(self.ledger.is_open, lost):
            charged = state.alone and not preempted
            again = replace(part, attempt=part.attempt + 1, deaths=part.deaths + charged)
            if again.deaths < self._policy.max_attempts:
                self._wait(again, now, alone=True)
            else:
                self._fail(part, self._killer(detail))
                ended.append(part.slide.number)
        return ended

    def _settle(self, outcome: PartOutcome, now: float) -> bool:
        """Count, retry or fail an open part's outcome; True where the slide ended."""
        part, failure = outcome.part, outcome.failure
        if failure is None:
            ended = self.ledger.count(outcome)
            self._ended += ended
            return ended
        again = replace(part, attempt=part.attempt + 1, errors=part.errors + 1)
        if failure.reason is Reason.READ_ERROR and again.errors < self._policy.max_attempts:
            self._wait(again, now + self._policy.backoff_seconds * 2**part.errors, alone=False)
            return False
        self._fail(part, failure)
        return True

    def _wait(self, part: Part, not_before: float, *, alone: bool) -> None:
        self.ledger.open(part)
        heapq.heappush(self._waiting, _Waiting(not_before, next(self._numbers), part, alone))

    def _killer(self, detail: str) -> Failure:
        return Failure(
            Reason.REPLICA_LOST,
            f"{self._policy.max_attempts} replicas died with nothing but this slide on them; the "
            f"last one: {detail}. Look at the slide's files; a further submit tries again.",
        )

    def _fail(self, part: Part, failure: Failure) -> None:
        number = part.slide.number
        self.ledger.fail(number, failure)
        self._waiting = [entry for entry in self._waiting if entry.part.slide.number != number]
        heapq.heapify(self._waiting)
        if number == self._next_slide:
            self._skip_slide()
        self._ended += 1

    def _suspect(self, now: float) -> _Waiting | None:
        """A part that must run alone and may go now, if there is one."""
        return next((e for e in self._waiting if e.alone and e.not_before <= now), None)

    def _take(self, tiles: int, now: float) -> list[Part]:
        """Parts for a lease of about ``tiles``: retries that are due, then fresh ones."""
        parts: list[Part] = []
        while tiles > 0 and len(parts) < self._policy.max_parts:
            if self._waiting and self._waiting[0].not_before <= now:
                part = heapq.heappop(self._waiting).part
            elif self._next_slide < len(self._slides):
                part = self._cut(tiles)
            else:
                break
            parts.append(part)
            tiles -= len(part)
        return parts

    def _cut(self, room: int) -> Part:
        """Cut the next fresh part, at most ``room`` tiles, off the slide whose turn it is."""
        slide, start = self._slides[self._next_slide], self._next_tile
        tiles = self.ledger.accounts[slide.number].tiles
        stop = start + room
        chunk = slide.chunk_tiles
        if stop < tiles and room >= 4 * chunk:
            # A chunk that two parts share is decoded twice.
            stop = stop // chunk * chunk
        part = Part(slide, start, min(stop, tiles))
        self._unleased -= len(part)
        self._next_tile = part.stop
        if part.stop == tiles:
            self._next_slide, self._next_tile = self._next_slide + 1, 0
        self.ledger.open(part)
        return part

    def _skip_slide(self) -> None:
        """Leave out what has not been handed out of the slide whose turn it is."""
        tiles = self.ledger.accounts[self._next_slide].tiles
        self._unleased -= tiles - self._next_tile
        self._next_slide, self._next_tile = self._next_slide + 1, 0

    def _lease_tiles(self, state: _ReplicaState) -> int:
        """Whole batches for ``lease_seconds``; fewer near the end, so that none idles long."""
        batch = self._policy.batch_size
        speed = state.tiles_per_second
        wanted = 4 * batch if speed is None else speed * self._policy.lease_seconds
        fair = self._unleased / (len(self._replicas) * self._policy.in_flight)
        return max(1, round(min(wanted, fair) / batch)) * batch

    def _learn_speed(self, state: _ReplicaState, tiles: int, now: float) -> None:
        # Over half a lease's time at least: two answers may arrive in one moment.
        state.counted_tiles += tiles
        elapsed = now - state.counting_since
        if elapsed >= self._policy.lease_seconds / 2:
            state.tiles_per_second = state.counted_tiles / elapsed
            state.counting_since, state.counted_tiles = now, 0
