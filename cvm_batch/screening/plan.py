"""The plan: which slides there are, what is done already, and what is to be classified.

Planning reads listings and metadata, never pixels. Of a slide that an earlier run settled it
looks at the files' stamps alone, unless it is asked to tell slides by what their files hold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import NamedTuple

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import SlideInfo
from cvm_batch.archives.contents import Content
from cvm_batch.archives.contents import contents as contents_of_all
from cvm_batch.archives.describing import Description, changes, describe_all, identities
from cvm_batch.archives.discovery import Ignored, discover
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.archives.places.files import changed
from cvm_batch.archives.tables.slides import ListedSlide, Preparation
from cvm_batch.errors import NoSlidesError, SlideError
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision
from cvm_batch.model.preprocessing import PREPROCESSING_VERSION
from cvm_batch.results.schemas import SCHEMA_VERSION
from cvm_batch.results.slides import History, Settled
from cvm_batch.screening.work import Failure

_UNLISTED = (
    "It is not, or no longer, among the inputs of the newest run: submit those that hold it."
)


@dataclass(frozen=True, kw_only=True)
class PlannedSlide:
    """A slide to classify, or one that failed before a pixel was read."""

    slide_id: str
    address: SlideAddress
    info: SlideInfo | None
    failure: Failure | None = None
    identity: str | None = None
    result_key: str | None = None
    priority: int = 0
    """Higher goes first."""
    preparation: Preparation | None = None
    further: Mapping[str, str] = field(default_factory=dict)
    """Columns of the manifest that only pass through."""


#: Of each slide by its slide_id, where slides are told by what their files hold.
Contents = dict[str, Content | SlideError]


class FreshSlide(NamedTuple):
    """A slide that was written, or came, a moment ago: it may not be whole yet."""

    slide_id: str
    changed_at: float
    """Seconds since the epoch."""


class SettledSlide(NamedTuple):
    """A slide that an earlier run has dealt with."""

    slide_id: str
    found: Settled


@dataclass(frozen=True, kw_only=True)
class Plan:
    slides: tuple[PlannedSlide, ...]
    """To classify, in the order in which they go out: by priority, then largest first."""
    failed: tuple[PlannedSlide, ...]
    """Those that cannot even be opened."""
    settled: tuple[SettledSlide, ...]
    fresh: tuple[FreshSlide, ...] = ()
    """Left for a later run."""
    ignored: tuple[Ignored, ...] = ()
    """Files and folders that hold no slide, and why."""
    not_planned: int = 0
    """Slides that are left since the run was to stop before all were looked at."""

    @property
    def slide_count(self) -> int:
        """Slides that this run is to end, one way or another."""
        return len(self.slides) + len(self.failed) + self.not_planned

    @cached_property
    def tiles(self) -> int:
        return sum(slide.info.tiles for slide in self.slides if slide.info is not None)

    def prioritised(self, priorities: Sequence[tuple[str, int]]) -> Plan:
        """This plan, with a priority for slides whose slide_id is, or matches, a pattern; where
        several do, the last one holds."""
        if not priorities:
            return self
        slides = [_prioritised(slide, priorities) for slide in self.slides]
        failed = [_prioritised(slide, priorities) for slide in self.failed]
        return replace(self, slides=tuple(sorted(slides, key=_turn)), failed=tuple(failed))

    def with_priorities(self, priorities: Mapping[str, int]) -> Plan:
        """This plan, with a priority for slides by their slide_id."""
        if not priorities:
            return self

        def asked(slide: PlannedSlide) -> PlannedSlide:
            return replace(slide, priority=priorities.get(slide.slide_id, slide.priority))

        slides = tuple(sorted(map(asked, self.slides), key=_turn))
        return replace(self, slides=slides, failed=tuple(map(asked, self.failed)))

    def with_unlisted(self, history: History) -> Plan:
        """This plan of a retry, and what is not complete and cannot be taken up: else it would
        seem that all was."""
        if self.not_planned:
            return self
        listed = {slide.slide_id for slide in (*self.slides, *self.failed)}
        listed |= {slide.slide_id for slide in self.fresh}
        unlisted = [
            SettledSlide(slide_id, replace(found, detail=_UNLISTED))
            for slide_id, found in history.failed.items()
            if slide_id not in listed
        ]
        return replace(self, settled=(*self.settled, *unlisted))

    def joined(self, further: Plan) -> Plan:
        """This plan and, behind it, one for further slides: what that says of a slide holds."""
        known = {slide.slide_id for slide in (*further.slides, *further.failed)}
        known |= {slide.slide_id for slide in further.settled}
        known |= {slide.slide_id for slide in further.fresh}
        settled = [slide for slide in self.settled if slide.slide_id not in known]
        fresh = [slide for slide in self.fresh if slide.slide_id not in known]
        return Plan(
            slides=self.slides + further.slides,
            failed=self.failed + further.failed,
            settled=(*settled, *further.settled),
            fresh=(*fresh, *further.fresh),
            ignored=self.ignored + further.ignored,
            not_planned=self.not_planned + further.not_planned,
        )


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
        if contents is not None:
            # Last, since what is being written need not be read.
            unread = [slide for slide in left if slide.slide_id not in contents]
            contents |= _contents(unread, options, go_on)
        go_on()
        if left:
            work_waits()
        addresses = (slide.address for slide in left)
        with closing(describe_all(addresses, options, waiting=go_on)) as descriptions:
            for listed in left:
                go_on()
                planned = _planned(listed, next(descriptions), contents, keys)
                (failed if planned.failure else slides).append(planned)
        left = []
    except _StoppedError:
        slides, failed = [], []
    slides.sort(key=_turn)
    return Plan(
        slides=tuple(slides),
        failed=tuple(failed),
        settled=tuple(settled),
        fresh=tuple(fresh),
        not_planned=len(_without(left, (*settled, *fresh))),
    )


class _StoppedError(Exception):
    """The run is to stop before all slides were looked at."""


def fits(pattern: str, slide_id: str) -> bool:
    """Whether a slide is meant by its slide_id or a pattern of such."""
    return slide_id == pattern or fnmatchcase(slide_id, pattern)


def _prioritised(slide: PlannedSlide, priorities: Sequence[tuple[str, int]]) -> PlannedSlide:
    fitting = [priority for pattern, priority in priorities if fits(pattern, slide.slide_id)]
    return replace(slide, priority=fitting[-1]) if fitting else slide


def _turn(slide: PlannedSlide) -> tuple[int, int]:
    return -slide.priority, -slide.info.tiles if slide.info else 0


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


def _planned(
    listed: ListedSlide, description: Description, contents: Contents | None, keys: _Keys
) -> PlannedSlide:
    identity, error = description.identity, description.error
    if contents is not None:
        content = contents[listed.slide_id]
        if not isinstance(content, Content):
            identity, error = None, error or content
        elif content.stamps != identity:
            identity, error = None, error or changed(listed.address.uri)
        else:
            identity = content.identity
    return PlannedSlide(
        slide_id=listed.slide_id,
        address=listed.address,
        info=description.info if error is None else None,
        failure=Failure.of(error) if error else None,
        identity=identity,
        result_key=identity and keys.key(identity, listed.address),
        priority=listed.priority,
        preparation=listed.preparation,
        further=listed.further,
    )
