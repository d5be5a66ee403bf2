"""Whatever drivers do and whenever they are frozen, killed or cut off: no slide gets two rows,
and the audit log is whole and names every row.

Real drivers' calls on a store in memory, one call at a time, in an order that Hypothesis chooses:
a driver that is not chosen is frozen, between any two of its calls. Nobody waits for a beat that
stands still, so that every driver is taken over at the worst of moments.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from enum import Enum, auto
from functools import cached_property
from typing import Any

import pyarrow.fs as pafs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cvm_batch.errors import CommitError, CvmBatchError
from cvm_batch.results.audit.checking import AuditCheck
from cvm_batch.results.audit.log import whole_entries
from cvm_batch.results.audit.runs import record_end, record_start
from cvm_batch.results.claims import Claims, Timing
from cvm_batch.results.erasing.tables import read_table
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.manifest import RunManifest, RunState
from cvm_batch.results.processes import Process
from cvm_batch.results.sealing import seal_unfinished, write_while_held
from cvm_batch.results.slides import History, all_rows, batch_names, commit_slides
from tests.results.stores.memory import MemoryStore
from tests.results.test_sealing import manifest
from tests.results.test_slides import row

SLIDES = ("a", "b", "c")
#: One look at another's beat, then it counts as silent.
AT_ONCE = Timing(silence=1e-9, look=1e-9)
MAX_DRIVERS = 6


class Fault(Enum):
    """What becomes of a request to put a new file, whose sender is told that it failed."""

    LOST = auto()
    """It is done; the answer is lost."""
    LATE = auto()
    """It is done some time later."""


class _KilledError(BaseException):
    """Ends a driver's thread where it is."""


class Driver(threading.Thread):
    """Classifies what is not done yet, one slide a batch, and never looks whether it may."""

    def __init__(self, world: World, number: int, *, lag: int) -> None:
        super().__init__(daemon=True)
        self.run_name = RunName.of(f"20260131T2200{number:02d}Z-0a1b2c3d")
        self.error: BaseException | None = None
        self.fault: Fault | None = None
        self.store = DriversStore(world, self, lag)
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._killed = False
        self.start()
        self._stands.acquire()

    def run(self) -> None:
        try:
            self.wait_for_turn()
            self._drive()
        except BaseException as error:
            self.error = error
        finally:
            self.ended = True
            self._stands.release()

    ended = False

    def step(self) -> None:
        """Let it make one call, and go on up to the next."""
        if not self.ended:
            self._go.release()
            self._stands.acquire()

    def kill(self) -> None:
        self._killed = True
        while not self.ended:
            self.step()

    def wait_for_turn(self) -> None:
        self._stands.release()
        self._go.acquire()
        if self._killed:
            raise _KilledError

    def _drive(self) -> None:
        results = ResultsFolder("unused")
        results.store = self.store
        run = self.run_name
        elsewhere = replace(Process.this(), host=run.run_id)
        claims = Claims(results, AT_ONCE, process=elsewhere, sleep=lambda seconds: None)
        hold = claims.take(run.run_id)
        hold.beat()
        try:
            seal_unfinished(results, claims, hold)
            history = History.read(results)
            left = [slide for slide in SLIDES if not history.settled(slide, "key")]
            began = record_start(results, told(run)).reference()
            write_while_held(results, hold, told(run, audit=began))
            for number, slide in enumerate(left):
                commit_slides(results, run, number, [row(slide, run_id=run.run_id)])
                hold.beat()
            ended = told(run, RunState.FINISHED)
            audit = record_end(results, ended).reference()
            write_while_held(results, hold, replace(ended, audit=audit))
        except CommitError as error:
            aborted = told(run, RunState.ABORTED, error=str(error))
            with suppress(CvmBatchError):
                aborted = replace(aborted, audit=record_end(results, aborted).reference())
            with suppress(CvmBatchError):
                write_while_held(results, hold, aborted)
            raise
        finally:
            hold.release()


def told(run: RunName, state: RunState = RunState.RUNNING, **more: Any) -> RunManifest:
    bundle, counts = {"name": "tiny", "digest": "d1"}, {"planned": 3}
    return manifest(run, state, bundle=bundle, slides=counts, cells={"expected": 9}, **more)


