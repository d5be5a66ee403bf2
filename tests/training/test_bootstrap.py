"""Resamples of groups, and what is read off them."""

from __future__ import annotations

import numpy as np
import pytest

from cvm_batch.training.bootstrap import OF_A_CLASS, OVERALL, figures, interval, resampled
from cvm_batch.training.evaluation import Evaluation
from cvm_batch.training.metrics import measure


def test_figures_are_those_of_metrics() -> None:
    rng = np.random.default_rng(0)
    # Of five classes, the last has no cells and is predicted all the same.
    labels, predicted = rng.integers(4, size=60), rng.integers(5, size=60)
    metrics = measure(labels, predicted, tuple("abcde"))
    overall, of_classes = figures(metrics.confusion[np.newaxis], np.arange(4))
    assert overall[0] == pytest.approx([getattr(metrics, name) for name in OVERALL])
    for at, name in enumerate(OF_A_CLASS):
        assert of_classes[0, :, at] == pytest.approx(getattr(metrics, name)[:4])


def test_the_same_groups_are_drawn_whole_and_for_every_classifier() -> None:
    labels = np.array([0, 1] * 20)
    groups = [f"g{at // 4}" for at in range(40)]
    drawn = resampled(groups, labels, [labels, 1 - labels], 2, resamples=200)
    assert drawn.shape == (200, 2, 2, 2)
    assert (drawn.sum(axis=(2, 3)) == 40).all()
    assert (drawn[:, 0].sum(axis=2) == 20).all()  # every group has two cells of each class
    assert np.array_equal(drawn[:, 0].sum(axis=2), drawn[:, 1].sum(axis=2))
    again = resampled(groups, labels, [labels, 1 - labels], 2, resamples=200)
    assert np.array_equal(drawn, again)


def rare_and_missed() -> Evaluation:
    """98 cells that are found, and a class of two cells in one group that is never found."""
    labels = np.array([0] * 49 + [1] * 49 + [2] * 2)
    predicted = np.where(labels == 2, 0, labels)
    return Evaluation(
        probabilities=np.eye(3, dtype=np.float32)[predicted],
        labels=labels,
        class_names=("a", "b", "rare"),
        groups=tuple(f"g{at // 2}" for at in range(100)),
    )


def test_a_rare_class_is_in_every_resample() -> None:
    """Left out of a third of them, it would raise the upper limit to the mean of the others."""
    evaluation = rare_and_missed()
    assert evaluation.metrics.macro_recall == pytest.approx(2 / 3)
    intervals = evaluation.intervals()
    assert intervals["macro_recall"] == [pytest.approx(2 / 3, abs=1e-3)] * 2
    assert intervals["f1 of rare"] == [0.0, 1.0], "another group may be all of them found"
    assert intervals["accuracy"][1] < 1


def test_one_group_says_nothing_of_others() -> None:
    labels = np.array([0, 1] * 10)
    evaluation = Evaluation(
        probabilities=np.eye(2, dtype=np.float32)[labels],
        labels=labels,
        class_names=("a", "b"),
        groups=("frame",) * 20,
    )
    assert set(map(tuple, evaluation.intervals().values())) == {(0.0, 1.0)}


def test_where_no_resample_has_every_class_nothing_is_known() -> None:
    """Thirty classes in a group each: all thirty groups are drawn once in 10**11 times."""
    labels = np.arange(30)
    drawn = resampled([str(at) for at in labels], labels, [labels], 30, resamples=5)
    overall, _ = figures(drawn[:, 0], labels)
    assert overall[:, 0].tolist() == [1.0] * 5
    assert interval(overall[:, 3]) == [0.0, 1.0]
    assert interval(overall[:, 3], whole=(-1.0, 1.0)) == [-1.0, 1.0]
    assert interval(overall[:, 0]) == [1.0, 1.0]
