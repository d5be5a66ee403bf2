"""A replica in this process tells of itself as one elsewhere does."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvm_batch.errors import RunAbortedError
from cvm_batch.model.backends.choosing import Backend
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.screening.executor import Event, LeaseDone, ReplicaProgress, ReplicaReady
from cvm_batch.screening.local_executor import LocalExecutor
from cvm_batch.screening.replica import Replica
from cvm_batch.screening.work import Lease, Part, ReplicaSpec
from tests.archives import making
from tests.conftest import coloured_tiles
from tests.screening.test_cluster_decoding import planned
from tests.screening.test_run import flip_byte_in_member

TILES = 30


def until(executor: LocalExecutor, kind: type[Event]) -> list[Event]:
    events: list[Event] = []
    deadline = time.monotonic() + 120
    while not any(isinstance(event, kind) for event in events):
        assert time.monotonic() < deadline
        events += executor.wait(0.1)
    return events


def spec_of(bundle: Bundle, results: ResultsFolder) -> ReplicaSpec:
    return ReplicaSpec(
        bundle=bundle.path,
        bundle_digest=bundle.digest,
        precision=Precision.FP32,
        backend=Backend.EAGER,
        batch_size=8,
        results=results.everywhere,
        run=RunName.new(datetime.now(UTC)),
    )


def test_signs_of_life_between_answers(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Else the watchdog would end a replica that digests a large file."""
    making.write_zip(tmp_path / "a.zip", coloured_tiles(range(TILES)))
    results = ResultsFolder(tmp_path / "results")
    results.prepare()
    with closing(LocalExecutor()) as executor:
        assert executor.wait(0) == [], "nobody serves yet"
        executor.start(spec_of(tiny_bundle, results))
        until(executor, ReplicaReady)
        before = [event for event in executor.wait(0) if isinstance(event, ReplicaProgress)]
        executor.submit(0, Lease(0, (Part(planned(tmp_path / "a.zip"), 0, TILES),)))
        until(executor, LeaseDone)
        after = [event for event in executor.wait(0) if isinstance(event, ReplicaProgress)]
    assert [one.tiles for one in before] == [0]
    assert [one.tiles for one in after] == [TILES]
    assert after[0].signs > before[0].signs


def test_what_could_not_be_classified_is_done_with_too(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Else the driver would take as many tiles of each later lease for not begun."""
    for name in ("bad.zip", "good.zip"):
        making.write_zip(tmp_path / name, coloured_tiles(range(TILES)))
    flip_byte_in_member(tmp_path / "bad.zip")
    results = ResultsFolder(tmp_path / "results")
    results.prepare()
    parts = [Part(planned(tmp_path / name), 0, TILES) for name in ("bad.zip", "good.zip")]
    with closing(Replica(spec_of(tiny_bundle, results))) as replica:
        outcomes = replica.classify(Lease(0, tuple(parts)))
        assert [outcome.failure is None for outcome in outcomes] == [False, True]
        assert replica.tiles_done == 2 * TILES


def test_what_was_answered_when_a_replica_fails_is_told_first(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """And so committed: the next submit need not do it again."""
    making.write_zip(tmp_path / "a.zip", coloured_tiles(range(TILES)))
    results = ResultsFolder(tmp_path / "results")
    results.prepare()
    part = Part(planned(tmp_path / "a.zip"), 0, TILES)
    with closing(LocalExecutor()) as executor:
        executor.start(spec_of(tiny_bundle, results))
        until(executor, ReplicaReady)
        for number, replica in enumerate([0, 7, 0]):  # there is no replica 7
            executor.submit(replica, Lease(number, (part,)))
            deadline = time.monotonic() + 120
            while executor._events.qsize() <= number:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        told = executor.wait(0.1)
        assert [event.lease for event in told if isinstance(event, LeaseDone)] == [0, 2]
        for _ in range(2):
            with pytest.raises(RunAbortedError, match="failed: KeyError"):
                executor.wait(0.1)


def test_what_a_replica_says_of_itself_is_read_without_pytorch(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Which took the driver three seconds, before it handed out anything."""
    results = ResultsFolder(tmp_path)
    results.prepare()
    with closing(Replica(spec_of(tiny_bundle, results))) as replica:
        pickled = pickle.dumps(replica.info())
    script = "import pickle, sys; pickle.load(sys.stdin.buffer); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], input=pickled, check=True)
