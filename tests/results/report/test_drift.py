"""Whether a night looks like those before it."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cvm_batch.results.report.drift import LEAST_NIGHTS, MOST_NIGHTS, Level, Night, judge

USUAL = {"abnormal": 0.04, "confidence": 0.9, "brightness": 180.0, "focus": 300.0}
MIX = {"HSIL": 10, "LSIL": 30, "NILM": 960}


def night(number: int = 99, classes: dict[str, int] = MIX, **figures: float) -> Night:
    return Night(
        run_id=f"run-{number:02}", slides=10, cells=1000, classes=classes, **(USUAL | figures)
    )


def like_always(count: int = 12) -> list[Night]:
    """Nights that differ a little."""
    return [
        night(
            n,
            {"HSIL": 10 + n % 3, "LSIL": 30 - n % 3, "NILM": 960},
            brightness=180 + n % 5,
            focus=300 + 4 * (n % 4),
        )
        for n in range(count)
    ]


def levels(tonight: Night, earlier: list[Night]) -> dict[str, Level]:
    return {found.measure.key: found.level for found in judge(tonight, earlier).findings}


def test_a_night_like_the_others() -> None:
    verdict = judge(night(brightness=182), like_always())
    assert verdict.level is Level.STEADY
    assert verdict.sentence == "As usual: this night looks like the 12 before it."
    assert {found.level for found in verdict.findings} == {Level.STEADY}


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("brightness", 150.0, "Brightness is lower than in the 12 nights before."),
        ("brightness", 210.0, "Brightness is higher than in the 12 nights before."),
        ("focus", 120.0, "Focus is lower than in the 12 nights before."),
        ("confidence", 0.7, "Confidence is lower than in the 12 nights before."),
        ("abnormal", 0.2, "Abnormal share is higher than in the 12 nights before."),
    ],
)
def test_one_figure_out_of_line(key: str, value: float, told: str) -> None:
    verdict = judge(night(**{key: value}), like_always())
    assert verdict.level is Level.OUT_OF_LINE
    assert verdict.sentence == f"{told} Have a look before the results are used."
    found = levels(night(**{key: value}), like_always())
    assert {name for name, level in found.items() if level is not Level.STEADY} == {key}


def test_two_figures_and_another_mix_in_one_sentence() -> None:
    mix = {"HSIL": 300, "LSIL": 300, "NILM": 400}
    verdict = judge(night(classes=mix, brightness=150.0, focus=100.0), like_always())
    assert verdict.sentence == (
        "The class mix is further from the usual one, brightness is lower and focus is lower "
        "than in the 12 nights before. Have a look before the results are used."
    )


def test_unusual_is_less_than_out_of_line() -> None:
    # Confidence has never varied, so that its least spread counts: 0.01.
    for off, level in ((0.015, Level.STEADY), (0.025, Level.UNUSUAL), (0.04, Level.OUT_OF_LINE)):
        assert levels(night(confidence=0.9 - off), like_always())["confidence"] is level


def test_one_odd_night_among_the_earlier_ones_changes_nothing() -> None:
    earlier = like_always()
    earlier[3] = night(3, brightness=20.0)
    assert levels(night(brightness=150.0), earlier)["brightness"] is Level.OUT_OF_LINE
    assert levels(night(), earlier)["brightness"] is Level.STEADY


@pytest.mark.parametrize("count", range(LEAST_NIGHTS))
def test_few_nights_are_not_judged(count: int) -> None:
    verdict = judge(night(brightness=0.0), like_always(count))
    assert verdict.level is Level.NOT_JUDGED
    there = {0: "are no earlier nights", 1: "is 1 earlier night"}.get(
        count, f"are {count} earlier nights"
    )
    assert verdict.sentence == (
        f"Not judged yet: there {there} of this model to compare with, and 5 are needed."
    )


def test_a_night_without_a_cell_is_not_judged() -> None:
    nothing = Night(
        run_id="run", slides=0, cells=0, abnormal=None, confidence=None, brightness=None, focus=None
    )
    verdict = judge(nothing, like_always())
    assert verdict.level is Level.NOT_JUDGED
    assert verdict.sentence == "Not judged: no slide was completed in this run."
    assert judge(night(), [nothing] * 9).nights == 0


def test_only_the_newest_nights_count() -> None:
    old = [night(n, brightness=20.0) for n in range(40)]
    new = [night(40 + n) for n in range(MOST_NIGHTS)]
    assert judge(night(), old + new).nights == MOST_NIGHTS
    assert levels(night(), old + new)["brightness"] is Level.STEADY


figures = st.floats(0, 1000, allow_nan=False)
nights = st.lists(
    st.builds(
        night,
        classes=st.dictionaries(st.sampled_from(["HSIL", "NILM", "x"]), st.integers(0, 10**6)),
        brightness=figures,
        focus=figures,
        confidence=st.floats(0, 1),
        abnormal=st.floats(0, 1),
    ),
    max_size=12,
)


@given(tonight=nights.filter(len), earlier=nights)
@example(tonight=[night(focus=1.0)], earlier=[night(focus=2.3e-308)])
def test_any_nights_can_be_judged(tonight: list[Night], earlier: list[Night]) -> None:
    verdict = judge(tonight[0], earlier)
    assert verdict.sentence.endswith(".")
    for found in verdict.findings:
        assert found.off is None or math.isfinite(found.off)
        if len(found.earlier) < LEAST_NIGHTS:
            assert found.level is Level.NOT_JUDGED
    assert sum(verdict.usual_mix.values()) == pytest.approx(1) or not verdict.usual_mix


@given(nights.filter(lambda some: len(some) >= LEAST_NIGHTS))
def test_the_usual_figure_is_never_out_of_line(earlier: list[Night]) -> None:
    """A figure equal to the median of the nights before is as usual."""
    brightness = next(f for f in judge(night(), earlier).findings if f.measure.key == "brightness")
    assert brightness.usual is not None
    assert levels(night(brightness=brightness.usual), earlier)["brightness"] is Level.STEADY
