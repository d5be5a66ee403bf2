"""Thousands of nights that never were, each repeatable by its seed."""

from __future__ import annotations

import random
from typing import ClassVar, cast

import pytest

from cvm_batch.errors import RunAbortedError
from cvm_batch.results.slides import SlideRow
from cvm_batch.screening.clock import Clock
from cvm_batch.screening.driver import Driver
from cvm_batch.screening.executor import Event, Executor, ReplicaLost
from cvm_batch.screening.work import ReplicaSpec
from tests.simulation.playing import BUNDLE, SPEC, SimulatedCommits, plan_of, play
from tests.simulation.world import Night, VirtualClock, Weather

CALM = Weather()
ROUGH = Weather(
    death=0.05,
    preemption=0.03,
    stall=0.02,
    slow=0.05,
    late=0.5,
    duplicate=0.05,
    read_error=0.02,
    failed_start=0.05,
    node_loss=0.01,
    stuck=0.01,
    slow_start=0.1,
    sick=0.1,
)


def random_night(seed: int, *, most_slides: int = 60) -> Night:
    """Many small slides or a few giant ones; calm or rough; some slides beyond help."""
    luck = random.Random(seed)
    count = luck.randint(1, most_slides)
    largest = luck.choice([1, 20, 300, 5_000])
    tiles = [luck.randint(1, largest) for _ in range(count)]
    bad = luck.sample(range(count), k=min(count, luck.choice([0, 0, 1, 3])))
    kinds = [luck.randrange(4) for _ in bad]
    storm = luck.choice([0.0, 0.3, 1.0, 2.0])
    weather = Weather(**{name: min(0.5, storm * chance) for name, chance in vars(ROUGH).items()})
    return Night(
        tiles=tiles,
        replicas=luck.choice([1, 2, 3, 10, 50]),
        tiles_per_second=luck.choice([5, 100, 3_000]),
        weather=weather,
        broken=frozenset(n for n, kind in zip(bad, kinds, strict=True) if kind == 0),
        killers=frozenset(n for n, kind in zip(bad, kinds, strict=True) if kind == 1),
        hangers=frozenset(n for n, kind in zip(bad, kinds, strict=True) if kind == 2),
        node_killers=frozenset(n for n, kind in zip(bad, kinds, strict=True) if kind == 3),
        outage=luck.choice([(0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (60.0, 600.0), (0.0, 9_000.0)]),
    )


def play_seed(seed: int, *, most_slides: int) -> None:
    night = random_night(seed, most_slides=most_slides)
    luck = random.Random(seed)
    play(
        night,
        seed,
        driver_kills=luck.choice([0, 0, 1, 3]),
        late=luck.choice([0, 0, 5]),
        hours=luck.choice([None, None, None, 0.02, 0.3]),
    )


@pytest.mark.parametrize("hundred", range(20))
def test_two_thousand_nights(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * (hundred + 1)):
        play_seed(seed, most_slides=20)


def test_the_same_seed_gives_the_same_night() -> None:
    night = random_night(17)
    first, second = play(night, 17, driver_kills=2), play(night, 17, driver_kills=2)
    assert (first.seconds, first.events) == (second.seconds, second.events)
    assert first.rows == second.rows


def test_a_calm_night_does_nothing_twice() -> None:
    tiles = [300] * 200
    played = play(Night(tiles=tiles, replicas=10, weather=CALM), 1)
    assert sum(played.classified.values()) == sum(tiles)
    ideal = sum(tiles) / (10 * 100)
    assert played.seconds < 1.5 * ideal + 30


def test_a_giant_slide_is_shared_by_all() -> None:
    played = play(Night(tiles=[100_000], replicas=20, weather=CALM), 1)
    assert played.seconds < 1.5 * 100_000 / (20 * 100) + 30


def test_neighbours_of_a_killer_are_complete() -> None:
    night = Night(tiles=[10] * 500, replicas=4, killers=frozenset({13, 250}))
    rows = play(night, 3).rows
    assert sorted(row.slide_id for row in rows if row.status != "complete") == [
        "slide-000013",
        "slide-000250",
    ]


def test_a_hanging_slide_does_not_stall_the_night() -> None:
    night = Night(tiles=[50] * 300, replicas=8, hangers=frozenset({7}))
    played = play(night, 5)
    assert [row.reason for row in played.rows if row.status != "complete"] == ["timeout"]
    assert played.seconds < 20 * 60


def not_complete(rows: list[SlideRow]) -> dict[str, str | None]:
    return {row.slide_id: row.reason for row in rows if row.status != "complete"}


@pytest.mark.parametrize("seed", range(5))
def test_a_slide_that_takes_nodes_down_is_found_out_among_others(seed: int) -> None:
    night = Night(tiles=[10] * 500, replicas=12, node_killers=frozenset({13, 250}))
    played = play(night, seed)
    assert not_complete(played.rows) == {
        "slide-000013": "replica_lost",
        "slide-000250": "replica_lost",
    }
    assert played.seconds < 20 * 60


@pytest.mark.parametrize("seed", range(5))
def test_giant_slides_that_take_nodes_down_part_by_part_take_few(seed: int) -> None:
    night = Night(tiles=[4_000] * 60, replicas=52, node_killers=frozenset({23, 31}))
    played = play(night, seed)
    assert not_complete(played.rows) == {
        "slide-000023": "replica_lost",
        "slide-000031": "replica_lost",
    }
    # Before its other parts were held back, and while suspects shared nodes: 67 to 142.
    assert played.nodes_lost <= 3 * 13


def test_no_harmless_slide_is_charged_for_nodes_that_others_took_down() -> None:
    # Slide 16 of this night once lost its fifth node while it was alone on its replica only.
    play_seed(56_632, most_slides=60)


@pytest.mark.parametrize("seed", range(5))
def test_a_node_that_cannot_read_costs_no_slide(seed: int) -> None:
    night = Night(tiles=[40] * 2_000, replicas=12, sick_nodes=frozenset({1}))
    played = play(night, seed)
    assert not_complete(played.rows) == {}
    assert played.seconds < 1.5 * sum(night.tiles) / (8 * 100) + 60


def test_an_outage_of_the_store_costs_no_slide() -> None:
    night = Night(tiles=[40] * 2_000, replicas=12, outage=(30.0, 30.0 + 20 * 60))
    played = play(night, 1)
    assert not_complete(played.rows) == {}
    assert played.seconds < 20 * 60 + 500


def test_slow_first_leases_do_not_end_a_run_long_before_its_hour() -> None:
    for seed in range(20):
        night = Night(tiles=[60] * 100, replicas=1, weather=Weather(slow_start=1.0))
        assert play(night, seed, hours=0.25).left == 0, f"seed {seed}"


def test_a_lease_that_is_never_answered_does_not_end_with_its_night() -> None:
    weather = Weather(stuck=0.02)
    played = play(Night(tiles=[400] * 300, replicas=6, weather=weather), 4)
    assert not_complete(played.rows) == {}
    assert played.seconds < 20 * 60


def test_what_is_complete_is_not_classified_again_after_a_driver_was_killed() -> None:
    night = Night(tiles=[200] * 500, replicas=5, tiles_per_second=20, weather=CALM)
    played = play(night, 11, driver_kills=3)
    assert played.drivers == 4
    # Per driver, what was running or not yet flushed is repeated, and no more.
    repeated = sum(played.classified.values()) - sum(night.tiles)
    assert 0 < repeated < 3 * (5 * 2 * 1_000 + 5 * 200 * 5)


def test_a_deadline_leaves_whole_slides_and_wastes_little() -> None:
    tiles = [1_000] * 400
    night = Night(tiles=tiles, replicas=10, weather=CALM)
    played = play(night, 2, hours=150 / 3600)
    assert played.seconds < 150 + 5
    assert 0 < played.left < 400
    whole = sum(row.cells_classified or 0 for row in played.rows)
    assert whole > 0.85 * sum(played.classified.values())


@pytest.mark.timeout(600)
def test_a_thousand_replicas() -> None:
    luck = random.Random(0)
    tiles = [luck.randint(10, 2_000) for _ in range(5_000)]
    weather = Weather(death=0.002, preemption=0.001, stall=0.0005, late=0.5, duplicate=0.01)
    play(Night(tiles=tiles, replicas=1_000, weather=weather), 1, driver_kills=1, checked=False)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("thousand", range(48))
def test_fifty_thousand_nights(thousand: int) -> None:
    for seed in range(10_000 + 1_000 * thousand, 10_000 + 1_000 * (thousand + 1)):
        play_seed(seed, most_slides=60)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(3))
