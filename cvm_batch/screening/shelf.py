"""Archives kept open between the parts of their slides, and watched for changes.

Opening and checking an archive costs a look at each of its files. A slide of a hundred
thousand crops is read in hundreds of parts, so neither may happen in each of them.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from cvm_batch import signs
from cvm_batch.archives.archive import SlideArchive, SlideInfo
from cvm_batch.archives.formats import open_archive
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.errors import InputChangedError
from cvm_batch.screening.work import SlideSource

#: Archives that stay open though no part is being read from them.
_KEEP = 4
#: A check this cheap is made at the start of every part, unless it has just opened the archive,
#: and at its end; a dearer one takes at most one twentieth of the time.
_CHEAP_CHECK_SECONDS = 0.05
_REST_AFTER_CHECK = 20


@dataclass(eq=False)
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    archive: SlideArchive | None = None
    info: SlideInfo | None = None
    users: int = 0
    spoiled: bool = False
    check_due: float = 0.0


class Taken(NamedTuple):
    """An archive in use; by then its slide may have been opened anew for others."""

    slide: SlideSource
    archive: SlideArchive
    info: SlideInfo
    entry: _Entry


def opener(options: OpenOptions) -> Callable[[SlideSource], SlideArchive]:
    """How slides are opened where they are read."""
    return lambda slide: open_archive(slide.address, options)


class Shelf:
    """Open archives by slide. Safe for several threads at once."""

    def __init__(self, open_slide: Callable[[SlideSource], SlideArchive]) -> None:
        self._open_slide = open_slide
        self._entries: OrderedDict[SlideSource, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, slide: SlideSource) -> Taken:
        """The slide's archive, open and as planned, until `give_back`. Raises SlideError."""
        with self._lock:
            entry = self._entries.setdefault(slide, _Entry())
            self._entries.move_to_end(slide)
            entry.users += 1
        try:
            with entry.lock:
                if entry.archive is None:
                    entry.archive = self._open_slide(slide)
                    signs.note()
                if entry.info is None:  # just opened, or whoever opened it was refused
                    info = entry.info = _as_planned(entry.archive.info, slide)
                else:
                    info = self._check(slide, entry)
        except BaseException:
            self._release(slide, entry, spoiled=True)
            raise
        return Taken(slide, entry.archive, info, entry)

    def check(self, taken: Taken) -> None:
        """Raise InputChangedError where the slide is no longer as planned."""
        with taken.entry.lock:
            self._check(taken.slide, taken.entry)

    def give_back(self, taken: Taken, *, spoiled: bool) -> None:
        """End one `take`. After an error (``spoiled``) the archive is not used again."""
        self._release(taken.slide, taken.entry, spoiled=spoiled)

    def close(self) -> None:
        """Close all archives, also those that are taken."""
        with self._lock:
            entries, self._entries = list(self._entries.values()), OrderedDict()
        for entry in entries:
            _close(entry)

    def _check(self, slide: SlideSource, entry: _Entry) -> SlideInfo:
        assert entry.archive is not None
        assert entry.info is not None  # since it was taken
        started = time.monotonic()
        if started >= entry.check_due:
            entry.info = _as_planned(entry.archive.describe(), slide)
            cost = time.monotonic() - started
            if cost > _CHEAP_CHECK_SECONDS:
                entry.check_due = started + _REST_AFTER_CHECK * cost
        return entry.info

    def _release(self, slide: SlideSource, entry: _Entry, *, spoiled: bool) -> None:
        with self._lock:
            entry.users -= 1
            entry.spoiled = entry.spoiled or spoiled
            if entry.spoiled and self._entries.get(slide) is entry:
                del self._entries[slide]  # the next `take` opens the archive anew
            unused = [entry] if entry.spoiled and not entry.users else []
            idle = [key for key, other in self._entries.items() if not other.users]
            unused += [self._entries.pop(key) for key in idle[: max(0, len(idle) - _KEEP)]]
        for old in unused:
            _close(old)


def _as_planned(info: SlideInfo, slide: SlideSource) -> SlideInfo:
    if info.identity != slide.identity:
        raise InputChangedError(
            f"{slide.uri} changed after the run was planned. Submit again once it is "
            "written to its end."
        )
    return info


def _close(entry: _Entry) -> None:
    if entry.archive is not None:
        entry.archive.close()
