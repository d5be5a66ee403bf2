"""Which cells train, which choose the epoch, and which are held back to the end.

`grouped_split` keeps each group (a microscope frame) on one side. Cells of one frame
share stain, focus and patient: torn apart, they flatter the figures. `paper_split` tears
them apart, as the paper did, and exists to be compared with it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvm_batch.errors import DataSetError

SIDES = ("train", "validation", "test")
DEFAULT_SHARES = (0.6, 0.2, 0.2)
_ATTEMPTS = 100


class SplitKind(StrEnum):
    GROUPED = "grouped"
    """No microscope frame, cluster image or file on both sides."""
    PAPER = "paper"
    """Cells at random, class by class (Tables 1, 4 and 5)."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Positions of cells, ascending; each cell is on exactly one side."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    """Chooses the epoch, and nothing else is tuned on it."""
    test: NDArray[np.int64]
    """Held back: the figures that are reported."""
    seed: int
    kind: SplitKind = SplitKind.GROUPED

    def sides(self) -> dict[str, NDArray[np.int64]]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def make_split(
    kind: SplitKind,
    labels: NDArray[np.int64],
    groups: Sequence[str],
    *,
    seed: int,
    shares: tuple[float, float, float] = DEFAULT_SHARES,
) -> Split:
    """The split of that kind; see the two functions below. Raises DataSetError."""
    if kind is SplitKind.GROUPED:
        return grouped_split(labels, groups, seed=seed, shares=shares)
    return paper_split(labels, seed=seed, shares=shares)


def side_sizes(
    cells: int, shares: tuple[float, float, float] = DEFAULT_SHARES
) -> tuple[int, int, int]:
    """Training, validation and test cells of a class of so many, as in the paper's tables."""
    # A hair's breadth above, since 0.2 * 15 may come out as 2.9999999999999996.
    test = int(shares[2] * cells + 1e-9)
    validation = round(shares[1] * cells)
    return cells - validation - test, validation, test


def paper_split(
    labels: NDArray[np.int64],
    *,
    seed: int,
    shares: tuple[float, float, float] = DEFAULT_SHARES,
) -> Split:
    """Share each class out at random, whatever frame its cells are from.

    Deterministic by seed. Raises DataSetError where a side would stay empty.
    """
    rng = np.random.default_rng(seed)
    sides: list[list[NDArray[np.int64]]] = [[], [], []]
    for label in np.unique(labels):
        positions = rng.permutation(np.flatnonzero(labels == label))
        train, validation, _ = side_sizes(len(positions), shares)
        parts = np.split(positions, [train, train + validation])
        for side, part in zip(sides, parts, strict=True):
            side.append(part)
    positions_of = [np.sort(np.concatenate(parts)) for parts in sides]
    if empty := [name for name, found in zip(SIDES, positions_of, strict=True) if not len(found)]:
        raise DataSetError(
            f"{len(labels)} cells leave nothing for {', '.join(empty)}: give more of them."
        )
    return Split(**dict(zip(SIDES, positions_of, strict=True)), seed=seed, kind=SplitKind.PAPER)


def write_split(
    path: Path,
    split: Split,
    files: Sequence[str],
    class_names: Sequence[str],
    labels: NDArray[np.int64],
    groups: Sequence[str],
) -> None:
    """The split as a CSV table: file, class, group, side."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "class", "group", "side"))
        for side, positions in split.sides().items():
            for at in positions:
                writer.writerow((files[at], class_names[labels[at]], groups[at], side))


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


def grouped_folds(
    labels: NDArray[np.int64], groups: Sequence[str], *, folds: int, seed: int
) -> list[Split]:
    """Cross-validation: every cell is a test cell once, each group in one fold.

    The fold after the one that tests chooses the epoch, the others train. Deterministic by
    seed. Raises DataSetError where a fold would stay empty.
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.zeros((len(names), int(labels.max()) + 1))
    np.add.at(counts, (group_of, labels), 1)
    counts = counts[:, counts.any(axis=0)]
    fold_of = _divide(counts, np.full(folds, 1 / folds), np.random.default_rng(seed))[group_of]
    if folds < 3 or len(np.unique(fold_of)) < folds:
        raise DataSetError(
            f"{len(names)} groups do not make {folds} folds: cross-validation takes three folds "
            "at least, and a group is never torn apart. Ask for fewer, or give more groups."
        )
    return [
        Split(
            train=np.flatnonzero((fold_of != fold) & (fold_of != (fold + 1) % folds)),
            validation=np.flatnonzero(fold_of == (fold + 1) % folds),
            test=np.flatnonzero(fold_of == fold),
            seed=seed,
        )
        for fold in range(folds)
    ]


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
