"""What happens: a machine is paused with all that runs on it, its replica is given up for hung,
and then it goes on and finishes what it was at.

Expected: what it writes changes nothing, and is gone at the end; exit code 0; the results equal
the undisturbed run's.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.kill_night import Moment, Nightly
from tests.faults.watching import CellsFile, Watch, watching
from tests.screening.test_ray_executor import replica_processes

PATIENCE_SECONDS = 4


def named(results: Path) -> set[CellsFile]:
    """What committed rows name."""
    watch = Watch(results)
    watch.look()
    return watch.seen


@pytest.mark.timeout(300)
def test_node_that_goes_on_too_late(nightly: Nightly, tmp_path: Path) -> None:
    results, cluster = tmp_path / "results", nightly.cluster
    with (
        watching(results) as watch,
        nightly.submit(results, watch, "--log-json", "--patience", PATIENCE_SECONDS) as driver,
    ):
        assert driver.wait_for(Moment(0.4))
        sleeper, other = replica_processes()
        with cluster.paused(cluster.node_of(sleeper)):
            assert driver.wait_until(lambda: "no sign of work" in driver.output())
            os.kill(other, signal.SIGSTOP)  # so that it cannot be first
            before = len(watch.seen)
            os.kill(sleeper, signal.SIGCONT)
            assert driver.wait_until(lambda: len(watch.seen) > before), driver.output()
            os.kill(other, signal.SIGCONT)
            assert driver.wait() == 0, driver.output()
        cluster.add_node()
    assert watch.seen - named(results), "nothing came too late"
    nightly.assert_as_undisturbed(results, watch)
