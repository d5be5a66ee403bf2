from __future__ import annotations

import json

import numpy as np
import pytest

from cvm_batch.training.metrics import Metrics, confusion_matrix, measure

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 1, 2, 2, 0, 1])
NAMES = ("a", "b", "c")


@pytest.fixture
def metrics() -> Metrics:
    return measure(LABELS, PREDICTED, NAMES)


def test_confusion_has_truth_in_rows() -> None:
    assert confusion_matrix(LABELS, PREDICTED, 3).tolist() == [[3, 1, 0], [0, 2, 1], [1, 1, 1]]


def test_golden_numbers(metrics: Metrics) -> None:
    """By hand: 6 of 10 right; predicted 4, 4, 2; true 4, 3, 3."""
    assert metrics.accuracy == pytest.approx(0.6)
    assert metrics.precision == pytest.approx([3 / 4, 2 / 4, 1 / 2])
    assert metrics.recall == pytest.approx([3 / 4, 2 / 3, 1 / 3])
    assert metrics.f1 == pytest.approx([3 / 4, 4 / 7, 2 / 5])
    assert metrics.support.tolist() == [4, 3, 3]
    assert metrics.macro_precision == pytest.approx(7 / 12)
    assert metrics.macro_recall == pytest.approx(7 / 12)
    assert metrics.macro_f1 == pytest.approx((3 / 4 + 4 / 7 + 2 / 5) / 3)


def test_a_class_that_is_never_predicted_has_precision_zero() -> None:
    metrics = measure(np.array([0, 1]), np.array([0, 0]), ("a", "b"))
    assert metrics.precision.tolist() == [0.5, 0.0]
    assert metrics.f1 == pytest.approx([2 / 3, 0])
    assert metrics.macro_f1 == pytest.approx(1 / 3)


def test_a_class_without_cells_is_left_out_of_the_averages() -> None:
    metrics = measure(np.array([0, 1, 1]), np.array([0, 1, 2]), NAMES)
    assert np.isnan(metrics.recall[2])
    assert metrics.macro_recall == pytest.approx(0.75)
    assert metrics.macro_precision == pytest.approx(1.0)
    value = metrics.to_json()
    assert value["per_class"]["c"] == {"precision": 0, "recall": None, "f1": None, "support": 0}
    json.dumps(value, allow_nan=False)


def test_json_is_rounded_and_whole(metrics: Metrics) -> None:
    assert metrics.to_json() == {
        "accuracy": 0.6,
        "macro_precision": 0.5833,
        "macro_recall": 0.5833,
        "macro_f1": 0.5738,
        "per_class": {
            "a": {"precision": 0.75, "recall": 0.75, "f1": 0.75, "support": 4},
            "b": {"precision": 0.5, "recall": 0.6667, "f1": 0.5714, "support": 3},
            "c": {"precision": 0.5, "recall": 0.3333, "f1": 0.4, "support": 3},
        },
        "confusion": [[3, 1, 0], [0, 2, 1], [1, 1, 1]],
    }


def test_merged_counts_mistakes_within_the_group_as_found(metrics: Metrics) -> None:
    merged = metrics.merged(("b", "c"))
    assert merged.class_names == ("other", "group")
    assert merged.confusion.tolist() == [[3, 1], [1, 5]]
    assert merged.recall == pytest.approx([3 / 4, 5 / 6])


def test_lines_name_every_class(metrics: Metrics) -> None:
    first, *others = metrics.lines()
    assert first.startswith("accuracy 0.6000, macro precision 0.5833")
    assert [line.split()[0] for line in others] == list(NAMES)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="no cells"):
        measure(np.array([], dtype=np.int64), np.array([], dtype=np.int64), NAMES)
