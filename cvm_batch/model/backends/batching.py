"""How many tiles a device takes at once, found by trying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_SIZES = (32, 64, 128, 256, 512, 1024)
#: A larger batch has to gain this much to be worth its memory and its latency.
_WORTHWHILE = 1.03


@dataclass(frozen=True)
class Trial:
    """What a batch of some size took."""

    tiles_per_second: float
    bytes: int


def best_batch_size(attempt: Callable[[int], Trial | None], *, budget: int) -> int:
    """The smallest size that no larger one beats by more than a few per cent.

    ``attempt`` answers None where memory does not suffice. ``budget``: bytes that one batch
    may take. 1 where not even the smallest fits.
    """
    best, speed = 0, 0.0
    for size in _SIZES:
        trial = attempt(size)
        if trial is None or trial.bytes > budget:
            break
        if trial.tiles_per_second < speed * _WORTHWHILE:
            break
        best, speed = size, trial.tiles_per_second
    return best or 1
