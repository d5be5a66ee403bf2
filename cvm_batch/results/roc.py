"""How well a ranking tells labelled slides apart: ROC curves, and areas under them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvm_batch.errors import UsageError
from cvm_batch.results.schemas import Status
from cvm_batch.results.worklist import SLIDE_SCORE, Entry, Measure, Worklist

_RESAMPLES = 2000
#: Resamples at once: some MB for thousands of slides.
_CHUNK = 100
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True)
class RocPoint:
    """What calling every slide from ``threshold`` on positive would do."""

    threshold: float
    sensitivity: float
    specificity: float


@dataclass(frozen=True, kw_only=True)
class Roc:
    """One choice of ranking, over the labelled slides that are complete and have the measure."""

    measure: Measure
    positives: int
    negatives: int
    auc: float
    auc_interval: tuple[float, float]
    """95 %, by a stratified bootstrap over slides; at 0 and 1, where all resamples are alike, by
    the exact (Clopper and Pearson's) interval of as many pairs as share no slide."""
    points: Sequence[RocPoint]
    """By falling threshold."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"measure": str(self.measure)}


def rocs(worklist: Worklist, labels: Mapping[str, bool], *, seed: int = 0) -> list[Roc]:
    """The curve of every choice of ranking; ``labels`` says which slides are positive.

    Scant slides take part, since they have counts. Choices that no bundle here defines are
    left out. Raises UsageError where either kind of label is missing among complete slides.
    """
    entries = [e for e in worklist.entries if e.status is Status.COMPLETE and e.slide_id in labels]
    truth = [labels[entry.slide_id] for entry in entries]
    if all(truth) or not any(truth):
        raise UsageError(
            f"A ROC curve needs positive and negative slides: of {len(labels)} labelled slides "
            f"{len(entries)} are complete, {sum(truth)} of them positive. Check the slide_id "
            "in the table of labels."
        )
    kinds = [Measure(kind, group) for kind in ("fraction", "count") for group in worklist.groups]
    found = (_roc(measure, entries, labels, seed) for measure in (SLIDE_SCORE, *kinds))
    return [roc for roc in found if roc is not None]


def _roc(
    measure: Measure, entries: Sequence[Entry], labels: Mapping[str, bool], seed: int
) -> Roc | None:
    given = [(_value(entry, measure), labels[entry.slide_id]) for entry in entries]
    values = np.array([value for value, _ in given if value is not None])
    truth = np.array([label for value, label in given if value is not None], np.bool_)
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return None
    levels, level = np.unique(values, return_inverse=True)
    # Slides of either kind at each distinct value, from the lowest.
    true = np.bincount(level[truth], minlength=len(levels))
    false = np.bincount(level[~truth], minlength=len(levels))
    auc = float(_auc(true[None], false[None])[0])
    return Roc(
        measure=measure,
        positives=positives,
        negatives=negatives,
        auc=auc,
        auc_interval=_interval(auc, true, false, seed),
        points=[
            RocPoint(threshold=float(t), sensitivity=float(s), specificity=float(1 - f))
            for t, s, f in zip(
                levels[::-1],
                true[::-1].cumsum() / positives,
                false[::-1].cumsum() / negatives,
                strict=True,
            )
        ],
    )


def _value(entry: Entry, measure: Measure) -> float | None:
    if measure.group is None:
        return entry.slide_score
    counted = entry.fractions if measure.kind == "fraction" else entry.counts
    return counted.get(measure.group)


def _auc(true: NDArray[np.int64], false: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n] of slides of either kind per level [n, levels]: ties count half."""
    below = false.cumsum(axis=1) - false / 2
    pairs = true.sum(axis=1) * false.sum(axis=1)
    return np.asarray((true * below).sum(axis=1) / pairs)


def _interval(
    auc: float, true: NDArray[np.int64], false: NDArray[np.int64], seed: int
) -> tuple[float, float]:
    if auc in (0.0, 1.0):
        # Of n pairs of a positive and a negative slide none is in the wrong order (or the right
        # one): that happens with a probability of 2.5 % at this area.
        bound = float((_INTERVAL[0] / 100) ** (1 / min(true.sum(), false.sum())))
        return (bound, 1.0) if auc else (0.0, 1 - bound)
    low, high = np.percentile(_resampled(true, false, seed), _INTERVAL)
    return float(low), float(high)


def _resampled(true: NDArray[np.int64], false: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """AUCs of slides drawn with replacement among those of their kind."""
    rng = np.random.default_rng(seed)

    def drawn(counts: NDArray[np.int64]) -> NDArray[np.int64]:
        return rng.multinomial(counts.sum(), counts / counts.sum(), size=_CHUNK)

    chunks = [_auc(drawn(true), drawn(false)) for _ in range(_RESAMPLES // _CHUNK)]
    return np.concatenate(chunks)


_LABELS = {
    **dict.fromkeys(("positive", "1", "true"), True),
    **dict.fromkeys(("negative", "0", "false"), False),
}


def read_labels(path: Path) -> dict[str, bool]:
    """Whether slides are positive, from a CSV table with the columns slide_id and label.

    Labels are positive or negative, 1 or 0, true or false. Raises UsageError, also where a slide
    is labelled both ways.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"slide_id", "label"} <= set(rows.fieldnames or ()):
                raise UsageError(f"{path} needs the columns slide_id and label.")
            labels: dict[str, bool] = {}
            for number, row in enumerate(rows, 2):
                slide_id, positive = _label(path, number, row)
                if labels.setdefault(slide_id, positive) is not positive:
                    raise UsageError(
                        f"Line {number} of {path}: slide {slide_id!r} is labelled positive and "
                        "negative. Leave the label that holds."
                    )
            return labels
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"The labels in {path} cannot be read: {error}.") from error


def _label(path: Path, number: int, row: Mapping[str, str | None]) -> tuple[str, bool]:
    slide_id, label = row["slide_id"], (row["label"] or "").strip().lower()
    if not slide_id or label not in _LABELS:
        raise UsageError(
            f"Line {number} of {path}: slide {slide_id!r} is labelled {row['label']!r}, which is "
            f"none of {', '.join(_LABELS)}."
        )
    return slide_id, _LABELS[label]
