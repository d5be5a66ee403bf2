"""How a plan is made.

Planning reads listings and metadata, never pixels. Of a slide that an earlier run settled it
looks at the files' stamps alone, unless it is asked to tell slides by what their files hold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.contents import Content
from cvm_batch.archives.contents import contents as contents_of_all
from cvm_batch.archives.describing import Description, changes, describe_all, identities
from cvm_batch.archives.discovery import discover
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.archives.places.files import changed
from cvm_batch.archives.tables.slides import ListedSlide
from cvm_batch.errors import NoSlidesError, SlideError
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision
from cvm_batch.model.preprocessing import PREPROCESSING_VERSION
from cvm_batch.results.schemas import SCHEMA_VERSION
from cvm_batch.results.slides import History
from cvm_batch.screening.plan import FreshSlide, Plan, PlannedSlide, SettledSlide, turn
from cvm_batch.screening.work import Failure

#: Of each slide by its slide_id, where slides are told by what their files hold.
Contents = dict[str, Content | SlideError]


def make_plan(inputs: Sequence[str], planner: Callable[[Sequence[ListedSlide]], Plan]) -> Plan:
    """Find the slides among ``inputs``, and plan them by `plan_slides`.

    Raises UsageError: NoSlidesError, SlideIdCollisionError or that of a manifest.
    """
    found = discover(inputs)
    if not found.slides:
        raise NoSlidesError(
            f"No slides found in {', '.join(inputs)}. A slide is a folder, .zip or .tar of cell "
            "images, a zarr archive with an array called tiles, or a whole-slide image with a "
            "cells table beside it."
        )
    return replace(planner(found.slides), ignored=found.ignored)


def plan_slides(
    listed_slides: Sequence[ListedSlide],
    *,
    bundle: Bundle,
    precision: Precision,
    history: History,
    options: OpenOptions,
    retry: bool = False,
    rehash: bool = False,
    quiet_since: float | None = None,
    work_waits: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Plan:
    """Tell what is to be classified from what is done, and what cannot even be opened.

    ``retry``: take up what is not complete, for whatever reason, and nothing else. ``rehash``:
    tell slides by what their files hold, all of which is read. ``quiet_since``: slides whose
    files changed later than that, in seconds since the epoch, are left as `Plan.fresh`.
    ``work_waits`` is called once it is known that some slides are not settled yet, before they
    are opened, which takes the longest. Once ``should_stop`` says so, asked before each slide
    and while one takes its time, no further one is looked at, and nothing is planned; of what was
    found until then nothing is lost. Raises UsageError.
    """
    keys = _Keys(bundle, precision, options)
    settled: list[SettledSlide] = []
    fresh: list[FreshSlide] = []
    slides: list[PlannedSlide] = []
    failed: list[PlannedSlide] = []
    left: Sequence[ListedSlide] = [
        slide for slide in listed_slides if not retry or slide.slide_id in history.failed
    ]

    def go_on() -> None:
        if should_stop():
            raise _StoppedError

    try:
        contents: Contents | None = {} if rehash else None
        if not retry:
            known = [slide for slide in left if history.knows(slide.slide_id)]
            if contents is not None:
                contents |= _contents(known, options, go_on)
            settled += _settled(known, history, keys, contents, go_on)
            left = _without(left, settled)
        fresh += _fresh(left, options, quiet_since, go_on)
        left = _without(left, fresh)
        readable = left
        if contents is not None:
            # Last, since what is being written need not be read.
            unread = [slide for slide in left if slide.slide_id not in contents]
            contents |= _contents(unread, options, go_on)
            readable = [one for one in left if isinstance(contents[one.slide_id], Content)]
            failed += _unreadable(left, contents)
        go_on()
        if readable:
            work_waits()
        addresses = (slide.address for slide in readable)
        with closing(describe_all(addresses, options, waiting=go_on)) as descriptions:
            for listed in readable:
                go_on()
                planned = _planned(listed, next(descriptions), contents, keys)
                (failed if planned.failure else slides).append(planned)
        left = []
    except _StoppedError:
        slides, failed = [], []
    slides.sort(key=turn)
    return Plan(
        slides=tuple(slides),
        failed=tuple(failed),
        settled=tuple(settled),
        fresh=tuple(fresh),
        not_planned=len(_without(left, (*settled, *fresh))),
    )


class _StoppedError(Exception):
    """The run is to stop before all slides were looked at."""


class _Keys:
    """Result keys: digests of all that decides a slide's result. The backend is recorded, not
    keyed."""

    def __init__(self, bundle: Bundle, precision: Precision, options: OpenOptions) -> None:
        self.options = options
        self._of_all_slides = {
            "opening": options.decisive(),
            "bundle": bundle.digest,
            "preprocessing": PREPROCESSING_VERSION,
            "precision": str(precision),
            "results": SCHEMA_VERSION,
        }

    def key(self, slide_identity: str, address: SlideAddress) -> str:
        decisive = self._of_all_slides | {
            "slide_identity": slide_identity,
            # A manifest that is corrected may turn a failure into a result, or the reverse.
            "sha256": address.sha256,
            "cells_expected": address.cells_expected,
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _contents(
    slides: Sequence[ListedSlide], options: OpenOptions, go_on: Callable[[], None]
) -> Contents:
    addresses = (slide.address for slide in slides)
    with closing(contents_of_all(addresses, options, waiting=go_on)) as found:
        return {slide.slide_id: one for slide, one in zip(slides, found, strict=True)}


def _without(
    slides: Sequence[ListedSlide], known: Sequence[SettledSlide | FreshSlide]
) -> Sequence[ListedSlide]:
    names = {slide.slide_id for slide in known}
    return [slide for slide in slides if slide.slide_id not in names] if names else slides


def _settled(
    known: Sequence[ListedSlide],
    history: History,
    keys: _Keys,
    contents: Contents | None,
    go_on: Callable[[], None],
) -> Iterator[SettledSlide]:
    """Of slides that an earlier run dealt with those that have not changed since."""
    with closing(_identities(known, keys.options, contents, go_on)) as found:
        for slide, identity in zip(known, found, strict=True):
            go_on()
            if identity is not None:
                stands = history.settled(slide.slide_id, keys.key(identity, slide.address))
                if stands is not None:
                    yield SettledSlide(slide.slide_id, stands)


def _identities(
    slides: Sequence[ListedSlide],
    options: OpenOptions,
    contents: Contents | None,
    go_on: Callable[[], None],
) -> Generator[str | None, None, None]:
    if contents is None:
        yield from identities((slide.address for slide in slides), options, go_on)
        return
    for slide in slides:
        content = contents[slide.slide_id]
        yield content.identity if isinstance(content, Content) else None


def _fresh(
    slides: Sequence[ListedSlide],
    options: OpenOptions,
    quiet_since: float | None,
    go_on: Callable[[], None],
) -> Iterator[FreshSlide]:
    """Those that have changed since then."""
    if quiet_since is None:
        return
    addresses = (slide.address for slide in slides)
    with closing(changes(addresses, options, go_on)) as found:
        for slide, changed_at in zip(slides, found, strict=True):
            go_on()
            if changed_at is not None and changed_at > quiet_since:
                yield FreshSlide(slide.slide_id, changed_at)


def _unreadable(slides: Sequence[ListedSlide], contents: Contents) -> Iterator[PlannedSlide]:
    """Those whose files cannot be read: they need not be opened."""
    for listed in slides:
        error = contents[listed.slide_id]
        if isinstance(error, SlideError):
            yield _as_listed(listed, info=None, failure=Failure.of(error))


def _planned(
    listed: ListedSlide, description: Description, contents: Contents | None, keys: _Keys
) -> PlannedSlide:
    identity, error = description.identity, description.error
    content = contents[listed.slide_id] if contents is not None else None
    if isinstance(content, Content):
        if content.stamps == identity:
            identity = content.identity
        else:
            identity, error = None, error or changed(listed.address.uri)
    return _as_listed(
        listed,
        info=description.info if error is None else None,
        failure=Failure.of(error) if error else None,
        identity=identity,
        result_key=identity and keys.key(identity, listed.address),
    )


def _as_listed(listed: ListedSlide, **found: Any) -> PlannedSlide:
    return PlannedSlide(
        slide_id=listed.slide_id,
        address=listed.address,
        priority=listed.priority,
        preparation=listed.preparation,
        further=listed.further,
        **found,
    )
