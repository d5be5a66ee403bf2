"""What a classifier does on labelled cells, with how far to trust the figures.

Shapes: n cells, c classes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cvm_batch.model.precision import exact_fp32
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.training.augment import ATTITUDES, in_attitudes
from cvm_batch.training.bootstrap import (
    OF_A_CLASS,
    OVERALL,
    RESAMPLES,
    figures,
    interval,
    resampled,
)
from cvm_batch.training.datasets import LabelledCells
from cvm_batch.training.metrics import Metrics, measure
from cvm_batch.training.stepping import probabilities

_BINS = 10


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Probabilities beside the truth, n cells."""

    probabilities: NDArray[np.float32]
    """[n, c]"""
    labels: NDArray[np.int64]
    """[n]"""
    class_names: tuple[str, ...]
    groups: tuple[str, ...]
    """[n], what is drawn as one when intervals are estimated: frames, cluster images."""
    images_per_second: float | None = None
    """In classifying them, each in all of its attitudes; None where that was not timed."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """[n]"""
        predicted: NDArray[np.int64] = self.probabilities.argmax(axis=1).astype(np.int64)
        return predicted

    @cached_property
    def metrics(self) -> Metrics:
        return measure(self.labels, self.predicted, self.class_names)

    def intervals(self, *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, list[float]]:
        """95 % intervals of the four overall figures, and of precision, recall and F1 of each
        class that is there.

        By bootstrap over groups, each resample with cells of every class that is there. 0 to 1
        where all the cells, or those of the class, are of one group: what another would bring
        is not known then.
        """
        drawn = resampled(
            self.groups,
            self.labels,
            [self.predicted],
            len(self.class_names),
            seed=seed,
            resamples=resamples,
        )[:, 0]
        met = np.flatnonzero(self.metrics.support)
        overall, of_classes = figures(drawn, met)
        keys = [*OVERALL, *(f"{one} of {self.class_names[at]}" for at in met for one in OF_A_CLASS)]
        groups = np.asarray(self.groups)
        several = [len(set(self.groups)) > 1] * len(OVERALL)
        for at in met:
            several += [len(set(groups[self.labels == at])) > 1] * len(OF_A_CLASS)
        found = np.hstack([overall, of_classes.reshape(len(drawn), -1)])
        return {
            key: interval(values) if known else [0.0, 1.0]
            for key, values, known in zip(keys, found.T, several, strict=True)
        }

    @cached_property
    def intervals_95(self) -> dict[str, list[float]]:
        """`intervals`, drawn once: bundle, figures and page all tell them."""
        return self.intervals()

    def calibration(self, bins: int = _BINS) -> list[dict[str, float]]:
        """Cells by the confidence of their class: mean confidence beside the share right."""
        confidence = self.probabilities.max(axis=1)
        right = self.predicted == self.labels
        which = np.minimum((confidence * bins).astype(int), bins - 1)
        return [
            {
                "cells": int((which == at).sum()),
                "confidence": round(float(confidence[which == at].mean()), 4),
                "right": round(float(right[which == at].mean()), 4),
            }
            for at in range(bins)
            if (which == at).any()
        ]

    @property
    def calibration_error(self) -> float:
        """Mean distance of confidence from the share right, weighted by cells (ECE)."""
        rows = self.calibration()
        cells = sum(row["cells"] for row in rows)
        return sum(row["cells"] * abs(row["confidence"] - row["right"]) for row in rows) / cells

    def to_json(self) -> dict[str, Any]:
        return self.metrics.to_json() | {
            "cells": len(self.labels),
            "groups": len(set(self.groups)),
            "intervals_95": self.intervals_95,
            "calibration": self.calibration(),
            "calibration_error": round(self.calibration_error, 4),
        }


def evaluate(
    network: nn.Module,
    images: Tensor,
    preprocessing: Preprocessing,
    *,
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    groups: Sequence[str],
    flips: bool = False,
) -> Evaluation:
    """Classify resized images uint8 [n, 3, s, s] in fp32 on their device.

    With ``flips``, each image in its four attitudes, the probabilities averaged.
    """
    attitudes = range(ATTITUDES if flips else 1)
    started = time.perf_counter()
    with exact_fp32():
        found = [
            probabilities(
                network,
                images if at == 0 else in_attitudes(images, torch.full((len(images),), at)),
                preprocessing,
            )
            for at in attitudes
        ]
    return Evaluation(
        probabilities=torch.stack(found).mean(dim=0).numpy(),
        labels=labels,
        class_names=tuple(class_names),
        groups=tuple(groups),
        images_per_second=round(len(images) / (time.perf_counter() - started), 1),
    )


def evaluate_cells(
    network: nn.Module,
    images: Tensor,
    preprocessing: Preprocessing,
    cells: LabelledCells,
    positions: NDArray[np.int64],
) -> Evaluation:
    """`evaluate` on the images of the cells at ``positions`` [n]."""
    return evaluate(
        network,
        images,
        preprocessing,
        labels=cells.labels[positions],
        class_names=cells.class_names,
        groups=[cells.groups[position] for position in positions],
    )
