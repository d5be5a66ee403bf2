"""What a slide is, found out in a process of its own: opening may crash a native decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import SlideInfo
from cvm_batch.archives.contents import changed_at
from cvm_batch.archives.formats import identity_of, open_archive
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.archives.places.files import as_slide_error
from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import SlideError, UsageError
from cvm_batch.isolation import Done, run_isolated
from cvm_batch.threads import Sign, in_threads

#: Listing half a million files on a busy share takes minutes, not more.
_TIMEOUT_SECONDS = 600.0
#: Slides that a worker is given at once: handing over a tiny one takes longer than opening it.
_AT_ONCE = 8
#: And those whose files a thread looks at, where that is quick.
_QUICK_AT_ONCE = 32
#: Threads that ask for files' stamps: of a share or a store, most of that time is waiting. On a
#: disk nearly none is, and threads that take the interpreter's lock from each other take four
#: times as long as one.
_ASKING = 16
#: A look at a slide's files that waits longer is one of a share. Twice in a row it must: a
#: process can be kept from its CPU for a moment.
_QUICK_SECONDS = 0.001
_IN_A_ROW = 2

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of a slide before a pixel is read; one of info and error is None."""

    address: SlideAddress
    info: SlideInfo | None = None
    error: SlideError | None = None
    identity: str | None = None
    """None where not even the slide's files could be listed."""


def describe_all(
    addresses: Iterable[SlideAddress],
    options: OpenOptions,
    *,
    jobs: int | None = None,
    at_once: int = _AT_ONCE,
    waiting: Callable[[], None] = lambda: None,
) -> Generator[Description, None, None]:
    """Describe slides, several at once, in the order given.

    ``at_once``: slides that a worker is given together. A slide that crashes or hangs its reader
    has that as its error. ``waiting``: as `run_isolated` has it. Raises UsageError.
    """
    outcomes = run_isolated(
        partial(_describe_some, options=options),
        _Some(addresses, at_once),
        jobs=jobs or usable_cpus(),
        timeout=_TIMEOUT_SECONDS,
        name=lambda some: some[0].uri,
        waiting=waiting,
    )
    with closing(outcomes):
        for outcome in outcomes:
            if isinstance(outcome, Done):
                yield from outcome.result
            elif not isinstance(outcome.error, SlideError):
                raise outcome.error
            elif len(outcome.item) > 1:
                # One of them crashed or hung the reader: each again, alone.
                yield from describe_all(
                    outcome.item, options, jobs=jobs, at_once=1, waiting=waiting
                )
            else:
                (address,) = outcome.item
                # Listing the slide's files needs no decoder.
                identity = next(identities([address], options, waiting))
                yield Description(address=address, error=outcome.error, identity=identity)


def identities(
    addresses: Iterable[SlideAddress],
    options: OpenOptions,
    waiting: Callable[[], None] = lambda: None,
) -> Generator[str | None, None, None]:
    """Identities of slides, in the order given, by their files' stamps: no slide is opened.

    None where not even the files can be listed, or their disk does not answer. ``waiting`` is
    called about once a second, and may raise to end it all.
    """
    return _asked(addresses, lambda address: _identity(address, options), waiting)


def changes(
    addresses: Iterable[SlideAddress],
    options: OpenOptions,
    waiting: Callable[[], None] = lambda: None,
) -> Generator[float | None, None, None]:
    """When slides last changed, in the order given, as `changed_at` tells it; None where it cannot
    be told, of which opening the slide says why. ``waiting``: as of `identities`."""
    return _asked(addresses, lambda address: _changed_at(address, options), waiting)


def _asked(
    addresses: Iterable[SlideAddress],
    question: Callable[[SlideAddress], R | None],
    waiting: Callable[[], None],
) -> Generator[R | None, None, None]:
    """What comes of a question about each slide's files: of many at once, where it waits. None
    of those that are not told in time."""

    def of_some(some: Sequence[SlideAddress], sign: Sign) -> tuple[list[R | None], bool]:
        began, worked = time.perf_counter(), time.thread_time()
        found = []
        for address in some:
            sign()
            found.append(question(address))
        waited = time.perf_counter() - began - (time.thread_time() - worked)
        return found, waited > _QUICK_SECONDS * len(some)

    def none(some: Sequence[SlideAddress]) -> tuple[list[R | None], bool]:
        return [None] * len(some), True

    ask = partial(in_threads, of_some, waiting=waiting, patience=_TIMEOUT_SECONDS, late=none)
    left, slow = _Some(addresses, _AT_ONCE), 0
    # None ahead: what one thread has not taken is for the many.
    with closing(ask(left, threads=1, ahead=1)) as one_by_one:
        for found, is_slow in one_by_one:
            yield from found
            slow = slow + 1 if is_slow else 0
            left.size = _AT_ONCE if is_slow else _QUICK_AT_ONCE
            if slow == _IN_A_ROW:
                break
    with closing(ask(left, threads=_ASKING)) as many:
        for found, _ in many:
            yield from found


class _Some(Iterator[tuple[SlideAddress, ...]]):
    """Some addresses at once: as many as ``size`` says by then."""

    def __init__(self, addresses: Iterable[SlideAddress], size: int) -> None:
        self.size = size
        self._left = iter(addresses)

    def __next__(self) -> tuple[SlideAddress, ...]:
        if some := tuple(islice(self._left, self.size)):
            return some
        raise StopIteration


def _describe_some(addresses: Sequence[SlideAddress], *, options: OpenOptions) -> list[Description]:
    return [_describe(address, options) for address in addresses]


def _describe(address: SlideAddress, options: OpenOptions) -> Description:
    try:
        with closing(open_archive(address, options)) as archive:
            info = archive.info
    except UsageError:  # of the run, not of this slide
        raise
    except Exception as error:
        told = as_slide_error(error, address.uri)
        return Description(address=address, error=told, identity=_identity(address, options))
    return Description(address=address, info=info, identity=info.identity)


def _identity(address: SlideAddress, options: OpenOptions) -> str | None:
    """So that a broken slide is tried again when somebody has touched it, not before."""
    with suppress(Exception):  # whatever it is, the slide has failed already
        return identity_of(address, options)
    return None


def _changed_at(address: SlideAddress, options: OpenOptions) -> float | None:
    with suppress(Exception):
        return changed_at(address, options)
    return None
