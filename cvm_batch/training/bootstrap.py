"""Intervals by bootstrap over groups: cells of one frame succeed and fail together, so that
drawing cells one by one would make the intervals too narrow.

Shapes: n cells, g groups, c classes, k classifiers that were asked about the same cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: The overall figures, in the order of `figures`.
OVERALL = ("accuracy", "macro_precision", "macro_recall", "macro_f1")
OF_A_CLASS = ("precision", "recall", "f1")
RESAMPLES = 1000
_TRIES = 100


def resampled(
    groups: Sequence[str],
    labels: NDArray[np.int64],
    predicted: Sequence[NDArray[np.int64]],
    classes: int,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> NDArray[np.int64]:
    """Confusion matrices [resamples, k, c, c] of groups drawn with replacement, the same ones
    for all k. ``groups``, ``labels`` and each of ``predicted``: [n].

    A resample without one of the classes would average over the others, which is another
    figure, and the easier one where the class is rare and hard. It is drawn again, a hundred
    times at most, and then left as it is: macro averages of it are NaN.
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    # As floats, in which a product of matrices is fast, and exact for counts.
    confusions = np.zeros((len(names), len(predicted), classes, classes))
    for which, found in enumerate(predicted):
        np.add.at(confusions[:, which], (group_of, labels, found), 1)
    holds = np.zeros((len(names), classes))
    holds[group_of, labels] = 1
    holds = holds[:, holds.any(axis=0)]
    flat = confusions.reshape(len(names), -1)
    rng = np.random.default_rng(seed)
    drawn = [_times(rng, holds) @ flat for _ in range(resamples)]
    shape = (resamples, len(predicted), classes, classes)
    return np.array(drawn).astype(np.int64).reshape(shape)


def _times(rng: np.random.Generator, holds: NDArray[np.float64]) -> NDArray[np.float64]:
    """[g], how often each group is drawn. ``holds`` [g, classes]: 1 where it has such cells."""
    count = len(holds)
    for _ in range(_TRIES):
        times = np.bincount(rng.integers(count, size=count), minlength=count).astype(float)
        if (times @ holds).all():
            break
    return times


def figures(
    confusions: NDArray[np.int64], met: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of confusion matrices [..., c, c] the overall figures [..., 4], and those `OF_A_CLASS`
    [..., m, 3] of the m classes at ``met``; NaN where one of those has no cells.

    As `metrics.Metrics` has them, for many matrices at a time.
    """
    hits = np.diagonal(confusions, axis1=-2, axis2=-1)
    truth, taken = confusions.sum(axis=-1), confusions.sum(axis=-2)
    accuracy = hits.sum(axis=-1) / truth.sum(axis=-1)
    hits, truth, taken = (counts[..., met] for counts in (hits, truth, taken))
    there = np.where(truth > 0, 1.0, np.nan)
    precision = there * hits / np.maximum(taken, 1)
    recall = there * hits / np.maximum(truth, 1)
    f1 = there * 2 * hits / np.maximum(truth + taken, 1)
    macro = [share.mean(axis=-1) for share in (precision, recall, f1)]
    return np.stack([accuracy, *macro], axis=-1), np.stack([precision, recall, f1], axis=-1)


def interval(
    values: NDArray[np.float64], *, whole: tuple[float, float] = (0.0, 1.0)
) -> list[float]:
    """The middle 95 % of ``values`` [resamples], without NaN; ``whole`` where nothing is left,
    since then nothing is known."""
    known = values[~np.isnan(values)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else whole
    return [round(float(low), 4), round(float(high), 4)]
