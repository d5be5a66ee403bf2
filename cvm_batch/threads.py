"""Calls that may never come back, in threads that may be left behind.

A read from a share that does not answer cannot be ended from outside, and the threads of
`concurrent.futures` are joined before their process ends: one such read would keep it for ever.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

Sign = Callable[[], None]
"""Says that a call gets on; raises, to end it, where nobody waits for it any more."""

_LOOK_SECONDS = 1.0
#: Items that are handed out for each thread: a slow one does not hold up the others at once.
_AHEAD = 4


def in_threads(
    function: Callable[[T, Sign], R],
    items: Iterable[T],
    *,
    threads: int,
    ahead: int | None = None,
    waiting: Callable[[], None] = lambda: None,
    patience: float = math.inf,
    late: Callable[[T], R] | None = None,
) -> Generator[R, None, None]:
    """``function(item, sign)`` for each item, several at once, in the items' order.

    ``ahead``: items that are taken before their turn to be yielded. ``waiting`` is called about
    once a second, and may raise to end it all. Of a call that has given no sign for ``patience``
    seconds ``late(item)`` is yielded in its place. Raises what the function raises. Closing the
    generator leaves all calls to themselves; use `contextlib.closing`. So does what ``items``
    raises.
    """
    pool: _Pool[T, R] = _Pool(function, threads)
    pending: deque[_Task[T]] = deque()
    source, look_at = iter(items), -math.inf
    try:
        while True:
            for item in source:
                pending.append(pool.hand_out(item))
                if len(pending) >= (ahead or _AHEAD * threads):
                    break
            if not pending:
                return
            task = pending.popleft()
            while True:
                if time.monotonic() >= look_at:
                    waiting()
                    look_at = time.monotonic() + _LOOK_SECONDS
                if task.is_done(_LOOK_SECONDS):
                    yield task.future.result()
                    break
                if late is not None:
                    pool.give_up_silent((task, *pending), patience)
                    if task.is_lost:
                        yield late(task.item)
                        break
    finally:
        pool.leave()


@dataclass(eq=False)
class _Task(Generic[T]):
    item: T
    future: Future[Any] = field(default_factory=Future)
    signed: float = math.inf
    """When it gave its last sign; infinite until it begins."""
    is_lost: bool = False
    """Its thread does not come back."""

    def is_done(self, seconds: float) -> bool:
        """Whether it is, after so many seconds at most."""
        try:
            self.future.exception(seconds)
        except TimeoutError:  # of the wait: what the call raised is returned
            return False
        return True


class _Pool(Generic[T, R]):
    def __init__(self, function: Callable[[T, Sign], R], threads: int) -> None:
        self._function = function
        self._most = threads
        self._threads = 0
        self._tasks: SimpleQueue[_Task[T] | None] = SimpleQueue()
        self._left = Event()

    def hand_out(self, item: T) -> _Task[T]:
        task = _Task(item)
        self._tasks.put(task)
        if self._threads < self._most:
            self._start()
        return task

    def give_up_silent(self, tasks: Iterable[_Task[T]], patience: float) -> None:
        """Others take the place of threads that do not come back."""
        now = time.monotonic()
        for task in tasks:
            silent = now - task.signed > patience and not task.future.done()
            if silent and not task.is_lost:
                task.is_lost = True
                self._start()

    def leave(self) -> None:
        self._left.set()
        for _ in range(self._threads):
            self._tasks.put(None)

    def _start(self) -> None:
        self._threads += 1
        Thread(target=self._work, name="may be left", daemon=True).start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._left.is_set():
                return
            self._call(task)

    def _call(self, task: _Task[T]) -> None:
        def sign() -> None:
            if self._left.is_set():
                raise InterruptedError
            task.signed = time.monotonic()

        task.signed = time.monotonic()
        try:
            task.future.set_result(self._function(task.item, sign))
        except BaseException as error:  # whatever it is, it is for who waits
            task.future.set_exception(error)
