"""What happens: a node dies with all that runs on it, or is taken away.

Expected: its work runs on other nodes, or on one that joins later; exit code 0; the results equal
the undisturbed run's; the slides that it held are not charged with it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.kill_night import Moment, Nightly, kill_at_moments, seeded_nights
from tests.faults.watching import watching

pytestmark = pytest.mark.timeout(600)


@seeded_nights(3, 7, 12)
def test_node_lost_at_any_moment(nightly: Nightly, tmp_path: Path, seeds: list[int]) -> None:
    """Another joins soon after each."""
    draws = random.Random(seeds[0])

    def night(results: Path, moments: Sequence[Moment]) -> int:
        landed = 0
        with watching(results) as watch, nightly.submit(results, watch) as driver:
            for moment in sorted(moments):
                landed += driver.wait_for(moment)
                nightly.cluster.lose(draws.choice(nightly.cluster.nodes))
                time.sleep(draws.uniform(0, 2))
                nightly.cluster.add_node()
            assert driver.wait() == 0, driver.output()
        nightly.assert_as_undisturbed(results, watch)
        return landed

    kill_at_moments(seeds, tmp_path, night)
