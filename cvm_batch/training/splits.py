"""Which cells train, which choose the epoch, and which are held back to the end.

`grouped_split` keeps each group (a microscope frame) on one side. Cells of one frame
share stain, focus and patient: torn apart, they flatter the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cvm_batch.errors import DataSetError

SIDES = ("train", "validation", "test")
DEFAULT_SHARES = (0.6, 0.2, 0.2)
_ATTEMPTS = 100


@dataclass(frozen=True, kw_only=True)
class Split:
    """Positions of cells, ascending; each cell is on exactly one side."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    """Chooses the epoch, and nothing else is tuned on it."""
    test: NDArray[np.int64]
    """Held back: the figures that are reported."""
    seed: int

    def sides(self) -> dict[str, NDArray[np.int64]]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def grouped_split(
    labels: NDArray[np.int64],
    groups: Sequence[str],
    *,
    seed: int,
    shares: tuple[float, float, float] = DEFAULT_SHARES,
) -> Split:
    """Share the groups out so that each class comes near ``shares`` on every side.

    ``labels`` [n] are class positions. Deterministic by seed: of many greedy divisions,
    each in another random order, the best balanced. Raises DataSetError where a side
    would stay empty.
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.zeros((len(names), int(labels.max()) + 1))
    np.add.at(counts, (group_of, labels), 1)
    counts = counts[:, counts.any(axis=0)]
    side_of = _divide(counts, np.asarray(shares), np.random.default_rng(seed))
    if empty := [name for side, name in enumerate(SIDES) if side not in side_of]:
        raise DataSetError(
            f"{len(labels)} cells in {len(names)} groups leave nothing for {', '.join(empty)}: "
            "a group is never torn apart. Give cells of more groups (frames)."
        )
    train, validation, test = (
        np.flatnonzero(side_of[group_of] == side) for side in range(len(SIDES))
    )
    return Split(train=train, validation=validation, test=test, seed=seed)


def _divide(
    counts: NDArray[np.float64], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """The side [groups] of each group with ``counts`` [groups, classes]."""
    # As shares of each class: so a frame's five ASC-H decide its side, not its fifty NILM.
    parts = counts / counts.sum(axis=0)
    attempts = [_place(parts, shares, _order(counts, rng)) for _ in range(_ATTEMPTS)]
    return min(attempts, key=lambda side_of: _badness(side_of, parts, shares))


def _place(
    parts: NDArray[np.float64], shares: NDArray[np.float64], order: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Put one group after the other on the side that it brings nearest to its shares."""
    lacking = np.tile(shares[:, None], (1, parts.shape[1]))  # [sides, classes]
    side_of = np.empty(len(parts), dtype=np.int64)
    for group in order:
        # The fall of |lacking|² if the group went there, for every side at once.
        side = int(np.argmax((2 * lacking - parts[group]) @ parts[group]))
        side_of[group] = side
        lacking[side] -= parts[group]
    return side_of


def _badness(
    side_of: NDArray[np.int64], parts: NDArray[np.float64], shares: NDArray[np.float64]
) -> tuple[int, float]:
    """First the classes that a side knows from fewer than two groups, then the distance.

    Figures from a single frame tell of that frame, however many cells it has.
    """
    on_side = np.arange(len(shares))[:, None] == side_of  # [sides, groups]
    groups = on_side.astype(np.int64) @ (parts > 0)  # [sides, classes]
    missed = shares[:, None] - on_side @ parts
    return int(np.maximum(2 - groups, 0).sum()), float((missed**2).sum())


def _order(counts: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Groups by the rarest class in them, and within it by size, loosely, the largest first."""
    class_size = np.where(counts > 0, counts.sum(axis=0), np.inf)
    size = np.take_along_axis(counts, class_size.argmin(axis=1)[:, None], axis=1)[:, 0]
    order: NDArray[np.int64] = np.lexsort((-size * rng.random(len(counts)), class_size.min(axis=1)))
    return order
