"""What happens: the driver is killed, at any moment.

Expected: readers see the old state or the new one; submitting again, until it ends by itself,
finishes the rest with exit code 0 and repeats no complete slide; the results equal the
undisturbed run's.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cvm_batch.model.bundle import Bundle
from tests.archives.making import write_zip
from tests.faults.comparing import Found, assert_equal, assert_tidy, read_night
from tests.faults.driver_steps import ANY, Drivers, Step, drivers
from tests.faults.kill_night import Moment, Nightly, committed, kill_at, seeded_nights, slide_of
from tests.faults.watching import Watch, watching

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

    kill_at(seeds, tmp_path, night)


@dataclass(frozen=True)
class Small:
    """Three slides, and what comes of them where nothing happens."""

    drivers: Drivers
    steps: Sequence[Step]
    """What an undisturbed driver does to the disk."""
    undisturbed: Mapping[str, Found]

    def kill_at(self, number: int, results: Path, of: Step = ANY) -> bool:
        """Kill a driver at a step, look at what it leaves, and let another finish.

        Returns whether the driver came as far as that step.
        """
        killed = self.drivers.submit(results, die_at=number, of=of).killed
        watch = Watch(results)
        watch.look()
        done = committed(results)
        assert done <= self.undisturbed.keys()
        known = set((results / "runs").glob("*.json"))
        assert all(json.loads(path.read_text())["state"] for path in known)
        assert self.drivers.submit(results).exit_code == 0
        watch.look()
        assert watch.repeated == []
        (manifest,) = set((results / "runs").glob("*.json")) - known
        planned = json.loads(manifest.read_text())["slides"]
        assert planned["settled_complete"] == len(done)
        assert planned["planned"] == planned["complete"] == len(self.undisturbed) - len(done)
        assert_equal(read_night(results), self.undisturbed)
        assert_tidy(results)
        return killed


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Iterator[Small]:
    folder = tmp_path_factory.mktemp("small")
    for number in range(3):
        write_zip(folder / "slides" / f"{number}.zip", slide_of(20 + number, seed=number).tiles)
    with drivers(folder / "slides", tiny_bundle.path) as forked:
        undisturbed = forked.submit(folder / "undisturbed")
        assert undisturbed.exit_code == 0
        yield Small(forked, undisturbed.steps, read_night(folder / "undisturbed"))


BATCHES = Step("link", "/slides/")
#: Of the claim, the manifest, the batches, the manifest again.
FLUSHES = Step("fsync", "/.tmp/", "MainThread")
MANIFESTS = Step("replace", "/runs/")


def test_driver_killed_before_the_first_row(small: Small, tmp_path: Path) -> None:
    """Some cells files are there, and no row that names them."""
    assert small.kill_at(1, tmp_path / "results", BATCHES)


def test_driver_killed_while_it_writes_a_batch(small: Small, tmp_path: Path) -> None:
    own = [step for step in small.steps if step.is_one(BATCHES) or step.is_one(FLUSHES)]
    flushed = next(n for n, step in enumerate(own) if step.is_one(BATCHES))
    assert small.kill_at(flushed, tmp_path / "results", FLUSHES)


def test_driver_killed_before_a_batch_lasts(small: Small, tmp_path: Path) -> None:
    """It has its name, and what comes next has not been done."""
    assert small.kill_at(2, tmp_path / "results", Step("fsync", "/slides/"))


def test_driver_killed_before_it_says_how_it_ended(small: Small, tmp_path: Path) -> None:
    assert small.kill_at(2, tmp_path / "results", MANIFESTS)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_driver_killed_at_every_step(small: Small, tmp_path: Path) -> None:
    steps, killed = len(small.steps), 0
    for number in range(1, steps + 1):
        killed += small.kill_at(number, tmp_path / f"results-{number}")
    kinds = dict(Counter(step.name for step in small.steps))
    print(f"{killed} of {steps} steps: {kinds}")
    # How the replica's threads share the work may make a few more or fewer.
    assert killed >= 0.8 * steps
