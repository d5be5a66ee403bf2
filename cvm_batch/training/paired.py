"""What two classifiers say of the same test cells, and whether they differ.

Shapes: n cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvm_batch.training.bootstrap import OVERALL, figures, interval, resampled
from cvm_batch.training.metrics import confusion_matrix

#: The figures whose intervals and differences are told.
TOLD = ("accuracy", "macro_f1")
_PLACES = [OVERALL.index(name) for name in TOLD]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A classifier's answers, n test cells."""

    names: tuple[str, ...]
    groups: tuple[str, ...]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Answers:
        return cls(
            names=tuple(value["names"]),
            groups=tuple(value["groups"]),
            labels=np.array(value["labels"], np.int64),
            predicted=np.array(value["predicted"], np.int64),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "names": self.names,
            "groups": self.groups,
            "labels": self.labels.tolist(),
            "predicted": self.predicted.tolist(),
        }

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """About the cells of all parts, one part after the other."""
        return cls(
            names=tuple(name for part in parts for name in part.names),
            groups=tuple(group for part in parts for group in part.groups),
            labels=np.concatenate([part.labels for part in parts]),
            predicted=np.concatenate([part.predicted for part in parts]),
        )

    @property
    def right(self) -> NDArray[np.bool_]:
        """[n]"""
        right: NDArray[np.bool_] = self.predicted == self.labels
        return right

    def overall(self) -> NDArray[np.float64]:
        """The figures of `OVERALL`."""
        confusion = confusion_matrix(self.labels, self.predicted, _classes([self]))
        found, _ = figures(confusion, np.unique(self.labels))
        return found

    def asked_alike(self, other: Answers) -> bool:
        """Whether both were asked about the same cells, grouped and labelled alike."""
        return (
            self.names == other.names
            and self.groups == other.groups
            and np.array_equal(self.labels, other.labels)
        )


def mcnemar(one: Answers, other: Answers) -> float:
    """Exact two-sided p-value that two classifiers err equally often on the same cells."""
    only = int((one.right & ~other.right).sum())
    others = int((~one.right & other.right).sum())
    total = only + others
    tail = sum(comb(total, k) for k in range(min(only, others) + 1))
    return min(1.0, float(2 * tail / 2**total))


def median_p(pairs: Sequence[tuple[Answers, Answers]]) -> float:
    """McNemar's p of the middle seed. Seeds are asked about the same cells again, so that
    counting them together would count every cell so many times."""
    return float(median(mcnemar(one, other) for one, other in pairs))


def intervals(seeds: Sequence[Answers]) -> dict[str, list[float]] | None:
    """95 % intervals of `TOLD`, means over the seeds; None where these have other cells."""
    if not _alike(seeds):
        return None
    means = _resampled_means(seeds)
    return {name: interval(means[:, at]) for at, name in enumerate(TOLD)}


def differences(
    these: Sequence[Answers], those: Sequence[Answers]
) -> dict[str, tuple[float, list[float]]] | None:
    """By how much `TOLD` of the one are above those of the other, means over the seeds of each,
    with 95 % intervals; None where not all were asked about the same cells.

    The same groups are drawn for both: what is hard for either is hard for both.
    """
    if not _alike([*these, *those]):
        return None
    drawn = _resampled_means(these, those)
    found = _means(these) - _means(those)
    return {
        name: (round(float(found[at]), 4), interval(drawn[:, at], whole=(-1.0, 1.0)))
        for at, name in enumerate(TOLD)
    }


def _alike(seeds: Sequence[Answers]) -> bool:
    return bool(seeds) and all(seeds[0].asked_alike(other) for other in seeds[1:])


def _means(seeds: Sequence[Answers]) -> NDArray[np.float64]:
    """[told] as they are, over all cells."""
    means: NDArray[np.float64] = np.mean([seed.overall() for seed in seeds], axis=0)[_PLACES]
    return means


def _resampled_means(
    seeds: Sequence[Answers], others: Sequence[Answers] = ()
) -> NDArray[np.float64]:
    """[resamples, told] of the mean over ``seeds``, less that over ``others`` if there are."""
    every = [*seeds, *others]
    confusions = resampled(
        seeds[0].groups,
        seeds[0].labels,
        [one.predicted for one in every],
        _classes(every),
    )
    overall, _ = figures(confusions, np.unique(seeds[0].labels))
    told: NDArray[np.float64] = overall[..., _PLACES]
    means: NDArray[np.float64] = told[:, : len(seeds)].mean(axis=1)
    return means - told[:, len(seeds) :].mean(axis=1) if others else means


def _classes(seeds: Sequence[Answers]) -> int:
    return 1 + max(int(max(seed.labels.max(), seed.predicted.max())) for seed in seeds)
