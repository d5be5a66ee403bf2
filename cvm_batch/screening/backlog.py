"""The backlog: tiles that no replica has been handed yet, slide by slide. Pure.

Highest priority first, then the largest slide, one after the other, so that slides finish
early rather than all at the end. A slide that becomes urgent overtakes one that is half
handed out.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from cvm_batch.screening.work import Part, SlideSource


@dataclass
class _Fresh:
    slide: SlideSource
    tiles: int
    priority: int
    next_tile: int = 0

    @property
    def turn(self) -> tuple[int, int, int]:
        return -self.priority, -self.tiles, self.slide.number


class Backlog:
    """Slides in the order of their turn. Every operation costs the logarithm of their number."""

    def __init__(self) -> None:
        self.tiles = 0
        """Left in all slides together."""
        self._slides: dict[int, _Fresh] = {}
        # Not worth starting as things were: they count for nothing until `reconsider`.
        self._aside: set[int] = set()
        # Not to be handed out until `let_go`.
        self._on_hold: set[int] = set()
        # Holds what was dropped or has got another turn as well; the top is always true.
        self._turns: list[tuple[int, int, int]] = []

    def __len__(self) -> int:
        """Slides of which there is something to hand out."""
        return len(self._slides) - len(self._aside) - len(self._on_hold)

    def add(self, slide: SlideSource, tiles: int, priority: int = 0) -> None:
        self._slides[slide.number] = fresh = _Fresh(slide, tiles, priority)
        self.tiles += tiles
        heapq.heappush(self._turns, fresh.turn)

    def set_priority(self, number: int, priority: int) -> None:
        """Move a slide up or down; nothing happens to one that is handed out already."""
        fresh = self._slides.get(number)
        if fresh is not None and fresh.priority != priority:
            fresh.priority = priority
            heapq.heappush(self._turns, fresh.turn)

    def drop(self, number: int) -> None:
        """Leave out what has not been handed out of a slide."""
        fresh = self._slides.pop(number, None)
        if fresh is not None:
            self._aside.discard(number)
            self._on_hold.discard(number)
            self.tiles -= fresh.tiles - fresh.next_tile

    def hold(self, number: int) -> None:
        """Hand out nothing more of a slide for now."""
        if number in self._slides:
            self._on_hold.add(number)

    def let_go(self, number: int) -> None:
        """Go on with a slide that was on hold."""
        if number in self._on_hold:
            self._on_hold.remove(number)
            heapq.heappush(self._turns, self._slides[number].turn)

    @property
    def urgency(self) -> int | None:
        """The highest priority among what can be handed out; None where there is nothing."""
        fresh = self._top()
        return fresh.priority if fresh else None

    def reconsider(self) -> None:
        """Take up what was not worth starting: things have changed."""
        for number in self._aside:
            heapq.heappush(self._turns, self._slides[number].turn)
        self._aside.clear()

    def left(self, number: int) -> int:
        """Tiles of a slide that nobody was handed yet."""
        fresh = self._slides.get(number)
        return fresh.tiles - fresh.next_tile if fresh else 0

    def goes_on_after(self, part: Part) -> bool:
        """Whether what follows this part in its slide was handed to nobody yet."""
        fresh = self._slides.get(part.slide.number)
        return fresh is not None and fresh.next_tile == part.stop

    def cut(self, room: int, worth_starting: Callable[[int], bool]) -> Part | None:
        """The next part, at most ``room`` tiles (or one chunk), or None where nothing is left.

        Slides of a size that is not ``worth_starting`` are set aside.
        """
        while (fresh := self._top()) is not None:
            if fresh.next_tile or worth_starting(fresh.tiles):
                return self._cut(fresh, room)
            self._aside.add(fresh.slide.number)
        return None

    def _top(self) -> _Fresh | None:
        while self._turns:
            fresh = self._slides.get(self._turns[0][-1])
            if fresh is not None and self._stands(fresh):
                return fresh
            heapq.heappop(self._turns)
        return None

    def _stands(self, fresh: _Fresh) -> bool:
        number = fresh.slide.number
        out = number in self._aside or number in self._on_hold
        return fresh.turn == self._turns[0] and not out

    def _cut(self, fresh: _Fresh, room: int) -> Part:
        start, stop = fresh.next_tile, fresh.next_tile + room
        chunk = fresh.slide.chunk_tiles
        if stop < fresh.tiles and room >= 4 * chunk:
            # A chunk that two parts share is decoded twice.
            stop = stop // chunk * chunk
        part = Part(fresh.slide, start, min(stop, fresh.tiles))
        fresh.next_tile = part.stop
        self.tiles -= len(part)
        if part.stop == fresh.tiles:
            del self._slides[fresh.slide.number]
        return part
