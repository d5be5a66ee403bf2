"""Two classifiers on the same cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from cvm_batch.training.paired import Answers, differences, intervals, mcnemar, median_p


def answers(right: Sequence[bool], groups: int | None = None) -> Answers:
    """Of two classes in turn, by which cells are right."""
    count = len(right)
    labels = np.arange(count) % 2
    return Answers(
        names=tuple(f"cell{at}" for at in range(count)),
        groups=tuple(f"g{at * (groups or count) // count}" for at in range(count)),
        labels=labels,
        predicted=np.where(right, labels, 1 - labels),
    )


def test_mcnemar_by_hand() -> None:
    right = answers([True] * 8 + [False] * 2 + [True] * 5)
    other = answers([False] * 8 + [True] * 2 + [True] * 5)
    # Of ten cells on which one alone is right, two or fewer on one side: 2 (1 + 10 + 45) / 1024.
    assert mcnemar(right, other) == pytest.approx(112 / 1024)
    assert mcnemar(right, right) == 1.0


def test_more_seeds_do_not_make_more_cells() -> None:
    one, other = answers([True] * 10), answers([False] * 5 + [True] * 5)
    assert median_p([(one, other)] * 9) == mcnemar(one, other) == 2 / 2**5


def test_a_difference_is_surer_than_its_two_figures() -> None:
    """Both fail on the same hard cells: their own intervals overlap, that between has no 0."""
    rng = np.random.default_rng(1)
    hard, harder = rng.random(300) < 0.3, rng.random(300) < 0.04
    better, worse = answers(list(~hard)), answers(list(~hard & ~harder))
    better_own, worse_own = intervals([better]), intervals([worse])
    assert better_own is not None
    assert worse_own is not None
    assert better_own["accuracy"][0] < worse_own["accuracy"][1]
    found = differences([worse], [better])
    assert found is not None
    difference, (low, high) = found["accuracy"]
    assert difference == pytest.approx(worse.right.mean() - better.right.mean(), abs=1e-4)
    assert low < difference < high < 0


def test_groups_widen_a_difference() -> None:
    """Cells of a frame stand or fall together."""

    def width(groups: int) -> float:
        one = answers([True] * 200, groups)
        found = differences([answers([at % 100 < 80 for at in range(200)], groups)], [one])
        assert found is not None
        low, high = found["accuracy"][1]
        return high - low

    assert width(10) > 2 * width(200)


def test_other_cells_have_no_difference() -> None:
    assert differences([answers([True] * 8)], [answers([True] * 9)]) is None
    assert differences([answers([True] * 8)], [answers([True] * 8, groups=2)]) is None
    assert intervals([answers([True] * 8), answers([True] * 9)]) is None
