"""The plan of a run: which slides there are, what is done already, and what is to be classified."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import NamedTuple

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import SlideInfo
from cvm_batch.archives.discovery import Ignored
from cvm_batch.archives.tables.slides import Preparation
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

        def last(slide_id: str) -> int | None:
            fitting = [priority for pattern, priority in priorities if fits(pattern, slide_id)]
            return fitting[-1] if fitting else None

        return self.with_priorities(last)

    def with_priorities(self, priority_of: Callable[[str], int | None]) -> Plan:
        """This plan, with a priority by slide_id for those slides that get one."""

        def asked(slide: PlannedSlide) -> PlannedSlide:
            priority = priority_of(slide.slide_id)
            return slide if priority is None else replace(slide, priority=priority)

        slides = tuple(sorted(map(asked, self.slides), key=turn))
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


def fits(pattern: str, slide_id: str) -> bool:
    """Whether a slide is meant by its slide_id or a pattern of such."""
    return slide_id == pattern or fnmatchcase(slide_id, pattern)


def turn(slide: PlannedSlide) -> tuple[int, int]:
    """By what slides are sorted: priority, then the largest first."""
    return -slide.priority, -slide.info.tiles if slide.info else 0
