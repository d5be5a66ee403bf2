"""Slides read by Ray tasks, on any node's free CPUs, for a replica on a GPU.

To the replica it is an archive like any other, whose blocks come over the object store.
Torch is not imported here: the processes that decode do without.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from cvm_batch.archives.archive import SlideInfo, TileBlock
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.errors import ReadError, SlideError
from cvm_batch.screening.shelf import Shelf, Taken, opener
from cvm_batch.screening.work import SlideSource

T = TypeVar("T")

#: A slide may have done that: it is not to do it to the replica as well.
_DIED = (WorkerCrashedError, OutOfMemoryError, NodeDiedError)
#: A block takes a fraction of a second.
_PATIENCE_SECONDS = 30.0
#: After that, blocks are read here for so long before the cluster is tried again.
_REST_SECONDS = 60.0


class _Turns:
    """Whether to ask the cluster now. Where it was silent, all of a replica's readers rest from
    that together, and then one of them tries for the others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._silent = False
        self._try_at = 0.0

    def asks(self, now: float) -> bool:
        with self._lock:
            if self._silent and now >= self._try_at:
                self._try_at = now + _PATIENCE_SECONDS + _REST_SECONDS
                return True
            return not self._silent

    def answered(self) -> None:
        with self._lock:
            self._silent = False

    def silent(self, now: float) -> None:
        with self._lock:
            self._silent, self._try_at = True, now + _REST_SECONDS


#: Of this process.
_TURNS = _Turns()


class ClusterArchive:
    """A slide that other processes read. Each of them checks that it is the planned one.

    What none of them has read in half a minute, since their nodes have left or others hold
    their CPUs, is read here, and so is what they fail over for a reason that is not the slide's.
    """

    def __init__(self, slide: SlideSource, options: OpenOptions) -> None:
        self._slide = slide
        self._options = options

    @cached_property
    def info(self) -> SlideInfo:
        return self.describe()

    def describe(self) -> SlideInfo:
        return self._done(describe_slide, _DESCRIBE)

    def read(self, start: int, stop: int) -> TileBlock:
        """The block's arrays are read-only where they lie in the object store."""
        return self._done(read_slide, _READ, start, stop)

    def close(self) -> None:
        """Nothing is open here: each process keeps a few archives open between blocks."""

    def _done(self, here: Callable[..., T], there: Any, *arguments: int) -> T:
        if not _TURNS.asks(time.monotonic()):
            return here(self._slide, self._options, *arguments)
        task = there.remote(self._slide, self._options, *arguments)
        answered, _ = ray.wait([task], timeout=_PATIENCE_SECONDS)
        if not answered:
            _TURNS.silent(time.monotonic())
            ray.cancel(task, force=True)  # it may hang, and would keep its CPU
            return here(self._slide, self._options, *arguments)
        _TURNS.answered()
        try:
            found: T = ray.get(task)
            return found
        except RayTaskError as error:
            if isinstance(error.cause, SlideError):
                raise error.cause from None
        except _DIED as error:
            raise ReadError(
                f"The process that read {self._slide.uri} died, and so did the one that tried "
                f"again: {error}. Look at the slide's files, and at the memory of the nodes."
            ) from error
        except RayError:
            pass
        # A full object store or disk, a package that a node lacks: reading it here tells whether
        # it is the slide.
        return here(self._slide, self._options, *arguments)


def describe_slide(slide: SlideSource, options: OpenOptions) -> SlideInfo:
    return _with_archive(slide, options, lambda taken: taken.info)


def read_slide(slide: SlideSource, options: OpenOptions, start: int, stop: int) -> TileBlock:
    return _with_archive(slide, options, lambda taken: taken.archive.read(start, stop))


def _with_archive(slide: SlideSource, options: OpenOptions, use: Callable[[Taken], T]) -> T:
    shelf = _shelf(options)
    taken = shelf.take(slide)
    spoiled = True
    try:
        found = use(taken)
        spoiled = False
    finally:
        shelf.give_back(taken, spoiled=spoiled)
    return found


@cache
def _shelf(options: OpenOptions) -> Shelf:
    """The archives that this process has open."""
    return Shelf(opener(options))


# A task whose process dies is tried once more by Ray; an error of the slide's is not.
_DESCRIBE = ray.remote(num_cpus=1, max_retries=1)(describe_slide)
_READ = ray.remote(num_cpus=1, max_retries=1)(read_slide)
