"""Packs slides: plans each, shares its chunks out to worker processes, and puts it in its place.

What is left to do stands in one queue; workers take from its front. So several slides are
packed at once, a large one by all workers, and a native decoder that crashes costs the slide
that it was reading.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from cvm_batch.archives.opening import OpenOptions
from cvm_batch.archives.packing.arrays import TileLayout
from cvm_batch.archives.packing.finish import Completion, finish
from cvm_batch.archives.packing.targets import PackRecord, holding, targets
from cvm_batch.archives.packing.worker import (
    Order,
    Plan,
    Portion,
    PortionDone,
    begin,
    folder_of,
    pack,
    plan,
)
from cvm_batch.archives.tables.slides import ListedSlide
from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import SlideError
from cvm_batch.isolation import Failed, run_isolated
from cvm_batch.isolation import Outcome as WorkOutcome

#: Some thousand tiles, or 128 MiB of them: a second or two.
_PORTION_CHUNKS = 4
#: Where digests are recorded, a worker's first portion of a slide starts with reading it whole.
_TIMEOUT_SECONDS = 2 * 3600.0

Task: TypeAlias = Order | Portion | Completion
Answer: TypeAlias = Plan | PackRecord | PortionDone


@dataclass(frozen=True)
class Packed:
    """A slide that is packed, as far as its tiles can be read."""

    slide: ListedSlide
    archive: Path
    record: PackRecord
    already: bool
    """Whether an earlier run did it."""


@dataclass(frozen=True)
class NotPacked:
    """A slide that is not; what there was of it before is as it was."""

    slide: ListedSlide
    error: SlideError


Outcome: TypeAlias = Packed | NotPacked


@dataclass(frozen=True, kw_only=True)
class PackProgress:
    """Where packing stands."""

    slides: int
    slides_done: int
    tiles: int
    """Of the slides that were looked at and have to be packed."""
    tiles_done: int
    not_packed: int


def pack_slides(
    slides: Sequence[ListedSlide],
    options: OpenOptions,
    out: Path,
    *,
    jobs: int | None = None,
    force: bool = False,
    report: Callable[[PackProgress], None] = lambda _: None,
) -> Generator[Outcome, None, None]:
    """Pack each slide into the folder ``out``, and tell of each when it is done.

    Which bytes an archive has is decided by its slide alone. Ended at any moment, even by
    SIGKILL, and given again, this goes on where it was. ``force`` packs anew what is packed,
    and replaces what is in the way.

    Raises UsageError (SlideIdCollisionError), CommitError and RunAbortedError. Closing the
    iterator ends the work at once; use `contextlib.closing`.
    """
    out = Path(os.path.abspath(out))
    with holding(out):
        places = targets(slides, out, force=force)
        works = [
            _Work(
                slide,
                Order(
                    slide_id=slide.slide_id,
                    address=slide.address,
                    options=options,
                    target=places[slide.slide_id],
                    force=force,
                ),
            )
            for slide in slides
        ]
        yield from _Packing(works, jobs or usable_cpus(), report).run()


def work(task: Task) -> Answer:
    """What workers do. Raises SlideError or CommitError."""
    match task:
        case Order():
            return plan(task)
        case Portion():
            return pack(task)
        case Completion():
            return finish(task)


@dataclass(eq=False)
class _Work:
    """One slide, and how far it is."""

    slide: ListedSlide
    order: Order
    plan: Plan | None = None
    layout: TileLayout | None = None
    awaited: int = 0
    """Portions that were handed out, or wait for it."""
    done: list[PortionDone] = field(default_factory=list)
    failed: bool = False

    def portions(self) -> list[Portion]:
        """All of the slide, in its present layout."""
        assert self.plan is not None
        assert self.layout is not None
        return [
            Portion(
                order=self.order,
                identity=self.plan.info.identity,
                folder=folder_of(self.order.target, self.layout),
                first=first,
                last=min(first + _PORTION_CHUNKS, self.layout.chunks),
            )
            for first in range(0, self.layout.chunks, _PORTION_CHUNKS)
        ]

    def completion(self) -> Completion:
        assert self.plan is not None
        assert self.layout is not None
        folder = folder_of(self.order.target, self.layout)
        return Completion(plan=self.plan, folder=folder, done=PortionDone.together(self.done))


class _Queue:
    """An iterator that ends when nothing is left to do, and goes on when there is more."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = deque(tasks)

    def __iter__(self) -> Iterator[Task]:
        return self

    def __next__(self) -> Task:
        if not self._tasks:
            raise StopIteration
        return self._tasks.popleft()

    def put_first(self, task: Task) -> None:
        self._tasks.appendleft(task)

    def put_last(self, tasks: Iterable[Task]) -> None:
        self._tasks.extend(tasks)

    def drop(self, order: Order) -> None:
        """Take out all that is left to do for one slide."""
        self._tasks = deque(task for task in self._tasks if _order(task) is not order)


