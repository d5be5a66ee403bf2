"""Shows a run's progress: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

if TYPE_CHECKING:
    from cvm_batch.screening.summary import Progress as RunProgress

_LINE_EVERY_SECONDS = 15.0
_SPEED_OVER_SECONDS = 30.0


class Reporter(Protocol):
    def __call__(self, progress: RunProgress) -> None: ...


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


def describe(progress: RunProgress, speed: float | None) -> str:
    """One line: slides, tiles, speed, time left, what is wrong."""
    if not progress.replicas:
        return "starting replicas"
    parts = [
        f"{progress.slides_done:,}/{progress.slides:,} slides",
        f"{progress.tiles_done:,}/{progress.tiles:,} tiles",
    ]
    if speed:
        left = timedelta(seconds=round((progress.tiles - progress.tiles_done) / speed))
        parts += [f"{speed:,.0f} tiles/s", f"{left} left"]
    if progress.not_complete:
        parts.append(f"{progress.not_complete} not complete")
    return ", ".join(parts)


@contextmanager
def progress_on(console: Console) -> Iterator[Reporter]:
    """A function that shows a run's progress on ``console`` while the context lasts."""
    speed = _Speed()
    if not console.is_terminal:
        yield _plain_lines(console, speed)
        return
    columns = (BarColumn(bar_width=30), TextColumn("{task.percentage:>3.0f}% {task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting replicas", total=None)

        def show(progress: RunProgress) -> None:
            bar.update(
                task,
                completed=progress.tiles_done,
                total=max(1, progress.tiles),
                description=describe(progress, speed.update(progress.tiles_done)),
            )

        yield show


def _plain_lines(console: Console, speed: _Speed) -> Reporter:
    last = time.monotonic()

    def show(progress: RunProgress) -> None:
        nonlocal last
        measured = speed.update(progress.tiles_done)
        if time.monotonic() - last >= _LINE_EVERY_SECONDS:
            last = time.monotonic()
            console.print(describe(progress, measured), soft_wrap=True)

    return show
