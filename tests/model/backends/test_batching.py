from __future__ import annotations

from collections.abc import Callable

import pytest

from cvm_batch.model.backends.batching import Trial, best_batch_size

MIB = 2**20
PLENTY = 10**15


def device(
    speed: Callable[[int], float], *, room: int = 10**9, mib_a_tile: int = 1
) -> Callable[[int], Trial | None]:
    def attempt(size: int) -> Trial | None:
        return Trial(speed(size), size * mib_a_tile * MIB) if size <= room else None

    return attempt


@pytest.mark.parametrize(
    ("saturated_at", "expected"), [(20, 32), (100, 128), (300, 512), (10**6, 1024)]
)
def test_stops_where_speed_does(saturated_at: int, expected: int) -> None:
    attempt = device(lambda size: min(size, saturated_at))
    assert best_batch_size(attempt, budget=PLENTY) == expected


def test_stays_within_memory() -> None:
    attempt = device(float, mib_a_tile=10)
    assert best_batch_size(attempt, budget=2_000 * MIB) == 128


def test_a_size_that_fails_ends_the_trials() -> None:
    assert best_batch_size(device(float, room=300), budget=PLENTY) == 256


def test_a_device_without_room_for_the_smallest_takes_single_tiles() -> None:
    assert best_batch_size(device(float, room=0), budget=PLENTY) == 1
    assert best_batch_size(device(float), budget=1) == 1