class World(MemoryStore):
    """What is stored, what is under way, and how the folder of claims looked before."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way: list[Callable[[], None]] = []
        self.claims_then: list[list[str]] = [[]]

    def note_claims(self) -> None:
        self.claims_then.append(super().names("lock"))


class DriversStore(MemoryStore):
    """The store as one driver sees it: its listings of claims may be older than its reads.

    So are those of a shared folder, which a machine remembers until it changes something there.
    """

    def __init__(self, world: World, driver: Driver, lag: int) -> None:
        super().__init__()
        self.files = world.files
        self._world = world
        self._driver = driver
        self._lag = lag
        self._fresh_since = 0

    def put_new(self, name: str, data: bytes | memoryview) -> None:
        self._driver.wait_for_turn()
        fault, self._driver.fault = self._driver.fault, None
        if fault is Fault.LATE:

            def deliver() -> None:
                with suppress(FileExistsError):
                    MemoryStore.put_new(self, name, bytes(data))
                    self._world.note_claims()

            self._world.under_way.append(deliver)
        else:
            super().put_new(name, data)
        self._note()
        if fault is not None:
            raise OSError("no answer in time")

    def put(self, name: str, data: bytes | memoryview, *, lasting: bool = True) -> None:
        self._driver.wait_for_turn()
        super().put(name, data)
        self._note()

    def read(self, name: str) -> bytes:
        self._driver.wait_for_turn()
        return super().read(name)

    def names(self, folder: str, *, deep: bool = False) -> list[str]:
        self._driver.wait_for_turn()
        if folder == "lock":
            last = len(self._world.claims_then) - 1
            return self._world.claims_then[max(self._fresh_since, last - self._lag)]
        return super().names(folder, deep=deep)

    def delete(self, name: str, *, lasting: bool = True) -> None:
        self._driver.wait_for_turn()
        super().delete(name)
        self._note()

    @cached_property
    def filesystem(self) -> pafs.FileSystem:
        # Frozen in the middle of pyarrow, a driver would hold locks that others wait for.
        return self._world.filesystem

    def _note(self) -> None:
        self._world.note_claims()
        self._fresh_since = len(self._world.claims_then) - 1


class Nights(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.drivers: list[Driver] = []

    @precondition(lambda self: len(self.drivers) < MAX_DRIVERS)
    @rule(lag=st.sampled_from([0, 0, 3]))
    def somebody_submits(self, lag: int) -> None:
        self.drivers.append(Driver(self.world, len(self.drivers), lag=lag))

    @precondition(lambda self: self.drivers)
    @rule(which=st.integers(0, MAX_DRIVERS - 1), calls=st.integers(1, 12))
    def a_driver_goes_on(self, which: int, calls: int) -> None:
        for _ in range(calls):
            self.drivers[which % len(self.drivers)].step()

    @precondition(lambda self: self.drivers)
    @rule(which=st.integers(0, MAX_DRIVERS - 1))
    def a_driver_is_killed(self, which: int) -> None:
        self.drivers[which % len(self.drivers)].kill()

    @precondition(lambda self: self.drivers)
    @rule(which=st.integers(0, MAX_DRIVERS - 1), fault=st.sampled_from(Fault))
    def the_server_does_not_answer(self, which: int, fault: Fault) -> None:
        self.drivers[which % len(self.drivers)].fault = fault

    @precondition(lambda self: self.world.under_way)
    @rule()
    def what_was_under_way_arrives(self) -> None:
        self.world.under_way.pop(0)()

    @invariant()
    def no_slide_has_two_rows(self) -> None:
        assert not [slide for slide, rows in self.rows().items() if rows > 1]

    def teardown(self) -> None:
        """Whatever is left then, the next night does it all, and nobody can undo that."""
        for driver in self.drivers:
            driver.fault = None
        last = Driver(self.world, MAX_DRIVERS, lag=0)
        try:
            while not last.ended:
                last.step()
            assert last.error is None, repr(last.error)
            assert self.rows() == Counter(SLIDES)
            while self.world.under_way:
                self.what_was_under_way_arrives()
            for driver in self.drivers:
                while not driver.ended:
                    driver.step()
                assert driver.error is None or isinstance(
                    driver.error, (CvmBatchError, _KilledError)
                )
            assert self.rows() == Counter(SLIDES)
            assert list(AuditCheck(self.results()).findings()) == []
            assert self.batches_with_rows() <= self.batches_in_the_log()
        finally:
            for driver in (*self.drivers, last):
                driver.kill()

    def rows(self) -> Counter[str]:
        return Counter(all_rows(self.results(), ["slide_id"])["slide_id"].to_pylist())

    def batches_with_rows(self) -> set[str]:
        names = batch_names(self.results())
        return {name for name in names if read_table(self.results(), name).num_rows}

    def batches_in_the_log(self) -> set[str]:
        entries = whole_entries(self.results())
        return {name for entry in entries for name in entry.facts.get("batches", ())}

    def results(self) -> ResultsFolder:
        results = ResultsFolder("unused")
        results.store = self.world
        return results


TestNights = Nights.TestCase
TestNights.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
