"""A cluster that exists in virtual time: replicas that die, hang, stall and answer late.

Everything follows from a seed, so that a failure is repeated by its number. The truth is
known: the class of tile ``i`` of slide ``s`` is ``(s + i) % CLASSES``, so that a tile that is
lost or counted twice shows in the counts.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cvm_batch.errors import Reason
from cvm_batch.screening.executor import (
    Event,
    Hardware,
    LeaseDone,
    ReplicaLost,
    ReplicaProgress,
    ReplicaReady,
)
from cvm_batch.screening.work import (
    Failure,
    Lease,
    Loss,
    Part,
    PartOutcome,
    ReplicaInfo,
    ReplicaSpec,
)

CLASSES = 11


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How often things go wrong; chances are per lease, unless said otherwise."""

    death: float = 0.0
    preemption: float = 0.0
    stall: float = 0.0
    """The replica hangs for good."""
    slow: float = 0.0
    """The answer takes up to ten times as long, and progress is told meanwhile."""
    late: float = 0.0
    """After its replica is lost, the answer arrives all the same."""
    duplicate: float = 0.0
    read_error: float = 0.0
    """Per part: passes."""
    failed_start: float = 0.0
    """Per replica."""
    node_loss: float = 0.0
    """All replicas of the node are lost at once, and nobody says that it was taken away."""
    stuck: float = 0.0
    """The lease is never answered, while its replica goes on with others."""
    slow_start: float = 0.0
    """Per replica: its first lease takes minutes longer, in which it hashes and copies."""
    sick: float = 0.0
    """Per node: whatever is read there fails at once, for ten minutes or for good."""


@dataclass(frozen=True, kw_only=True)
class Night:
    """What is to be done, by whom, in what weather."""

    tiles: Sequence[int]
    replicas: int
    tiles_per_second: float = 100.0
    weather: Weather = field(default_factory=Weather)
    broken: frozenset[int] = frozenset()
    """Slides with a lasting error."""
    killers: frozenset[int] = frozenset()
    """Slides that kill whoever reads them."""
    hangers: frozenset[int] = frozenset()
    """Slides whose decoding never ends."""
    node_killers: frozenset[int] = frozenset()
    """Slides that take the node of whoever reads them down."""
    sick_nodes: frozenset[int] = frozenset()
    """Nodes that cannot read, all night long."""
    outage: tuple[float, float] = (0.0, 0.0)
    """Seconds of the night in which nobody can read."""
    per_node: int = 4
    """Replicas on one node."""
    numbers: Sequence[int] = ()
    """The slides' own numbers, where a driver has only some of them left."""

    def number(self, slide: int) -> int:
        return self.numbers[slide] if self.numbers else slide


class VirtualClock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def now(self) -> float:
        return self.time


class DriverKilled(BaseException):
    """SIGKILL, as far as the driver can tell."""


@dataclass
class _Replica:
    speed: float
    busy_until: float
    node: str
    slow_start: bool = False
    held: list[Lease] = field(default_factory=list)
    done: int = 0
    hanging: bool = False


@dataclass(frozen=True)
class _NodeGone:
    """A node goes away under what one of its replicas reads."""

    reader: int
    node: str


