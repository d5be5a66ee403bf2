"""Calls that may crash or hang, in worker processes that may die of them.

Native decoders die of some damaged files, or never come back from them. A worker holds one item
at a time, so that its death costs that item and no other.

Workers are plain ``python -c`` processes. Those of multiprocessing import the caller's
``__main__`` anew, so that a script without a guard would start itself over and over, and a fork
of this process would inherit the locks of threads that it does not have.
"""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Pipe, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeAlias, TypeVar

from cvm_batch.errors import DecoderCrashedError, DecoderTimeoutError, RunAbortedError

T = TypeVar("T")
R = TypeVar("R")

#: Items pulled and not yet yielded, per worker: a slow one does not hold up the others at once.
_AHEAD = 4
#: A worker is replaced after so many items, before what decoders leak adds up. Its address space
#: has no limit: Arrow and thread stacks reserve far more of it than they use.
_ITEMS_PER_WORKER = 1000
#: Imports from a cold disk may take long, but not for ever.
_START_SECONDS = 120.0
#: Starts that may fail in a row: where memory is short, a worker may be killed as it starts.
_STARTS = 3
#: The longest time in which whoever waits is not asked whether to go on.
_LOOK_SECONDS = 1.0
#: The longest wait for a killed process, which outlives SIGKILL while its disk does not answer.
_END_SECONDS = 5.0
_RE_EXPORT = "Re-export the slide; if it opens elsewhere, report it with its format."


@dataclass(frozen=True)
class Done(Generic[T, R]):
    """The function returned."""

    item: T
    result: R
    error: None = None


@dataclass(frozen=True)
class Failed(Generic[T]):
    """The function raised, crashed or hung."""

    item: T
    error: Exception


Outcome: TypeAlias = Done[T, R] | Failed[T]


