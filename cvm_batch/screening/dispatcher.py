"""The dispatcher: which replica gets which parts next. Pure: the caller brings the time.

A lease is a few seconds of work by the replica's measured speed, over one or many slides;
a giant slide is shared out over all replicas. What fails for a passing reason is tried
again, elsewhere where it can be; after a death the suspects run alone, so that no slide is
charged for its neighbour.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from cvm_batch.errors import Reason
from cvm_batch.screening.backlog import Backlog
from cvm_batch.screening.blame import after_loss, risks_its_node, runs_alone, suspected, verdict
from cvm_batch.screening.ledger import Ledger
from cvm_batch.screening.policy import LeasePolicy
from cvm_batch.screening.serving import Serving, Speeds
from cvm_batch.screening.suspects import Suspects, Wait
from cvm_batch.screening.trust import Standing, Trust
from cvm_batch.screening.waiting import PartQueue, Waiting, most_urgent
from cvm_batch.screening.work import Failure, Lease, Loss, Part, PartOutcome, SlideSource

#: Parts at the head of the queue that may not suit a replica, until it is given fresh ones.
_MOST_SKIPPED = 64
#: Replicas together so much faster than when a slide was set aside: it may fit now.
_FASTER = 1.1


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
        self._replicas: dict[int, Serving] = {}
        self._trust = Trust(policy)
        self._speeds = Speeds()
        # In the order in which they became so: as a set, but the same in every run.
        self._hungry: dict[int, None] = {}
        self._leases: dict[int, _OpenLease] = {}
        self._leased_tiles = self._running_tiles = 0
        self._priorities: list[int] = []
        self._retries: list[_Retry] = []
        # Retries that have waited long enough, and what was lost through no fault of its own.
        self._due = PartQueue(self.ledger, self._priorities)
        self._suspects = Suspects(policy, self.ledger, self._priorities, self._trust)
        self._slow_when_aside: float | None = None
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
        return self.idle and not self._anything_waits()

    def add_slide(self, slide: SlideSource, tiles: int, priority: int = 0) -> None:
        """``slide.number`` counts from 0, one by one."""
        self.ledger.add(tiles)
        assert slide.number == len(self.ledger.accounts) - 1
        self._priorities.append(priority)
        self.backlog.add(slide, tiles, priority)

    def set_priority(self, number: int, priority: int) -> None:
        """What is not yet handed out of that slide goes earlier or later."""
        self._priorities[number] = priority
        self.backlog.set_priority(number, priority)
        self.reconsider()
        self._due.resort()
        self._suspects.resort()

    def reconsider(self) -> None:
        """Take up what was set aside because it would not end before ``until``."""
        self._slow_when_aside = None
        self.backlog.reconsider()

    def add_replica(self, replica: int, now: float = 0.0, node: str = "") -> None:
        """``node``: the machine that it runs on."""
        self._replicas[replica] = state = Serving(last_sign=now)
        self._trust.add(replica, node)
        self._suspects.add(replica, state)
        self.reconsider()
        self._hungry[replica] = None

    @property
    def tiles_done(self) -> int:
        """Accounted for, and of running leases as far as replicas have told."""
        return self.ledger.tiles_accounted + self._running_tiles

    def hungry(self) -> list[int]:
        """Replicas that could take another lease, where there is anything to hand out."""
        return list(self._hungry) if self._anything_waits() else []

    def next_lease(self, replica: int, now: float) -> Lease | None:
        """A lease for this replica, or None where it has enough or nothing waits for it."""
        state = self._replicas[replica]
        if state.alone or state.retired or len(state.held) >= self._policy.in_flight:
            return None
        standing = self._trust.standing(replica, now)
        limit = self._limit(state, now)
        if standing is Standing.SUSPENDED or limit <= 0 or self._suspects.bars(replica):
            self._suspects.release(replica)
            return None
        self._wake_retries(now)
        if standing is Standing.PROBE:
            parts = [] if state.held else self._probe(replica, state, limit, now)
        else:
            suspect = self._suspects.next_for(replica, limit, self._urgency())
            if suspect is None:
                parts = self._take(replica, self._lease_tiles(state), limit, now)
            else:
                parts = self._alone(state, suspect)
        return self._lease(replica, state, parts, now) if parts else None

    def lease_done(self, number: int, outcomes: Sequence[PartOutcome], now: float) -> list[int]:
        """Take a lease's outcomes; return the numbers of the slides that ended by them.

        Answers to leases that were given up meanwhile, and to superseded attempts, are
        ignored.
        """
        opened = self._leases.pop(number, None)
        if opened is None:
            return []
        replica, state = opened.replica, self._replicas[opened.replica]
        counted = sum(len(outcome.part) for outcome in outcomes if outcome.failure is None)
        # Failures come fast, from a replica that cannot read: that is no speed.
        with self._counting(state):
            state.answer(opened.lease, counted, now, self._policy.lease_seconds / 2)
        self._leased_tiles -= opened.lease.tiles
        if state.settled and state.tiles_per_second:
            self._speeds.note(replica, state.tiles_per_second)
        if not state.retired:
            self._hungry[replica] = None
        self._trust.judge(replica, outcomes, now)
        if replica not in self._trust.usable:
            self._suspects.release(replica)
        if self._slow_when_aside is not None and self._speed() > _FASTER * self._slow_when_aside:
            self.reconsider()
        return [
            outcome.part.slide.number
            for outcome in outcomes
            if self.ledger.is_open(outcome.part) and self._settle(outcome, replica, now)
        ]

    def note_progress(self, replica: int, tiles: int, now: float, signs: int = 0) -> None:
        """``tiles``: what the replica is done with since it began to serve. ``signs``: a number
        that grows with whatever else it gets done."""
        state = self._replicas.get(replica)
        if state is not None:
            with self._counting(state):
                state.tell(tiles, signs, now)

    def overdue(self, now: float) -> list[int]:
        """Replicas that hold leases and have shown no sign of work on them for too long."""
        patience = self._policy.patience_seconds
        return [replica for replica, state in self._replicas.items() if state.hangs(now, patience)]

    def excuse(self, seconds: float) -> None:
        """No replica was listened to for so long."""
        for state in self._replicas.values():
            state.excuse(seconds)

    def retire(self, replica: int) -> None:
        """Hand it nothing more: it is being ended, and `replica_lost` follows."""
        self._replicas[replica].retired = True
        self._hungry.pop(replica, None)
        if not self._replicas[replica].alone:  # else its node is kept until it is gone
            self._suspects.release(replica)

    def newly_suspended(self) -> list[tuple[int, float]]:
        """Replicas that failed all, since the last call, and how many seconds each rests."""
        return self._trust.newly_suspended()

    def replica_lost(self, replica: int, loss: Loss, detail: str, now: float) -> list[int]:
        """Give up the replica's leases; return the numbers of the slides that ended by that.

        Each of their parts is tried again alone, since one of them may have killed it. Only
        a part that was alone already is charged for a death. What was preempted is suspected
        of nothing; neither is what was lost with its node, the first time.
        """
        state = self._replicas.pop(replica)
        self._suspects.remove(replica)
        self._trust.remove(replica)
        self._speeds.drop(replica)
        self._hungry.pop(replica, None)
        self._leased_tiles -= state.leased_tiles
        self._running_tiles -= state.tiles_running
        lost = [part for number in state.held for part in self._leases.pop(number).lease.parts]
        ended = []
        for part in filter(self.ledger.is_open, lost):
            again = after_loss(part, loss, alone=state.alone)
            failure = verdict(again, loss, detail, self._policy, alone=state.alone)
            if failure is not None:
                self._fail(part, failure)
                ended.append(part.slide.number)
                continue
            self.ledger.open(again)
            if risks_its_node(again):
                self.backlog.hold(again.slide.number)
            doubted = suspected(again, loss, alone=state.alone)
            (self._suspects if doubted else self._due).push(again)
        return ended

    def _anything_waits(self) -> bool:
        return bool(self.backlog or self._retries or self._due or self._suspects)

    def _lease(self, replica: int, state: Serving, parts: Sequence[Part], now: float) -> Lease:
        lease = Lease(next(self._numbers), tuple(parts))
        with self._counting(state):
            state.take(lease, now)
        self._leased_tiles += lease.tiles
        if state.alone or len(state.held) >= self._policy.in_flight:
            del self._hungry[replica]
        self._leases[lease.number] = _OpenLease(lease, replica)
        for part in parts:
            self.ledger.open(part)
            account = self.ledger.accounts[part.slide.number]
            if account.first_leased is None:
                account.first_leased = now
        return lease

    @contextmanager
    def _counting(self, state: Serving) -> Iterator[None]:
        """Keep count of running tiles while the state changes: to ask all replicas costs more."""
        before = state.tiles_running
        yield
        self._running_tiles += state.tiles_running - before

    def _settle(self, outcome: PartOutcome, replica: int, now: float) -> bool:
        """Count, retry or fail an open part's outcome; True where the slide ended."""
        part, failure = outcome.part, outcome.failure
        if failure is None:
            ended = self.ledger.count(outcome)
            self._ended += ended
            if risks_its_node(part):
                self._let_go(part.slide.number)
            return ended
        again = replace(
            part,
            attempt=part.attempt + 1,
            errors=part.errors + 1,
            failed_on=(*part.failed_on, replica),
        )
        if self._may_pass(again, failure):
            not_before = now + self._policy.backoff_seconds * 2**part.errors
            self.ledger.open(again)
            heapq.heappush(self._retries, _Retry(not_before, next(self._numbers), again))
            return False
        self._fail(part, failure)
        return True

    def _may_pass(self, again: Part, failure: Failure) -> bool:
        if again.errors >= self._policy.max_attempts:
            return False
        if failure.reason is Reason.INPUT_CHANGED:
            # So it looks where a mount is gone under an open archive: another node knows.
            return again.errors == 1 and self._trust.another_node(again)
        return failure.reason is Reason.READ_ERROR

    def _let_go(self, number: int) -> None:
        """A part that risked its node came to something: the slide goes on, unless another does."""
        if not any(map(risks_its_node, self.ledger.accounts[number].open.values())):
            self.backlog.let_go(number)

    def _fail(self, part: Part, failure: Failure) -> None:
        number = part.slide.number
        self.ledger.fail(number, failure)
        self.backlog.drop(number)
        self._suspects.resort()
        self._ended += 1

    def _urgency(self) -> int | None:
        """The highest priority of what waits and is no suspect; None where nothing does."""
        return most_urgent(self._due.urgency, self.backlog.urgency)

    def _alone(self, state: Serving, suspect: Part | Wait | None) -> list[Part]:
        if not isinstance(suspect, Part):
            return []
        state.alone = True
        return [suspect]

    def _probe(self, replica: int, state: Serving, limit: float, now: float) -> list[Part]:
        """One part for a replica in doubt: a fresh one by choice, which has its attempts left."""
        fresh = self._fresh(min(self._policy.batch_size, limit), now)
        skipped: list[Waiting] = []
        part = fresh or self._due_part(replica, limit, skipped)
        self._due.put_back(skipped)
        if part is None:
            parts = self._alone(state, self._suspects.next_for(replica, limit, self._urgency()))
        else:
            self._suspects.release(replica)
            parts = [part]
        if parts:
            self._trust.probes(replica)
        return parts

    def _take(self, replica: int, room: int, limit: float, now: float) -> list[Part]:
        """Parts for a lease of about ``room`` tiles, ``limit`` at most: such as have been tried
        before, then fresh ones, the more urgent first."""
        parts: list[Part] = []
        skipped: list[Waiting] = []
        fresh: Part | None = None
        while room > 0 and limit > 0 and len(parts) < self._policy.max_parts:
            part = self._due_part(replica, limit, skipped)
            # The room beside a slide that was cut between chunks would cut the next one.
            if part is None and not (fresh and self.backlog.goes_on_after(fresh)):
                part = fresh = self._fresh(min(room, limit), now)
            if part is None:
                break
            parts.append(part)
            room -= len(part)
            limit -= len(part)
        self._due.put_back(skipped)
        return parts

    def _fresh(self, room: float, now: float) -> Part | None:
        return self.backlog.cut(int(room), lambda tiles: self._fits(tiles, now))

    def _due_part(self, replica: int, limit: float, skipped: list[Waiting]) -> Part | None:
        while len(skipped) < _MOST_SKIPPED and (due := self._due.first()) is not None:
            urgency = self.backlog.urgency
            if urgency is not None and urgency > self._priorities[due.slide.number]:
                return None
            waiting = self._due.pop()
            if len(due) <= limit and not self._trust.elsewhere(due, replica):
                return due
            skipped.append(waiting)
        return None

    def _wake_retries(self, now: float) -> None:
        while self._retries and self._retries[0].not_before <= now:
            part = heapq.heappop(self._retries).part
            (self._suspects if runs_alone(part) else self._due).push(part)

    def _lease_tiles(self, state: Serving) -> int:
        """Whole batches for ``lease_seconds``; fewer near the end, so that none idles long."""
        batch = self._policy.batch_size
        if (speed := state.tiles_per_second) is not None:
            wanted = speed * self._policy.lease_seconds
        else:  # as much again as it has done, in less time than a measure takes
            wanted = max(4 * batch, state.counted)
        fair = self.backlog.tiles / (len(self._replicas) * self._policy.in_flight)
        return max(1, round(min(wanted, fair) / batch)) * batch

    def _limit(self, state: Serving, now: float) -> float:
        """Tiles that the replica can take and still be idle at ``until``."""
        if self.until is None:
            return math.inf
        if state.tiles_per_second is None:
            return math.inf if now + 2 * self._policy.lease_seconds < self.until else 0
        return int((self.until - now) * state.tiles_per_second) - state.leased_tiles

    def _fits(self, tiles: int, now: float) -> bool:
        """Whether a slide of that size, begun now, would end before ``until``."""
        if self.until is None or self._speeds.mean is None or not self._trust.usable:
            return True  # where all replicas rest, nobody knows when they go on
        speed = self._speed()
        if self._leased_tiles + tiles <= speed * (self.until - now):
            return True
        self._slow_when_aside = min(speed, self._slow_when_aside or speed)
        return False

    def _speed(self) -> float:
        """Of all replicas together, as far as they have been measured and are usable."""
        return (self._speeds.mean or 0.0) * len(self._trust.usable)