class SimulatedExecutor:
    """An `Executor` in virtual time."""

    name = "simulated"

    def __init__(self, night: Night, clock: VirtualClock, seed: int) -> None:
        self._night = night
        self._clock = clock
        self._random = random.Random(seed)
        self._replicas: dict[int, _Replica] = {}
        self._on_node: dict[str, dict[int, _Replica]] = defaultdict(dict)
        self._events: list[tuple[float, int, Event | _NodeGone]] = []
        self._order = itertools.count()
        self._numbers = itertools.count()
        self._lost: set[int] = set()
        self._ended: set[int] = set()
        self._began = clock.time
        self._sick_until: dict[str, float] = {}
        self.events = 0
        self.happenings = 0
        """Leases handed out and events told: while it stands still, so do the books."""
        self.kill_driver_at: int | None = None
        """Number of the event before which the driver dies."""
        self.deaths_alone: Counter[int] = Counter()
        """By slide: replicas that died or hung with nothing else on them, and nodes that went
        away with nothing else on them."""
        self.nodes_lost = 0
        self._alone_on: dict[str, tuple[float, bool]] = {}
        """By node that went away: when, and whether all that ran on it was one part."""
        self.read_errors: Counter[tuple[int, int]] = Counter()
        """By slide and start of the part."""
        self.classified: Counter[int] = Counter()
        """Tiles whose answers were delivered, by slide; above its size where work was repeated."""
        self.closed = False

    def hardware(self) -> Hardware:
        return Hardware("cpu", self._night.replicas)

    def prepare(self) -> None:
        pass

    def start(self, spec: ReplicaSpec) -> None:
        for _ in range(self._night.replicas):
            self._start_replica(delay=self._random.uniform(1, 20))

    def submit(self, replica: int, lease: Lease) -> None:
        assert not self.closed
        assert replica not in self._ended, "a lease for a replica that was ended"
        state = self._replicas[replica]
        assert len(state.held) < 2, "more than two leases in flight"
        assert lease.parts, "an empty lease"
        assert all(len(part) > 0 for part in lease.parts), "an empty part"
        self.happenings += 1
        self._check_who_runs_beside(state.node, lease)
        state.held.append(lease)
        if not state.hanging:
            self._run(replica, state, lease)

    def _check_who_runs_beside(self, node: str, lease: Lease) -> None:
        there = [
            part
            for beside in self._on_node[node].values()
            for held in beside.held
            for part in held.parts
        ]
        together = [*there, *lease.parts]
        lonely = [part for part in together if part.nodes >= 2]
        assert not lonely or len(together) == 1, f"{lonely} must have {node} to themselves"

    def wait(self, timeout: float) -> list[Event]:
        self.events += 1
        if self.kill_driver_at is not None and self.events >= self.kill_driver_at:
            raise DriverKilled
        limit = self._clock.time + timeout
        if not self._events or self._events[0][0] > limit:
            self._clock.time = limit
            return []
        now = max(self._clock.time, self._events[0][0])
        self._clock.time = now
        found = []
        while self._events and self._events[0][0] <= now:
            _, _, event = heapq.heappop(self._events)
            found += filter(self._happens, self._told(event))
        self.happenings += len(found)
        return found

    def end(self, replica: int, detail: str) -> None:
        assert self._replicas[replica].held, "an idle replica was ended"
        self._lose(replica, Loss.HUNG)
        self._ended.add(replica)
        self._later(self._clock.time, ReplicaLost(replica, detail, Loss.HUNG))

    def close(self) -> None:
        self.closed = True

    def _start_replica(self, *, delay: float) -> None:
        number = next(self._numbers)
        at = self._clock.time + delay
        if self._random.random() < self._night.weather.failed_start:
            self._later(at, ReplicaLost(number, "did not come up"))
            return
        speed = self._night.tiles_per_second * self._random.uniform(0.5, 2)
        slow = self._random.random() < self._night.weather.slow_start
        self._replicas[number] = state = _Replica(speed, at, self._node(number), slow)
        self._on_node[state.node][number] = state
        info = ReplicaInfo(
            device="simulated",
            precision="fp32",
            backend="simulated",
            batch_size=8,
            lanes=2,
            sentinel_difference=0.0,
            versions={},
            node=state.node,
        )
        self._later(at, ReplicaReady(number, info))

    def _node(self, replica: int) -> str:
        place = replica % max(1, self._night.replicas // self._night.per_node)
        node = f"node-{place}"
        if node not in self._sick_until:
            ill = self._random.random() < self._night.weather.sick
            seconds = self._random.choice([600.0, math.inf]) if ill else 0.0
            seconds = math.inf if place in self._night.sick_nodes else seconds
            self._sick_until[node] = self._clock.time + seconds
        return node

    def _cannot_read(self, node: str, at: float) -> bool:
        begins, ends = self._night.outage
        return at < self._sick_until[node] or begins <= at - self._began < ends

    def _run(self, replica: int, state: _Replica, lease: Lease) -> None:
        """Decide what becomes of a lease, and when."""
        weather, chance = self._night.weather, self._random.random
        started = max(self._clock.time, state.busy_until)
        seconds = lease.tiles / state.speed
        slides = {part.slide.number for part in lease.parts}
        if slides & self._night.hangers or chance() < weather.stall:
            state.hanging = True
            return
        if self._cannot_read(state.node, started):
            self._fails_fast(replica, state, lease, started)
            return
        if slides & self._night.node_killers or chance() < weather.node_loss:
            self._later(started + seconds * chance(), _NodeGone(replica, state.node))
            return
        if chance() < weather.stuck:
            return
        if slides & self._night.killers or chance() < weather.death:
            self._later(started + seconds * chance(), ReplicaLost(replica, "killed"))
            return
        if chance() < weather.preemption:
            at = started + seconds * chance()
            self._later(at, ReplicaLost(replica, "node gone", Loss.PREEMPTED))
            return
        if chance() < weather.slow:
            seconds *= self._random.uniform(2, 10)
            for step in range(1, int(seconds // 30) + 1):
                share = int(lease.tiles * 30 * step / seconds)
                told = ReplicaProgress(replica, state.done + share)
                self._later(started + 30 * step, told)
        if state.slow_start:
            state.slow_start = False
            extra = self._random.uniform(60, 600)
            for second in range(20, int(extra), 20):
                self._later(started + second, ReplicaProgress(replica, state.done, second))
            seconds += extra
        state.busy_until = started + seconds
        state.done += lease.tiles
        answer = LeaseDone(replica, lease.number, [self._outcome(part) for part in lease.parts])
        self._later(state.busy_until, answer)
        if chance() < weather.duplicate:
            self._later(state.busy_until + self._random.uniform(0, 60), answer)

    def _fails_fast(self, replica: int, state: _Replica, lease: Lease, started: float) -> None:
        state.busy_until = started + 0.001 * len(lease.parts)
        failure = Failure(Reason.READ_ERROR, "transport endpoint is not connected")
        for part in lease.parts:
            self.read_errors[part.slide.number, part.start] += 1
        outcomes = [PartOutcome(part=part, failure=failure) for part in lease.parts]
        self._later(state.busy_until, LeaseDone(replica, lease.number, outcomes))

    def _outcome(self, part: Part) -> PartOutcome:
        slide = part.slide.number
        if slide in self._night.broken:
            return PartOutcome(part=part, failure=Failure(Reason.BAD_FORMAT, "broken"))
        if self._random.random() < self._night.weather.read_error:
            self.read_errors[slide, part.start] += 1
            return PartOutcome(part=part, failure=Failure(Reason.READ_ERROR, "reset"))
        return PartOutcome(
            part=part,
            class_counts=counts(self._night.number(slide), part.start, part.stop),
            classified=len(part),
            cells_file=f"{slide}-{part.start}-{part.attempt}",
        )

    def _happens(self, event: Event) -> bool:
        """Keep the world's books; False for what the driver never hears of."""
        match event:
            case LeaseDone(replica, number, outcomes):
                state = self._replicas.get(replica)
                if state is None:
                    # The replica is gone: a network that still delivers is the exception.
                    return self._random.random() < self._night.weather.late
                held = [lease for lease in state.held if lease.number == number]
                if held:
                    state.held.remove(held[0])
                    for outcome in outcomes:
                        self.classified[outcome.part.slide.number] += outcome.classified
                return True
            case ReplicaLost(replica, _, loss):
                if replica in self._replicas:
                    self._lose(replica, loss)
                    return True
                if replica in self._lost:
                    told = replica in self._ended
                    self._ended.discard(replica)
                    return told
                self._start_replica(delay=5.0)
                return True
            case _:
                return event.replica in self._replicas

    def _lose(self, replica: int, loss: Loss) -> None:
        state = self._replicas.pop(replica)
        del self._on_node[state.node][replica]
        self._lost.add(replica)
        parts = [part for lease in state.held for part in lease.parts]
        alone = len(parts) == 1
        if loss is Loss.NODE_LOST:
            alone = self._had_its_node(state) and alone
        if loss is not Loss.PREEMPTED and alone:
            self.deaths_alone[parts[0].slide.number] += 1
        self._start_replica(delay=self._random.uniform(1, 30))

    def _had_its_node(self, lost: _Replica) -> bool:
        """Whether all that ran on a node was one part, when the first of its replicas went."""
        now = self._clock.time
        if self._alone_on.get(lost.node, (0.0, False))[0] != now:
            there = [lost, *self._on_node[lost.node].values()]
            parts = sum(len(lease.parts) for replica in there for lease in replica.held)
            self._alone_on[lost.node] = now, parts == 1
            self.nodes_lost += 1
        return self._alone_on[lost.node][1]

    def _told(self, event: Event | _NodeGone) -> list[Event]:
        """What the driver is told: of a node, that all its replicas are lost."""
        if not isinstance(event, _NodeGone):
            return [event]
        if event.reader not in self._replicas:
            return []  # it was lost before it came to that
        gone = list(self._on_node[event.node])
        return [ReplicaLost(each, "no answer", Loss.NODE_LOST) for each in gone]

    def _later(self, at: float, event: Event | _NodeGone) -> None:
        heapq.heappush(self._events, (at, next(self._order), event))


def counts(slide: int, start: int, stop: int) -> tuple[int, ...]:
    """True class counts of the tiles [start, stop) of a slide."""
    full, rest = divmod(stop - start, CLASSES)
    found = np.full(CLASSES, full)
    found[(slide + start + np.arange(rest)) % CLASSES] += 1
    return tuple(found.tolist())
