"""What a run may be asked while it goes on: that slides go first, or that further ones are taken.

Slides become urgent by `cvm-batch prioritise`, or by their row in a manifest, which is read
again whenever it has changed. A row that is new there is a slide more.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cvm_batch.archives.discovery import is_manifest, read_manifest
from cvm_batch.archives.places.files import FileStamp
from cvm_batch.archives.places.place import Place, place_of
from cvm_batch.archives.tables.slides import ListedSlide
from cvm_batch.errors import CvmBatchError
from cvm_batch.logs import log_event
from cvm_batch.screening.plan import Plan, fits

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_SECONDS = 5.0
#: Times what a look took, until the next one for the sake of slides that have yet to settle.
_REST = 20
_MOST_REST_SECONDS = 60.0


@dataclass(frozen=True)
class Prioritise:
    """Slides whose slide_id is, or matches, ``pattern`` get a priority; higher goes first."""

    pattern: str
    priority: int

    def of(self, slide_id: str) -> int | None:
        """What that slide gets; None where it is not meant."""
        return self.priority if fits(self.pattern, slide_id) else None


@dataclass(frozen=True)
class ListAnew:
    """Rows of a manifest whose priorities have changed, by slide_id: one wish, since a night
    may have them by the thousand."""

    priorities: Mapping[str, int]

    def of(self, slide_id: str) -> int | None:
        return self.priorities.get(slide_id)


@dataclass(frozen=True)
class TakeFurther:
    """Slides that the run did not know of when it began."""

    plan: Plan


Wish = Prioritise | ListAnew | TakeFurther


class WatchedManifests:
    """Looks at the manifests among a run's inputs, in a thread of its own: what is new there
    has to be opened before it is planned."""

    def __init__(
        self,
        inputs: Sequence[str],
        plan: Plan,
        plan_further: Callable[[Sequence[ListedSlide], Callable[[], bool]], Plan],
    ) -> None:
        """``plan``: what the run knows already, with priorities as they are listed: what else
        was asked of the run stands until a row changes."""
        self._plan_further = plan_further
        self._wishes: queue.SimpleQueue[Wish] = queue.SimpleQueue()
        self._listed: dict[str, int | None] = {settled.slide_id: None for settled in plan.settled}
        """What is known already with the priorities by its rows; None where they are no matter."""
        for slide in (*plan.slides, *plan.failed):
            self._listed[slide.slide_id] = slide.priority
        self._fresh = {slide.slide_id for slide in plan.fresh}
        # Not yet seen: a manifest may have changed since it was planned from.
        self._seen: dict[Place, FileStamp | None] = {
            place: None for place in map(place_of, inputs) if is_manifest(place)
        }
        self._again = dict.fromkeys(self._seen, -math.inf)
        """When fresh slides are looked at again."""
        self._last_look: dict[Place, FileStamp | None] = {}
        self.trouble: str | None = None
        """Why a manifest could not be looked at just now; until it can."""
        self._told: dict[Place, tuple[FileStamp | None, str]] = {}
        self._closed = threading.Event()
        if self._seen:
            threading.Thread(target=self._watch, name="manifests", daemon=True).start()

    def wishes(self) -> list[Wish]:
        """What has come up since the last call."""
        found: list[Wish] = []
        with suppress(queue.Empty):
            while True:
                found.append(self._wishes.get_nowait())
        return found

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_EVERY_SECONDS):
            troubles = [self._try(place) for place in list(self._seen)]
            self.trouble = next(filter(None, troubles), None)

    def _try(self, place: Place) -> str | None:
        """Look at a manifest; what is wrong where it cannot be used."""
        stamp = None
        try:
            stamp = place.stamp()
            # Half a row may be a row as well, of a slide that is not there: what is being written
            # is left alone until it has stood still for a while.
            stands = stamp == self._last_look.get(place)
            self._last_look[place] = stamp
            is_due = stamp != self._seen[place] or time.monotonic() >= self._again[place]
            if stamp is not None and stands and is_due:
                self._look(place, stamp)
        # Half written all the same, or out of reach for a moment: the next look may find it
        # whole. Whatever else it is must not end this thread, which nobody would miss.
        except Exception as error:
            trouble = str(error) if isinstance(error, CvmBatchError) else repr(error)
            if self._told.get(place) != (stamp, trouble):  # once, not every few seconds
                self._told[place] = (stamp, trouble)
                log_event(_LOG, "manifest not used", manifest=str(place), detail=trouble)
            return trouble
        return None

    def _look(self, place: Place, stamp: FileStamp) -> None:
        began = time.monotonic()
        is_due = began >= self._again[place]
        listed = read_manifest(place)
        further = [
            one
            for one in listed
            if one.slide_id not in self._listed or (is_due and one.slide_id in self._fresh)
        ]
        plan = self._plan_further(further, self._closed.is_set) if further else None
        if self._closed.is_set():
            return
        fresh = {slide.slide_id for slide in plan.fresh} if plan else set()
        if plan and (len(fresh) < len(further) or not fresh <= self._fresh):
            self._wishes.put(TakeFurther(plan))
        self._fresh = self._fresh.difference(one.slide_id for one in further) | fresh
        changed: dict[str, int] = {}
        for slide in listed:
            before = self._listed.setdefault(slide.slide_id, slide.priority)
            if before not in (None, slide.priority):
                self._listed[slide.slide_id] = changed[slide.slide_id] = slide.priority
        if changed:
            self._wishes.put(ListAnew(changed))
        self._seen[place] = stamp
        # Until they have settled they are looked at again, though the manifest stays as it is. A
        # look that others were part of may have been long for their sake.
        now = time.monotonic()
        rest = _REST * (now - began)
        if len(fresh) < len(further):
            rest = min(rest, _MOST_REST_SECONDS)
        again = now + rest if fresh else math.inf
        self._again[place] = again if is_due else min(again, self._again[place])
