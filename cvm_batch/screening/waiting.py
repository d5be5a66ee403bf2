"""Parts that have been tried and wait for another attempt. Pure."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from cvm_batch.screening.ledger import Ledger
from cvm_batch.screening.work import Part

#: Parts at the head that are looked at for one that suits.
_MOST_SKIPPED = 8


def most_urgent(*priorities: int | None) -> int | None:
    """The highest of those that there are; None where there is none."""
    return max((each for each in priorities if each is not None), default=None)


class Waiting(NamedTuple):
    """A place in the queue. Numbers are given once, so that parts are never compared."""

    turn: tuple[int, int]
    number: int
    part: Part


class PartQueue:
    """Parts by the priority of their slide, those that have cost most replicas and nodes first:
    the sooner one is charged, the fewer it takes with it. Then in the order in which they came.

    What has been superseded, or belongs to a slide that has ended, is left out by itself.
    """

    def __init__(self, ledger: Ledger, priorities: Sequence[int]) -> None:
        """``priorities``: of slides, by number; say `resort` when they change, or slides fail."""
        self._ledger = ledger
        self._priorities = priorities
        self._numbers = itertools.count()
        self._heap: list[Waiting] = []
        self._sorted = True

    def __bool__(self) -> bool:
        return self.first() is not None

    def __len__(self) -> int:
        """At most so many: of a slide that failed, until `resort`, all parts are counted."""
        self.first()
        return len(self._heap)

    def push(self, part: Part) -> None:
        heapq.heappush(self._heap, Waiting(self._turn(part), next(self._numbers), part))

    def put_back(self, popped: Iterable[Waiting]) -> None:
        """To where they were before."""
        for waiting in popped:
            heapq.heappush(self._heap, waiting)

    def resort(self) -> None:
        self._sorted = False

    @property
    def urgency(self) -> int | None:
        """The highest priority of what waits; None where nothing does."""
        first = self.first()
        return None if first is None else self._priorities[first.slide.number]

    def first(self) -> Part | None:
        if not self._sorted:
            self._heap = [
                Waiting(self._turn(part), number, part)
                for _, number, part in self._heap
                if self._ledger.is_open(part)
            ]
            heapq.heapify(self._heap)
            self._sorted = True
        while self._heap:
            part = self._heap[0].part
            if self._ledger.is_open(part):
                return part
            heapq.heappop(self._heap)
        return None

    def pop(self) -> Waiting:
        """What `first` told."""
        return heapq.heappop(self._heap)

    def pop_first(self, suits: Callable[[Part], bool]) -> Waiting | None:
        """The first part that suits, if one of the first few does."""
        skipped: list[Waiting] = []
        found = None
        while found is None and len(skipped) < _MOST_SKIPPED and self.first() is not None:
            waiting = self.pop()
            if suits(waiting.part):
                found = waiting
            else:
                skipped.append(waiting)
        self.put_back(skipped)
        return found

    def _turn(self, part: Part) -> tuple[int, int]:
        return -self._priorities[part.slide.number], -(part.deaths + part.nodes)
