"""Plays a night from its first lease to its last row, driver restarts included, and judges it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import ExpectedFrom, SlideInfo
from cvm_batch.errors import Reason
from cvm_batch.model.bundle import Bundle
from cvm_batch.results.schemas import Status
from cvm_batch.results.slides import SlideRow
from cvm_batch.screening.clock import Clock
from cvm_batch.screening.commits import Commits
from cvm_batch.screening.dispatcher import Dispatcher
from cvm_batch.screening.driver import Driver
from cvm_batch.screening.executor import Executor
from cvm_batch.screening.plan import Plan, PlannedSlide
from cvm_batch.screening.summary import Progress
from cvm_batch.screening.wishes import Prioritise, TakeFurther, Wish
from cvm_batch.screening.work import ReplicaSpec
from tests.simulation.world import (
    CLASSES,
    DriverKilled,
    Night,
    SimulatedExecutor,
    VirtualClock,
    counts,
)

#: More than the largest simulated night needs: past it, a run is stuck.
_MOST_EVENTS = 2_000_000
_STUCK_SECONDS = 30 * 86_400

BUNDLE = cast(
    Bundle,
    SimpleNamespace(
        digest="simulated",
        spec=SimpleNamespace(
            name="simulated",
            class_names=tuple(f"class-{n}" for n in range(CLASSES)),
            groups={},
            primary_group=None,
        ),
    ),
)
SPEC = cast(ReplicaSpec, SimpleNamespace(run=SimpleNamespace(run_id="run"), precision="fp32"))


@dataclass
class SimulatedCommits(Commits):
    """Rows in memory. What was not flushed is lost with its driver."""

    visible: list[SlideRow]
    waiting: list[SlideRow] = field(default_factory=list)
    by_status: Counter[Status] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.not_complete = []
        self.classified = self.unreadable = 0

    def add(self, row: SlideRow, now: float) -> None:
        self.waiting.append(row)
        self.by_status[row.status] += 1

    def flush_if_due(self, now: float) -> None:
        if len(self.waiting) >= 5:
            self.flush()

    def flush(self) -> None:
        self.visible += self.waiting
        self.waiting.clear()


@dataclass
class Played:
    """How a night went."""

    rows: list[SlideRow]
    seconds: float
    """In virtual time."""
    events: int
    drivers: int
    classified: Counter[int]
    left: int
    nodes_lost: int


def play(
    night: Night,
    seed: int,
    *,
    driver_kills: int = 0,
    hours: float | None = None,
    late: int = 0,
    checked: bool = True,
) -> Played:
    """Raises AssertionError where an invariant is broken; the message names the seed.

    ``late``: slides of which the driver hears while it runs, and as many that become urgent.
    ``checked``: look at every slide's account after every step, which costs.
    """
    try:
        return _play(night, seed, driver_kills, hours, late, checked)
    except AssertionError as error:
        raise AssertionError(f"seed {seed} of {night}: {error}") from error


def _play(
    night: Night, seed: int, driver_kills: int, hours: float | None, late: int, checked: bool
) -> Played:
    luck = random.Random(seed)
    clock = VirtualClock()
    began = clock.now()
    visible: list[SlideRow] = []
    classified: Counter[int] = Counter()
    deaths_alone: Counter[int] = Counter()
    failed_reads: set[int] = set()
    events = drivers = nodes_lost = 0
    until = began + hours * 3600 if hours is not None else None
    while True:
        done = {row.slide_id for row in visible}
        numbers = [n for n in range(len(night.tiles)) if _name(n) not in done]
        world = SimulatedExecutor(_left(night, numbers), clock, luck.randrange(2**32))
        if drivers < driver_kills:
            world.kill_driver_at = luck.randint(1, 300)
        drivers += 1
        commits = SimulatedCommits(visible)
        known = len(numbers) - min(late, len(numbers) - 1)
        asked = _Wishes(numbers[:known], plan_of(night, numbers[known:]), luck)
        driver = Driver(
            plan_of(night, numbers[:known]),
            BUNDLE,
            SPEC,
            cast(Executor, world),
            commits,
            cast(Clock, clock),
            until=until,
        )
        watch = _Watch(driver, world, clock, began, checked)
        try:
            driver.drive(watch, lambda: False, asked)
        except DriverKilled:
            continue
        finally:
            events += world.events
            nodes_lost += world.nodes_lost
            for slide, tiles in world.classified.items():
                classified[numbers[slide]] += tiles
            for slide, deaths in world.deaths_alone.items():
                deaths_alone[numbers[slide]] += deaths
            failed_reads |= {numbers[slide] for (slide, _), n in world.read_errors.items() if n > 2}
        commits.flush()
        if asked.all_told or hours is not None:
            break
        late = 0  # what the run did not hear of is for the next submit
    played = Played(visible, clock.now() - began, events, drivers, classified, 0, nodes_lost)
    played.left = len(night.tiles) - len(visible)
    _judge(night, played, deaths_alone, failed_reads, deadline=hours is not None)
    return played


class _Wishes:
    """Further slides, and slides that become urgent, at moments that nobody foresees."""

    def __init__(self, known: list[int], further: Plan, luck: random.Random) -> None:
        self._known = known
        self._further = further
        self._luck = luck
        self._left = len(further.slides)
        self.all_told = not further.slides

    def __call__(self) -> list[Wish]:
        wishes: list[Wish] = []
        if self._left and self._luck.random() < 0.1:
            self._left -= 1
            slide = _name(self._luck.choice(self._known))
            wishes.append(Prioritise(slide, self._luck.randint(-1, 3)))
        if not self.all_told and self._luck.random() < 0.1:
            self.all_told = True
            wishes.append(TakeFurther(self._further))
        return wishes


class _Watch:
    """Looks at the books after every step of the driver."""

    def __init__(
        self,
        driver: Driver,
        world: SimulatedExecutor,
        clock: VirtualClock,
        began: float,
        checked: bool,
    ) -> None:
        self._driver = driver
        self._world = world
        self._clock = clock
        self._began = began
        self._checked = checked
        self._seen = 0

    def __call__(self, _: Progress) -> None:
        assert self._world.events < _MOST_EVENTS, "the run does not come to its end"
        assert self._clock.now() - self._began < _STUCK_SECONDS, "the run is stuck"
        dispatcher = self._driver.dispatcher
        if dispatcher is not None and self._checked and self._seen != self._world.happenings:
            self._seen = self._world.happenings
            check_books(dispatcher)


def check_books(dispatcher: Dispatcher) -> None:
    """Every tile of every open slide is in exactly one place."""
    total = 0
    for number, account in enumerate(dispatcher.ledger.accounts):
        total += account.tiles if account.failure else account.accounted
        assert account.accounted <= account.tiles
        if account.finished:
            continue
        pieces = [(part.start, part.stop) for part in account.open.values()]
        pieces += [(outcome.part.start, outcome.part.stop) for outcome in account.counted]
        pieces.sort()
        assert all(a[1] == b[0] for a, b in pairwise(pieces)), f"slide {number}: {pieces}"
        assert not pieces or pieces[0][0] == 0, f"slide {number}: {pieces}"
        handed_out = pieces[-1][1] if pieces else 0
        assert handed_out + dispatcher.backlog.left(number) == account.tiles, f"slide {number}"
    assert total == dispatcher.ledger.tiles_accounted
    running = sum(state.tiles_running for state in dispatcher._replicas.values())
    assert dispatcher.tiles_done == total + running


def _judge(
    night: Night,
    played: Played,
    deaths_alone: Counter[int],
    failed_reads: set[int],
    *,
    deadline: bool,
) -> None:
    """The rows are what the truth and the damage demand, and there is one for each slide."""
    rows = {row.slide_id: row for row in played.rows}
    assert len(rows) == len(played.rows), "two rows for one slide"
    if not deadline:
        assert len(rows) == len(night.tiles), "a slide without a row"
    for number, tiles in enumerate(night.tiles):
        row = rows.get(_name(number))
        if row is None:
            continue
        if row.status is Status.COMPLETE:
            truth = dict(zip(BUNDLE.spec.class_names, counts(number, 0, tiles), strict=True))
            assert dict(row.class_counts or {}) == truth, f"slide {number} is counted wrongly"
            assert row.cells_classified == row.cells_expected == tiles
            assert number not in night.broken | night.killers | night.hangers | night.node_killers
            continue
        reason = Reason(row.reason or "")
        assert row.class_counts is None
        if number in night.broken:
            allowed = {Reason.BAD_FORMAT}
        elif number in night.killers | night.node_killers:
            allowed = {Reason.REPLICA_LOST}
        elif number in night.hangers:
            allowed = {Reason.TIMEOUT}
        else:
            allowed = set()
        if deaths_alone[number] >= 3:
            allowed |= {Reason.REPLICA_LOST, Reason.TIMEOUT}
        if number in failed_reads:
            allowed.add(Reason.READ_ERROR)
        assert reason in allowed, f"slide {number} failed: {row.reason} {row.detail}"


def _left(night: Night, numbers: list[int]) -> Night:
    place = {number: at for at, number in enumerate(numbers)}
    left = {
        field: frozenset(place[n] for n in getattr(night, field) if n in place)
        for field in ("broken", "killers", "hangers", "node_killers")
    }
    arguments: dict[str, Any] = {**night.__dict__, **left, "numbers": numbers}
    arguments["tiles"] = [night.tiles[n] for n in numbers]
    return Night(**arguments)


def plan_of(night: Night, numbers: list[int]) -> Plan:
    slides = tuple(
        PlannedSlide(
            slide_id=_name(number),
            address=SlideAddress(uri=f"/slides/{_name(number)}"),
            info=SlideInfo(
                identity="id",
                tiles=night.tiles[number],
                expected_from=ExpectedFrom.LISTING,
                tile_px=None,
            ),
            result_key="key",
        )
        for number in numbers
    )
    return Plan(slides=slides, failed=(), settled=(), ignored=())


def _name(number: int) -> str:
    return f"slide-{number:06d}"
