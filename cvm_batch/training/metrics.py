"""Figures of a classifier, from its confusion matrix alone. Pure numpy.

Shapes: n cells, c classes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What a confusion matrix says. Shares lie in [0, 1].

    A class that was never predicted has precision 0. A class without cells has no recall
    or F1 (NaN here, null in JSON), and is left out of the macro averages.
    """

    class_names: tuple[str, ...]
    confusion: NDArray[np.int64]
    """[c, c]: rows are the true classes, columns the predicted ones."""

    @property
    def support(self) -> NDArray[np.int64]:
        """[c] cells of each class."""
        support: NDArray[np.int64] = self.confusion.sum(axis=1)
        return support

    @property
    def precision(self) -> NDArray[np.float64]:
        """[c]"""
        precision: NDArray[np.float64] = self._hits / np.maximum(self.confusion.sum(axis=0), 1)
        return precision

    @property
    def recall(self) -> NDArray[np.float64]:
        """[c]"""
        return self._of_present(self._hits / np.maximum(self.support, 1))

    @property
    def f1(self) -> NDArray[np.float64]:
        """[c]"""
        return self._of_present(
            2 * self._hits / np.maximum(self.support + self.confusion.sum(axis=0), 1)
        )

    @property
    def accuracy(self) -> float:
        return float(self._hits.sum() / self.confusion.sum())

    @property
    def macro_precision(self) -> float:
        return float(self.precision[self.support > 0].mean())

    @property
    def macro_recall(self) -> float:
        return float(np.nanmean(self.recall))

    @property
    def macro_f1(self) -> float:
        return float(np.nanmean(self.f1))

    def to_json(self) -> dict[str, Any]:
        """Shares rounded to four places."""
        return {
            "accuracy": round(self.accuracy, 4),
            "macro_precision": round(self.macro_precision, 4),
            "macro_recall": round(self.macro_recall, 4),
            "macro_f1": round(self.macro_f1, 4),
            "per_class": {
                name: {
                    "precision": _rounded(self.precision[place]),
                    "recall": _rounded(self.recall[place]),
                    "f1": _rounded(self.f1[place]),
                    "support": int(self.support[place]),
                }
                for place, name in enumerate(self.class_names)
            },
            "confusion": self.confusion.tolist(),
        }

    def merged(self, members: Collection[str]) -> Metrics:
        """The figures with ``members`` as one class, ``group``, and the rest as ``other``."""
        inside = np.array([name in members for name in self.class_names])
        side = np.stack([~inside, inside]).astype(np.int64)  # [2, c]
        return Metrics(class_names=("other", "group"), confusion=side @ self.confusion @ side.T)

    def lines(self) -> list[str]:
        """For people: one line for all cells, and one for each class."""
        width = max(map(len, self.class_names))
        return [
            f"accuracy {self.accuracy:.4f}, macro precision {self.macro_precision:.4f}, "
            f"recall {self.macro_recall:.4f}, F1 {self.macro_f1:.4f}",
            *(
                f"{name:{width}}  precision {self.precision[place]:.3f}  "
                f"recall {self.recall[place]:.3f}  F1 {self.f1[place]:.3f}  "
                f"cells {self.support[place]}"
                for place, name in enumerate(self.class_names)
            ),
        ]

    @property
    def _hits(self) -> NDArray[np.float64]:
        return np.diagonal(self.confusion).astype(np.float64)

    def _of_present(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(self.support > 0, values, np.nan)


def measure(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], class_names: tuple[str, ...]
) -> Metrics:
    """Metrics of n > 0 cells from their true and predicted class positions [n]."""
    if not len(labels):
        raise ValueError("no cells to measure")
    return Metrics(
        class_names=class_names,
        confusion=confusion_matrix(labels, predicted, len(class_names)),
    )


def confusion_matrix(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Counts [c, c] of n cells: rows are the true classes, columns the predicted ones."""
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    return confusion


def _rounded(share: float) -> float | None:
    return None if np.isnan(share) else round(float(share), 4)