def run_isolated(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    jobs: int,
    timeout: float,
    name: Callable[[T], str] = str,
    waiting: Callable[[], None] = lambda: None,
) -> Generator[Outcome[T, R], None, None]:
    """``function(item)`` for each item, ``jobs`` at once in worker processes, in the items' order.

    ``error`` is what the function raised, DecoderCrashedError where its worker died, or
    DecoderTimeoutError where it took more than ``timeout`` seconds. A crash counts only in a
    worker that had no item before, lest one item pay for what another did to its memory: so the
    function may run twice on an item.

    The function is named to the workers, not sent: it stands in a module that can be imported,
    or is a partial of one that does. What it prints goes to standard error; a result that cannot
    be pickled is an error of its item. ``name`` gives an item's name in messages. ``waiting`` is
    called at least once a second while nothing comes, and may raise to end it all.

    Items are small (paths, not pixels) and are pulled as workers come free. An iterator of them
    that has ended is asked again as long as outcomes are awaited: they may bring more items.

    Closing the iterator ends the workers at once, and so does the end of this process; use
    `contextlib.closing` where an exception may leave it half used. Raises RunAbortedError where
    workers do not start, and what ``items`` raises.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; it must be at least 1")
    if not 0 < timeout <= 24 * 3600:
        raise ValueError(f"timeout is {timeout} s; it must be positive, and a day at most")
    pool: _Pool[T, R] = _Pool(ForkingPickler.dumps(function), jobs, timeout, name)
    return _outcomes(pool, map(_Task[T, R], items), jobs * _AHEAD, waiting)


@dataclass(eq=False)
class _Task(Generic[T, R]):
    item: T
    outcome: Outcome[T, R] | None = None

    def __post_init__(self) -> None:
        # Here, where an item that cannot be sent fails before a process is started for it.
        self.message = ForkingPickler.dumps(self.item)


def _outcomes(
    pool: _Pool[T, R],
    source: Iterator[_Task[T, R]],
    ahead: int,
    waiting: Callable[[], None],
) -> Generator[Outcome[T, R], None, None]:
    """Drives the pool, but only while the caller waits for the next outcome."""
    tasks: deque[_Task[T, R]] = deque()
    try:
        while True:
            pool.collect(block=False)
            while len(tasks) < ahead and pool.has_room():
                if (task := next(source, None)) is None:
                    break
                tasks.append(task)
                pool.hand_out(task)
            if not tasks:
                return
            if (outcome := tasks[0].outcome) is not None:
                tasks.popleft()
                yield outcome
            else:
                pool.collect(block=True)
                waiting()
    finally:
        pool.close()


class _Pool(Generic[T, R]):
    """Up to ``jobs`` workers. A task that was handed out stays with one until it has an outcome."""

    def __init__(
        self, function: memoryview, jobs: int, timeout: float, name: Callable[[T], str]
    ) -> None:
        self._function = function
        self._jobs = jobs
        self._timeout = timeout
        self._name = name
        self._workers: list[_Worker[T, R]] = []
        self._failed_starts = 0

    def has_room(self) -> bool:
        return len(self._workers) < self._jobs or any(one.task is None for one in self._workers)

    def hand_out(self, task: _Task[T, R]) -> None:
        """To an idle worker, or else to a new one. Raises RunAbortedError."""
        idle = next((worker for worker in self._workers if worker.task is None), None)
        if idle is None:
            self._start(task)
        else:
            idle.work_on(task, self._timeout)

    def collect(self, *, block: bool) -> None:
        """Take what workers answer, after a second at most, and end those that are late. Raises
        RunAbortedError."""
        first = min(worker.deadline for worker in self._workers) if block else 0
        connections = [worker.connection for worker in self._workers]
        answered = wait(connections, min(_LOOK_SECONDS, max(0, first - time.monotonic())))
        for worker in [one for one in self._workers if one.connection in answered]:
            self._receive(worker)
        # After the answers: what lay waiting while the caller was busy is not late.
        now = time.monotonic()
        for worker in [one for one in self._workers if one.deadline <= now]:
            self._give_up(worker)

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        while self._workers:
            self._workers.pop().end()

    def _start(self, task: _Task[T, R]) -> None:
        try:
            self._workers.append(_Worker(self._function, task))
        except OSError as error:
            raise RunAbortedError(
                f"A worker process cannot be started: {error}. Free memory, or use fewer jobs."
            ) from error

    def _receive(self, worker: _Worker[T, R]) -> None:
        result, error = None, None
        try:
            result, error = worker.connection.recv()
        except (EOFError, OSError):
            self._lose(worker)
            return
        except Exception as unreadable:
            error = unreadable
        if worker.ready:
            self._finish(worker, result, error)
        else:
            self._begin(worker, error)

    def _begin(self, worker: _Worker[T, R], error: Exception | None) -> None:
        """A worker has imported the function, or failed to."""
        if error is not None:
            raise RunAbortedError(
                f"A worker process cannot import the function it is to run: {error!r}. "
                "Put it in a module that can be imported."
            ) from error
        self._failed_starts = 0
        worker.ready = True
        worker.deadline = time.monotonic() + self._timeout

    def _finish(self, worker: _Worker[T, R], result: Any, error: Exception | None) -> None:
        """A worker has answered."""
        task = worker.task
        assert task is not None
        task.outcome = Done(task.item, result) if error is None else Failed(task.item, error)
        worker.rest()
        if worker.served >= _ITEMS_PER_WORKER:
            self._end(worker)

    def _lose(self, worker: _Worker[T, R]) -> None:
        """A worker has died."""
        self._workers.remove(worker)
        status, task = worker.end(), worker.task
        if task is None:
            return
        if not worker.ready:
            self._start_again(task, _cause_of_death(status))
        elif worker.served:
            self._start(task)
        else:
            task.outcome = Failed(task.item, _crash(self._name(task.item), status))

    def _give_up(self, worker: _Worker[T, R]) -> None:
        """A worker is late."""
        self._end(worker)
        task = worker.task
        assert task is not None
        if worker.ready:
            error = _timeout(self._name(task.item), self._timeout)
            task.outcome = Failed(task.item, error)
        else:
            self._start_again(task, f"was not ready after {_START_SECONDS:g} s")

    def _start_again(self, task: _Task[T, R], what_happened: str) -> None:
        self._failed_starts += 1
        if self._failed_starts == _STARTS:
            raise RunAbortedError(
                f"Worker processes do not start: the last of {_STARTS} {what_happened}. "
                "What it wrote to standard error may say why; check that memory is free."
            )
        self._start(task)

    def _end(self, worker: _Worker[T, R]) -> None:
        self._workers.remove(worker)
        worker.process.kill()
        worker.end()


class _Worker(Generic[T, R]):
    """One process, and the task that it has, or will have once it is ready."""

    def __init__(self, function: memoryview, task: _Task[T, R]) -> None:
        self.ready = False
        self.served = 0
        self.connection, theirs = Pipe()
        lifeline, self._lifeline = Pipe(duplex=False)
        with theirs, lifeline:
            self.process = _start_process(theirs.fileno(), lifeline.fileno())
        self._send(function)
        self.work_on(task, _START_SECONDS)

    def work_on(self, task: _Task[T, R], timeout: float) -> None:
        self.task: _Task[T, R] | None = task
        self.deadline = time.monotonic() + timeout
        self._send(task.message)

    def rest(self) -> None:
        self.task = None
        self.deadline = math.inf
        self.served += 1

    def end(self) -> int:
        """Wait for the process's end, and kill it if need be: its exit code, or -signal."""
        with self.connection, self._lifeline:
            for _ in range(2):
                with suppress(subprocess.TimeoutExpired):
                    return self.process.wait(_END_SECONDS)
                self.process.kill()
        return -signal.SIGKILL

    def _send(self, message: memoryview) -> None:
        # That the process is dead shows when its answer is to be read.
        with suppress(ConnectionError):
            self.connection.send_bytes(message)


def _start_process(connection: int, lifeline: int) -> subprocess.Popen[bytes]:
    """A Python like this one, in a session of its own, which no Ctrl-C in the terminal reaches."""
    # With this process's path, and nothing imported before: the working folder is not on it.
    code = (
        f"import sys; sys.path[:] = {list(map(str, sys.path))!a}; "
        f"from cvm_batch.isolation_worker import work; work({connection}, {lifeline})"
    )
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return subprocess.Popen(  # noqa: S603 - this interpreter, with code from here
        [sys.executable, *flags, "-u", "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=[connection, lifeline],
        start_new_session=True,
    )


def _crash(name: str, status: int) -> DecoderCrashedError:
    if status == -signal.SIGKILL:
        return DecoderCrashedError(
            f"{name}: the process that read it was killed (SIGKILL), as happens when memory runs "
            f"out. Free memory or use fewer jobs, and try again. If it recurs: {_RE_EXPORT}"
        )
    return DecoderCrashedError(
        f"{name}: the process that read it {_cause_of_death(status)}. Its data are damaged, or "
        f"its decoder is at fault. {_RE_EXPORT}"
    )


def _timeout(name: str, seconds: float) -> DecoderTimeoutError:
    return DecoderTimeoutError(
        f"{name}: reading it took more than {seconds:g} s and was ended. Check that its disk "
        f"answers. {_RE_EXPORT}"
    )


def _cause_of_death(status: int) -> str:
    if status >= 0:
        return f"ended with exit code {status}"
    with suppress(ValueError):
        return f"died of {signal.Signals(-status).name}"
    return f"died of signal {-status}"
