"""Validation of a model on a laboratory's own labelled slides, and against the model before it.

Everything is by slide. What is not complete takes no part in a figure and is told apart: it would
be looked at by people, not called negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import median
from typing import Any

from cvm_batch.errors import UsageError
from cvm_batch.results.schemas import Status
from cvm_batch.results.worklist import Worklist

#: Standard normal quantile of a two-sided 95 % interval.
_Z = 1.959964


@dataclass(frozen=True, kw_only=True)
class Share:
    """A proportion with its 95 % interval, by Wilson's score method, which holds for small n and
    near 0 and 1 (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927)."""

    hits: int
    of: int

    @property
    def value(self) -> float | None:
        return self.hits / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float]:
        if not self.of:
            return 0.0, 1.0
        p, n, z2 = self.hits / self.of, self.of, _Z**2
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z * sqrt(p * (1 - p) / n + z2 / (4 * n**2)) / (1 + z2 / n)
        # At the ends the formula gives 0 and 1 but for rounding.
        low = 0.0 if self.hits == 0 else middle - half
        high = 1.0 if self.hits == n else middle + half
        return low, high

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "value": self.value, "interval_95": self.interval}


@dataclass(frozen=True, kw_only=True)
class AtThreshold:
    """What calling slides with at least this slide score positive would do."""

    threshold: float
    sensitivity: Share
    specificity: Share

    def to_json(self) -> dict[str, Any]:
        return {
            "threshold": self.threshold,
            "sensitivity": self.sensitivity.to_json(),
            "specificity": self.specificity.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class Validation:
    """A model on labelled slides."""

    points: Sequence[AtThreshold]
    not_complete: Sequence[str]
    """Labelled slides that were not read whole or failed."""
    missing: Sequence[str]
    """Labelled slides that the results do not have."""

    @classmethod
    def of(
        cls, worklist: Worklist, labels: Mapping[str, bool], thresholds: Sequence[float]
    ) -> Validation:
        """Raises UsageError where no labelled slide is complete."""
        there = {entry.slide_id for entry in worklist.entries}
        scores = {slide: score for slide, score in _scores(worklist).items() if slide in labels}
        if not scores:
            raise UsageError(
                f"None of {len(labels)} labelled slides is complete in the results. Check the "
                "slide_id in the table of labels, and submit those slides first."
            )
        return cls(
            points=[_at(threshold, scores, labels) for threshold in thresholds],
            not_complete=sorted((there & labels.keys()) - scores.keys()),
            missing=sorted(labels.keys() - there),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"points": [point.to_json() for point in self.points]}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two models on the same slides, complete in both results, at one threshold."""

    threshold: float
    slides: int
    same_call: Share
    kappa: float | None
    """Cohen's; None where both call all slides alike."""
    median_difference: float
    largest_difference: float
    """Of slide scores."""
    changed: Sequence[tuple[str, float, float]]
    """Slides with another call: before and now, the largest change first."""

    @classmethod
    def of(cls, before: Worklist, now: Worklist, threshold: float) -> Agreement:
        """Raises UsageError where no slide is complete in both."""
        old, new = _scores(before), _scores(now)
        both = sorted(old.keys() & new.keys())
        if not both:
            raise UsageError(
                "No slide is complete in both results: submit the same slides to both."
            )
        pairs = [(old[slide] >= threshold, new[slide] >= threshold) for slide in both]
        differences = [abs(old[slide] - new[slide]) for slide in both]
        changed = [
            (slide, old[slide], new[slide])
            for slide, (one, other) in zip(both, pairs, strict=True)
            if one is not other
        ]
        same = sum(one is other for one, other in pairs)
        return cls(
            threshold=threshold,
            slides=len(both),
            same_call=Share(hits=same, of=len(both)),
            kappa=_kappa(pairs),
            median_difference=median(differences),
            largest_difference=max(differences),
            changed=sorted(changed, key=lambda one: -abs(one[1] - one[2])),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"same_call": self.same_call.to_json()}


def _at(threshold: float, scores: Mapping[str, float], labels: Mapping[str, bool]) -> AtThreshold:
    positive = [score >= threshold for slide, score in scores.items() if labels[slide]]
    negative = [score < threshold for slide, score in scores.items() if not labels[slide]]
    return AtThreshold(
        threshold=threshold,
        sensitivity=Share(hits=sum(positive), of=len(positive)),
        specificity=Share(hits=sum(negative), of=len(negative)),
    )


def _scores(worklist: Worklist) -> dict[str, float]:
    return {
        entry.slide_id: entry.slide_score
        for entry in worklist.entries
        if entry.status is Status.COMPLETE and entry.slide_score is not None
    }


def _kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    n = len(pairs)
    observed = sum(one is other for one, other in pairs) / n
    first, second = (sum(pair[k] for pair in pairs) / n for k in (0, 1))
    expected = first * second + (1 - first) * (1 - second)
    return None if expected == 1 else (observed - expected) / (1 - expected)
