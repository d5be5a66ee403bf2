"""The dispatcher: which replica gets which parts next. Pure: the caller brings the time.

A lease is a few seconds of work by the replica's measured speed, over one or many slides;
a giant slide is shared out over all replicas. What fails for a passing reason is tried
again; after a death the suspects run alone, so that no slide is charged for its neighbour.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cvm_batch.errors import Reason
from cvm_batch.screening.backlog import Backlog
from cvm_batch.screening.ledger import Ledger
from cvm_batch.screening.work import Failure, Lease, Loss, Part, PartOutcome, SlideSource


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
    patience_seconds: float = 120.0
    """A replica with a lease that classifies nothing for so long hangs."""


@dataclass
class _ReplicaState:
    leases: set[int] = field(default_factory=set)
    leased_tiles: int = 0
    tiles_per_second: float | None = None
    alone: bool = False
    """A suspect runs on it, and nothing else may."""
    counting_since: float = 0.0
    """When ``counted_tiles`` began to count; the replica has been busy ever since."""
    counted_tiles: int = 0
    tiles_seen: int = 0
    """As it last reported, since it began to serve."""
    tiles_answered: int = 0
    """In leases that it has answered."""
    last_sign: float = 0.0
    """When it last got on with its work."""
    retired: bool = False
    """It is being ended: it gets no further lease."""


@dataclass(frozen=True)
class _OpenLease:
    lease: Lease
    replica: int


@dataclass(order=True, frozen=True)
class _Retry:
    not_before: float
    number: int
    part: Part = field(compare=False)


class Dispatcher:
    """Hands out leases and takes outcomes until every slide has ended."""

    def __init__(self, policy: LeasePolicy) -> None:
        self.ledger = Ledger()
        self.until: float | None = None
        """Clock time at which all replicas are to be idle, or None."""
        self._policy = policy
        self.backlog = Backlog()
        self._replicas: dict[int, _ReplicaState] = {}
        # In the order in which they became so: as a set, but the same in every run.
        self._hungry: dict[int, None] = {}
        self._leases: dict[int, _OpenLease] = {}
        self._retries: list[_Retry] = []
        # Their replica died: they must not take neighbours with them again.
        self._suspects: deque[Part] = deque()
        self._numbers = itertools.count()
        self._ended = 0

    @property
    def done(self) -> bool:
        return self._ended == len(self.ledger.accounts)

    @property
    def idle(self) -> bool:
        """True where no replica holds a lease."""
        return not self._leases

    @property
    def exhausted(self) -> bool:
        """True where nothing runs and nothing will be handed out any more."""
        return self.idle and not (self.backlog or self._retries or self._a_suspect_waits())

    def add_slide(self, slide: SlideSource, tiles: int, priority: int = 0) -> None:
        """``slide.number`` counts from 0, one by one."""
        self.ledger.add(tiles)
        assert slide.number == len(self.ledger.accounts) - 1
        self.backlog.add(slide, tiles, priority)

    def set_priority(self, number: int, priority: int) -> None:
        """What is not yet handed out of that slide goes earlier or later."""
        self.backlog.set_priority(number, priority)

    def add_replica(self, replica: int, now: float = 0.0) -> None:
        self._replicas[replica] = _ReplicaState(last_sign=now)
        self.backlog.reconsider()
        self._hungry[replica] = None

    @property
    def tiles_done(self) -> int:
        """Accounted for, and of running leases as far as replicas have told."""
        running = sum(
            min(state.tiles_seen - state.tiles_answered, state.leased_tiles)
            for state in self._replicas.values()
        )
        return self.ledger.tiles_accounted + max(0, running)

    def hungry(self) -> list[int]:
        """Replicas that could take another lease, where there is anything to hand out."""
        if not (self.backlog or self._retries or self._a_suspect_waits()):
            return []
        return list(self._hungry)

    def next_lease(self, replica: int, now: float) -> Lease | None:
        """A lease for this replica, or None where it has enough or nothing waits."""
        state = self._replicas[replica]
        if state.alone or state.retired or len(state.leases) >= self._policy.in_flight:
            return None
        room = self._lease_tiles(state, now)
        if room <= 0:
            return None
        if self._a_suspect_waits():
            if state.leases:
                return None  # let the replica run empty, so that the suspect is alone on it
            parts = [self._suspects.popleft()]
            state.alone = True
        else:
            parts = self._take(room, now)
        return self._lease(replica, state, parts, now) if parts else None

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
        state.leased_tiles -= opened.lease.tiles
        state.alone = False
        state.last_sign = now
        state.tiles_answered += opened.lease.tiles
        if not state.retired:
            self._hungry[opened.replica] = None
        self._learn_speed(state, opened.lease.tiles, now)
        return [
            outcome.part.slide.number
            for outcome in outcomes
            if self.ledger.is_open(outcome.part) and self._settle(outcome, now)
        ]

    def note_progress(self, replica: int, tiles: int, now: float) -> None:
        """``tiles``: classified by the replica since it began to serve."""
        state = self._replicas.get(replica)
        if state is not None and tiles > state.tiles_seen:
            state.tiles_seen = tiles
            state.last_sign = now

    def overdue(self, now: float) -> list[int]:
        """Replicas that hold leases and have classified nothing for too long."""
        patience = self._policy.patience_seconds
        return [
            replica
            for replica, state in self._replicas.items()
            if state.leases and not state.retired and now - state.last_sign > patience
        ]

    def retire(self, replica: int) -> None:
        """Hand it nothing more: it is being ended, and `replica_lost` follows."""
        self._replicas[replica].retired = True
        self._hungry.pop(replica, None)

    def replica_lost(self, replica: int, loss: Loss, detail: str, now: float) -> list[int]:
        """Give up the replica's leases; return the numbers of the slides that ended by that.

        Each of their parts is tried again alone, since one of them may have killed it. Only
        a part that was alone already is charged, and none for a preempted node.
        """
        state = self._replicas.pop(replica)
        self._hungry.pop(replica, None)
        lost = [part for number in state.leases for part in self._leases.pop(number).lease.parts]
        ended = []
        for part in filter(self.ledger.is_open, lost):
            charged = state.alone and loss is not Loss.PREEMPTED
            again = replace(part, attempt=part.attempt + 1, deaths=part.deaths + charged)
            if again.deaths < self._policy.max_attempts:
                self.ledger.open(again)
                self._suspects.append(again)
            else:
                self._fail(part, self._killer(loss, detail))
                ended.append(part.slide.number)
        return ended

    def _a_suspect_waits(self) -> bool:
        while self._suspects and not self.ledger.is_open(self._suspects[0]):
            self._suspects.popleft()  # its slide has failed meanwhile
        return bool(self._suspects)

    def _lease(
        self, replica: int, state: _ReplicaState, parts: Sequence[Part], now: float
    ) -> Lease:
        lease = Lease(next(self._numbers), tuple(parts))
        if not state.leases:
            state.counting_since, state.counted_tiles, state.last_sign = now, 0, now
        state.leases.add(lease.number)
        state.leased_tiles += lease.tiles
        if state.alone or len(state.leases) >= self._policy.in_flight:
            self._hungry.pop(replica, None)
        self._leases[lease.number] = _OpenLease(lease, replica)
        for part in parts:
            account = self.ledger.accounts[part.slide.number]
            if account.first_leased is None:
                account.first_leased = now
        return lease

    def _settle(self, outcome: PartOutcome, now: float) -> bool:
        """Count, retry or fail an open part's outcome; True where the slide ended."""
        part, failure = outcome.part, outcome.failure
        if failure is None:
            ended = self.ledger.count(outcome)
            self._ended += ended
            return ended
        again = replace(part, attempt=part.attempt + 1, errors=part.errors + 1)
        if failure.reason is Reason.READ_ERROR and again.errors < self._policy.max_attempts:
            not_before = now + self._policy.backoff_seconds * 2**part.errors
            self.ledger.open(again)
            heapq.heappush(self._retries, _Retry(not_before, next(self._numbers), again))
            return False
        self._fail(part, failure)
        return True

    def _killer(self, loss: Loss, detail: str) -> Failure:
        count = self._policy.max_attempts
        if loss is Loss.HUNG:
            return Failure(
                Reason.TIMEOUT,
                f"{count} replicas hung with nothing but this slide on them, for "
                f"{self._policy.patience_seconds:.0f} s each without classifying a tile. Look "
                "at the slide's files, then let `cvm-batch retry` try again.",
            )
        return Failure(
            Reason.REPLICA_LOST,
            f"{count} replicas died with nothing but this slide on them; the last one: "
            f"{detail}. Look at the slide's files; a further submit tries again.",
        )

    def _fail(self, part: Part, failure: Failure) -> None:
        number = part.slide.number
        self.ledger.fail(number, failure)
        self.backlog.drop(number)
        self._ended += 1

    def _take(self, tiles: int, now: float) -> list[Part]:
        """Parts for a lease of about ``tiles``: retries that are due, then fresh ones."""
        parts: list[Part] = []
        while tiles > 0 and len(parts) < self._policy.max_parts:
            part = self._due_retry(now) or self.backlog.cut(tiles, lambda n: self._fits(n, now))
            if part is None:
                break
            self.ledger.open(part)
            parts.append(part)
            tiles -= len(part)
        return parts

    def _due_retry(self, now: float) -> Part | None:
        while self._retries and self._retries[0].not_before <= now:
            part = heapq.heappop(self._retries).part
            if self.ledger.is_open(part):
                return part
        return None

    def _lease_tiles(self, state: _ReplicaState, now: float) -> int:
        """Whole batches for ``lease_seconds``; fewer near the end, so that none idles long,
        and none that would run past ``until``."""
        batch = self._policy.batch_size
        speed = state.tiles_per_second
        wanted = 4 * batch if speed is None else speed * self._policy.lease_seconds
        fair = self.backlog.tiles / (len(self._replicas) * self._policy.in_flight)
        tiles = max(1, round(min(wanted, fair) / batch)) * batch
        if self.until is None:
            return tiles
        if speed is None:
            return tiles if now + 2 * self._policy.lease_seconds < self.until else 0
        return min(tiles, int((self.until - now) * speed) - state.leased_tiles)

    def _fits(self, tiles: int, now: float) -> bool:
        """Whether a slide of that size, begun now, would end before ``until``."""
        if self.until is None:
            return True
        states = self._replicas.values()
        known = [state.tiles_per_second for state in states if state.tiles_per_second]
        if not known:
            return True
        speed = sum(known) / len(known) * len(states)
        leased = sum(state.leased_tiles for state in states)
        return leased + tiles <= speed * (self.until - now)

    def _learn_speed(self, state: _ReplicaState, tiles: int, now: float) -> None:
        # Over half a lease's time at least: two answers may arrive in one moment.
        state.counted_tiles += tiles
        elapsed = now - state.counting_since
        if elapsed >= self._policy.lease_seconds / 2:
            state.tiles_per_second = state.counted_tiles / elapsed
            state.counting_since, state.counted_tiles = now, 0
