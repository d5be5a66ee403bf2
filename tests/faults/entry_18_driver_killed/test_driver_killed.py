"""What happens: the driver is killed, at any moment.

Expected: readers see the old state or the new one; submitting again, until it ends by itself,
finishes the rest with exit code 0 and repeats no complete slide; the results equal the
undisturbed run's.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.driver_steps import Trouble
from tests.faults.kill_night import Moment, Nightly, committed, kill_at_moments, seeded_nights
from tests.faults.small_night import BATCHES, BATCHES_LAST, FLUSHES, MANIFESTS, Small
from tests.faults.watching import watching

pytestmark = pytest.mark.timeout(600)


@seeded_nights(6, 12, 1)
def test_driver_killed_at_any_moment(nightly: Nightly, tmp_path: Path, seeds: list[int]) -> None:
    """And submitted again, as often as it takes."""

    def night(results: Path, moments: Sequence[Moment]) -> int:
        landed, done = 0, set[str]()
        with watching(results) as watch:
            for moment in moments:
                with nightly.submit(results, watch) as driver:
                    driver.wait_for(moment)
                    driver.process.kill()
                    landed += driver.process.wait() == -signal.SIGKILL
                before, done = done, committed(results)
                assert before <= done
            with nightly.submit(results, watch) as driver:
                assert driver.wait() == 0, driver.output()
                planned = driver.manifest["slides"]
        assert planned["settled_complete"] == len(done)
        assert planned["planned"] == len(nightly.undisturbed) - len(done)
        nightly.assert_as_undisturbed(results, watch)
        return landed

    kill_at_moments(seeds, tmp_path, night)


def kill_at(trouble: Trouble, small: Small, results: Path) -> bool:
    """Returns whether the driver came as far as that."""
    killed = small.drivers.submit(results, trouble).killed
    small.assert_another_finishes(results)
    return killed


def test_driver_killed_before_the_first_row(small: Small, tmp_path: Path) -> None:
    """Some cells files are there, and no row that names them."""
    assert kill_at(Trouble(1, BATCHES), small, tmp_path / "results")


def test_driver_killed_while_it_writes_a_batch(small: Small, tmp_path: Path) -> None:
    assert kill_at(Trouble(small.first_batch_flush, FLUSHES), small, tmp_path / "results")


def test_driver_killed_before_a_batch_lasts(small: Small, tmp_path: Path) -> None:
    """It has its name, and what comes next has not been done."""
    assert kill_at(Trouble(2, BATCHES_LAST), small, tmp_path / "results")


def test_driver_killed_before_it_says_how_it_ended(small: Small, tmp_path: Path) -> None:
    assert kill_at(Trouble(2, MANIFESTS), small, tmp_path / "results")


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_driver_killed_at_every_step(small: Small, tmp_path: Path) -> None:
    steps, killed = len(small.steps), 0
    for number in range(1, steps + 1):
        killed += kill_at(Trouble(number), small, tmp_path / f"results-{number}")
    kinds = dict(Counter(step.name for step in small.steps))
    print(f"{killed} of {steps} steps: {kinds}")
    # How the replica's threads share the work may make a few more or fewer.
    assert killed >= 0.8 * steps