class _Packing:
    """One call of `pack_slides`."""

    def __init__(
        self, works: Sequence[_Work], jobs: int, report: Callable[[PackProgress], None]
    ) -> None:
        self._works = {each.order.slide_id: each for each in works}
        self._jobs = jobs
        self._report = report
        self._queue = _Queue(each.order for each in works)
        self._slides_done = self._not_packed = 0
        self._tiles = self._tiles_done = 0

    def run(self) -> Iterator[Outcome]:
        answers = run_isolated(
            work, self._queue, jobs=self._jobs, timeout=_TIMEOUT_SECONDS, name=_uri
        )
        with closing(answers):
            for answer in answers:
                outcome = self._take(answer)
                self._count(outcome)
                if outcome is not None:
                    yield outcome

    def _take(self, answer: WorkOutcome[Task, Answer]) -> Outcome | None:
        """What follows from an answer. Raises all but SlideErrors."""
        task, each = answer.item, self._works[_order(answer.item).slide_id]
        if isinstance(answer, Failed):
            if not isinstance(answer.error, SlideError):
                raise answer.error
            return self._fail(each, answer.error)
        match answer.result:
            case Plan() as found:
                self._share_out(each, found)
            case PortionDone() as done:
                assert isinstance(task, Portion)
                self._tiles_done += task.tiles
                self._gather(each, done)
            case PackRecord() as record:
                archive = each.order.target.archive
                return Packed(each.slide, archive, record, already=isinstance(task, Order))
        return None

    def _fail(self, each: _Work, error: SlideError) -> Outcome | None:
        """Once; what else is under way of the slide may fail too."""
        if each.failed:
            return None
        each.failed = True
        self._queue.drop(each.order)
        return NotPacked(each.slide, error)

    def _share_out(self, each: _Work, found: Plan) -> None:
        each.plan = found
        each.layout = found.layout
        self._queue_portions(each)

    def _gather(self, each: _Work, done: PortionDone) -> None:
        each.awaited -= 1
        each.done.append(done)
        if each.awaited or each.failed:
            return
        if all(part.fits for part in each.done):
            self._queue.put_first(each.completion())
        else:
            self._begin_anew(each)

    def _begin_anew(self, each: _Work) -> None:
        """In the next layout, now that nobody writes in this one any more."""
        assert each.plan is not None
        assert each.layout is not None
        each.layout = each.layout.next()
        begin(each.order.target, each.plan.source, each.layout)
        self._queue_portions(each)

    def _queue_portions(self, each: _Work) -> None:
        portions = each.portions()
        each.awaited, each.done = len(portions), []
        self._tiles += sum(portion.tiles for portion in portions)
        self._queue.put_last(portions)

    def _count(self, outcome: Outcome | None) -> None:
        self._slides_done += outcome is not None
        self._not_packed += isinstance(outcome, NotPacked)
        self._report(
            PackProgress(
                slides=len(self._works),
                slides_done=self._slides_done,
                tiles=self._tiles,
                tiles_done=self._tiles_done,
                not_packed=self._not_packed,
            )
        )


def _order(task: Task) -> Order:
    match task:
        case Order():
            return task
        case Portion():
            return task.order
        case Completion():
            return task.plan.order


def _uri(task: Task) -> str:
    return _order(task).address.uri