def test_two_hundred_thousand_slides_on_a_thousand_replicas(seed: int) -> None:
    luck = random.Random(seed)
    tiles = [luck.randint(1, 400) for _ in range(200_000)]
    weather = Weather(death=0.005, preemption=0.002, stall=0.001, late=0.5, duplicate=0.01)
    night = Night(tiles=tiles, replicas=1_000, tiles_per_second=500, weather=weather)
    played = play(night, seed, driver_kills=2, checked=False)
    assert len(played.rows) == 200_000
    print(f"{played.events:,} events, {played.seconds / 60:.0f} virtual minutes")


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_five_thousand_replicas() -> None:
    luck = random.Random(9)
    tiles = [luck.randint(1, 4_000) for _ in range(50_000)]
    play(Night(tiles=tiles, replicas=5_000, weather=Weather(death=0.005)), 9, checked=False)


def test_a_run_that_nobody_serves_tells_what_became_of_the_last_replica() -> None:
    """A GPU that computes wrongly is not to be taken for one that is not free."""
    clock = VirtualClock()

    class Nobody:
        told: ClassVar[list[Event]] = [ReplicaLost(0, "the sentinels differ.")]

        def start(self, spec: ReplicaSpec) -> None: ...

        def wait(self, timeout: float) -> list[Event]:
            clock.time += 100
            told, self.told = self.told, []
            return told

    plan = plan_of(Night(tiles=[5], replicas=0), [0])
    commits = SimulatedCommits([])
    executor, now = cast(Executor, Nobody()), cast(Clock, clock)
    driver = Driver(plan, BUNDLE, SPEC, executor, commits, now)
    with pytest.raises(RunAbortedError, match=r"within 600 s. .*lost: the sentinels differ\."):
        driver.drive(lambda progress: None, lambda: False)
