"""What happens: a replica freezes, is given up and replaced, then wakes up and finishes its work.

Expected: what it writes and answers changes nothing; exit code 0; the results equal the
undisturbed run's, and no row names a file of a superseded attempt.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from cvm_batch.errors import ExitCode
from cvm_batch.model.bundle import Bundle
from cvm_batch.screening.executor import LeaseDone, ReplicaLost
from cvm_batch.screening.local_executor import LocalExecutor
from cvm_batch.screening.work import Lease, Loss, PartOutcome, ReplicaSpec
from tests.archives.making import write_zip
from tests.faults.comparing import assert_equal, assert_tidy, read_night
from tests.faults.night import Night, slide_of

PATIENCE_SECONDS = 3.0
SLEEPER, SUCCESSOR = range(2)


class Sleepwalker(LocalExecutor):
    """One replica, which falls asleep over its leases, and another that takes its place.

    The sleeper wakes up when its successor has answered once, and all that it answers arrives
    before the successor's second answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.late: list[PartOutcome] = []
        self._handed_out: list[Lease] = []
        self._successor_answered, self._wake = threading.Event(), threading.Event()
        self._sleeper_answered = threading.Semaphore(0)

    def start(self, spec: ReplicaSpec) -> None:
        self._spec = spec
        self._start_replica(SLEEPER, spec, torch.device("cpu"))

    def end(self, replica: int, detail: str) -> None:
        assert replica == SLEEPER
        self._events.put(ReplicaLost(SLEEPER, detail, Loss.HUNG))
        self._start_replica(SUCCESSOR, self._spec, torch.device("cpu"))

    def _classify(self, number: int, lease: Lease) -> None:
        if number == SLEEPER:
            self._handed_out.append(lease)
            self._wake.wait(60)
            outcomes = self._replicas[SLEEPER].classify(lease)
            self.late += outcomes
            self._events.put(LeaseDone(SLEEPER, lease.number, outcomes))
            self._sleeper_answered.release()
            return
        if self._successor_answered.is_set() and not self._wake.is_set():
            self._wake.set()
            for _ in self._handed_out:
                assert self._sleeper_answered.acquire(timeout=60)
        super()._classify(number, lease)
        self._successor_answered.set()


def there(results: Path, outcomes: Sequence[PartOutcome]) -> list[bool]:
    names = [name for found in outcomes for name in (found.cells_file, found.tops_file)]
    return [(results / str(name)).exists() for name in names]


def test_replica_that_wakes_up_too_late(night: Night, tmp_path: Path, tiny_bundle: Bundle) -> None:
    undisturbed = Night(tmp_path / "undisturbed", tiny_bundle)
    for number in range(3):
        write_zip(night.slides / f"{number}.zip", slide_of(30 + number, seed=number).tiles)
    assert undisturbed.submit(night.slides).exit_code is ExitCode.COMPLETE
    walker = Sleepwalker()
    found = night.submit(executor=walker, patience_seconds=PATIENCE_SECONDS)
    assert found.exit_code is ExitCode.COMPLETE
    assert {outcome.part.attempt for outcome in walker.late} == {0}
    assert sum(outcome.classified for outcome in walker.late) > 30, "nothing came too late"
    assert not any(there(night.results, walker.late)), "what no row names is removed"
    late = {outcome.part.slide.slide_id for outcome in walker.late}
    assert {found.rows[slide]["attempts"] for slide in late} == {2}
    assert_equal(read_night(night.results), read_night(undisturbed.results))
    assert_tidy(night.results)
