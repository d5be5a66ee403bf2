"""What happens: the process of a replica is killed, in mid-slide or at any other moment.

Expected: its work runs elsewhere; exit code 0; the results equal the undisturbed run's, one row
each, and no slide that was committed is classified again.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.kill_night import Moment, Nightly, kill_at_moments, seeded_nights
from tests.faults.watching import watching
from tests.screening.test_ray_executor import replica_processes

pytestmark = pytest.mark.timeout(600)


@seeded_nights(6, 7, 12)
def test_replica_killed_at_any_moment(nightly: Nightly, tmp_path: Path, seeds: list[int]) -> None:
    """The first moments are before there is a replica: that is killed as soon as it is there."""
    draws = random.Random(seeds[0])

    def kill() -> bool:
        """Whether there was one to kill."""
        found = replica_processes()
        if found:
            os.kill(draws.choice(found), signal.SIGKILL)
        return bool(found)

    def night(results: Path, moments: Sequence[Moment]) -> int:
        landed = 0
        with watching(results) as watch, nightly.submit(results, watch) as driver:
            for moment in sorted(moments):
                landed += driver.wait_for(moment) and driver.wait_until(kill)
            assert driver.wait() == 0, driver.output()
        nightly.assert_as_undisturbed(results, watch)
        return landed

    kill_at_moments(seeds, tmp_path, night)
