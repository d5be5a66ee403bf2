"""Shows a run's progress: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

if TYPE_CHECKING:
    from cvm_batch.screening.summary import Progress as RunProgress

STARTING_REPLICAS = "starting replicas"
_LINE_EVERY_SECONDS = 15.0
_SPEED_OVER_SECONDS = 30.0


class TilesDone(Protocol):
    """Progress of any work on tiles."""

    @property
    def tiles(self) -> int: ...

    @property
    def tiles_done(self) -> int: ...


P = TypeVar("P", bound=TilesDone)
#: One line of a progress and the speed in tiles per second, if that is known.
Describe = Callable[[P, float | None], str]
Reporter = Callable[[P], None]


class _Speed:
    """Tiles per second over the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def update(self, tiles_done: int) -> float | None:
        now = time.monotonic()
        self._seen.append((now, tiles_done))
        while now - self._seen[0][0] > _SPEED_OVER_SECONDS:
            self._seen.popleft()
        (then, tiles_then) = self._seen[0]
        if now - then < 1 or tiles_done == tiles_then:
            return None
        return (tiles_done - tiles_then) / (now - then)


def describe_run(progress: RunProgress, speed: float | None) -> str:
    """One line: slides, tiles, speed, time left, what is wrong."""
    if not progress.replicas:
        return STARTING_REPLICAS
    parts = [
        f"{progress.slides_done:,}/{progress.slides:,} slides",
        f"{progress.tiles_done:,}/{progress.tiles:,} tiles",
    ]
    parts += speed_and_time_left(progress, speed)
    if progress.not_complete:
        parts.append(f"{progress.not_complete} not complete")
    return ", ".join(parts)


def speed_and_time_left(progress: TilesDone, speed: float | None) -> list[str]:
    if not speed:
        return []
    left = timedelta(seconds=round((progress.tiles - progress.tiles_done) / speed))
    return [f"{speed:,.0f} tiles/s", f"{left} left"]


@contextmanager
def progress_on(console: Console, describe: Describe[P], start: str) -> Iterator[Reporter[P]]:
    """A function that shows progress on ``console`` while the context lasts.

    ``describe`` makes a line of it, ``start`` is shown before there is any.
    """
    speed = _Speed()
    if not console.is_terminal:
        yield _plain_lines(console, describe, speed)
        return
    columns = (BarColumn(bar_width=30), TextColumn("{task.percentage:>3.0f}% {task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(start, total=None)

        def show(progress: P) -> None:
            bar.update(
                task,
                completed=progress.tiles_done,
                total=max(1, progress.tiles),
                description=describe(progress, speed.update(progress.tiles_done)),
            )

        yield show


def _plain_lines(console: Console, describe: Describe[P], speed: _Speed) -> Reporter[P]:
    last = time.monotonic()

    def show(progress: P) -> None:
        nonlocal last
        measured = speed.update(progress.tiles_done)
        if time.monotonic() - last >= _LINE_EVERY_SECONDS:
            last = time.monotonic()
            console.print(describe(progress, measured), soft_wrap=True)

    return show
