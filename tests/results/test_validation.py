"""Sensitivity, specificity and agreement over labelled slides, against figures worked by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cvm_batch.errors import UsageError
from cvm_batch.results.reading import Results
from cvm_batch.results.validation import Agreement, Share, Validation
from cvm_batch.results.worklist import SLIDE_SCORE, Entry, Worklist
from tests.results.nights import Night


@pytest.fixture
def worklist(night: Night) -> Worklist:
    with Results(night.results) as opened:
        return Worklist.read(opened, SLIDE_SCORE)


def scored(worklist: Worklist, scores: dict[str, float | None]) -> Worklist:
    """Slides of these scores; None is a failed one."""
    like = worklist.ranked[0]
    ranked = [_entry(like, name, score) for name, score in scores.items() if score is not None]
    failed = [replace(worklist.failed[0], slide_id=name) for name, s in scores.items() if s is None]
    nothing: dict[str, list[Entry]] = {
        name: [] for name in ("urgent_incomplete", "unranked", "scant", "incomplete")
    }
    return replace(worklist, ranked=ranked, failed=failed, quality_control=[], **nothing)


def _entry(like: Entry, name: str, score: float) -> Entry:
    return replace(like, slide_id=name, slide_score=score, value=score)


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    # Wilson's interval, as R's prop.test(correct = FALSE) gives it.
    [(8, 10, 0.4901625, 0.9433178), (0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0)],
)
def test_wilsons_interval(hits: int, of: int, low: float, high: float) -> None:
    assert Share(hits=hits, of=of).interval == pytest.approx((low, high), abs=1e-6)


def test_nothing_says_nothing() -> None:
    assert Share(hits=0, of=0).value is None
    assert Share(hits=0, of=0).interval == (0.0, 1.0)


def test_each_threshold(worklist: Worklist) -> None:
    found = Validation.of(
        scored(worklist, {"p1": 0.9, "p2": 0.5, "p3": 0.2, "n1": 0.6, "n2": 0.1, "bad": None}),
        {"p1": True, "p2": True, "p3": True, "n1": False, "n2": False, "bad": True, "gone": True},
        [0.3, 0.5, 0.95],
    )
    shares = [
        (one.threshold, one.sensitivity.hits, one.sensitivity.of, one.specificity.hits)
        for one in found.points
    ]
    assert shares == [(0.3, 2, 3, 1), (0.5, 2, 3, 1), (0.95, 0, 3, 2)]
    assert (found.not_complete, found.missing) == (["bad"], ["gone"])
    json.dumps(found.to_json())


def test_agreement_with_the_model_before(worklist: Worklist) -> None:
    before = scored(worklist, {"a": 0.9, "b": 0.8, "c": 0.1, "d": 0.2, "old": 0.5})
    now = scored(worklist, {"a": 0.7, "b": 0.4, "c": 0.1, "d": 0.3, "new": 0.5})
    found = Agreement.of(before, now, 0.5)
    assert (found.slides, found.same_call.hits) == (4, 3)
    assert found.changed == [("b", 0.8, 0.4)]
    # Observed 3/4, expected 1/2 * 1/4 + 1/2 * 3/4 = 1/2.
    assert found.kappa == pytest.approx(0.5)
    assert (found.median_difference, found.largest_difference) == pytest.approx((0.15, 0.4))
    json.dumps(found.to_json())


def test_labels_of_other_slides_are_no_validation(worklist: Worklist) -> None:
    with pytest.raises(UsageError, match="slide_id"):
        Validation.of(worklist, {"unheard of": True}, [0.5])
    with pytest.raises(UsageError, match="complete in both"):
        Agreement.of(worklist, scored(worklist, {"x": 0.1}), 0.5)


def test_as_typed(night: Night, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from cvm_batch.cli import cli

    with Results(night.results) as opened:
        complete = Worklist.read(opened, SLIDE_SCORE).ranked
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("slide_id", "label"))
        for number, entry in enumerate(complete):
            rows.writerow((entry.slide_id, ("negative", "positive")[number % 2]))
    told = CliRunner().invoke(
        cli,
        [
            *("evaluate", "--slides", str(labels), "--results", str(night.results)),
            *("--against", str(night.results), "--threshold", "0.5", "--json"),
        ],
    )
    assert told.exit_code == 0, told.output
    value = json.loads(told.output)
    assert [point["threshold"] for point in value["validation"]["points"]] == [0.5]
    (agreement,) = value["agreement"]
    assert (agreement["threshold"], agreement["same_call"]["value"]) == (0.5, 1)
    lines = CliRunner().invoke(
        cli, ["evaluate", "--slides", str(labels), "--results", str(night.results)]
    )
    assert lines.exit_code == 0, lines.output
    assert len([line for line in lines.output.splitlines() if line.strip().startswith("0.")]) == 9


def test_what_is_cut_is_counted_and_each_threshold_has_its_agreement(
    worklist: Worklist, night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from cvm_batch.cli import cli

    names = [f"s{number:02d}" for number in range(30)]
    now = scored(worklist, dict.fromkeys(names, 0.65))
    before = scored(worklist, dict.fromkeys(names, 0.35))
    reads = iter((now, before))
    monkeypatch.setattr(Worklist, "read", lambda *_: next(reads))
    labels = tmp_path / "labels.csv"
    rows = [f"{name},{number % 2}" for number, name in enumerate(names)]
    rows += [f"gone{number:02d},1" for number in range(25)]
    labels.write_text("\n".join(["slide_id,label", *rows]))
    command = ["evaluate", "--slides", labels, "--results", night.results]
    command += ["--against", night.results, "--threshold", 0.1, "--threshold", 0.5]
    told = CliRunner().invoke(cli, [*map(str, command)])
    assert told.exit_code == 0, told.output
    lines = told.output.splitlines()
    missing = next(line for line in lines if line.startswith("Not in the results"))
    assert missing.startswith("Not in the results: 25: gone00,")
    assert missing.endswith("(20 are shown; --json lists all)")
    assert "Another call at one of them: 30 slides (20 are shown; --json lists all)" in lines
    table = lines.index("threshold  the same call            kappa  changed")
    assert [(line.split()[0], line.split()[-1]) for line in lines[table + 1 : table + 3]] == [
        *(("0.10", "0"), ("0.50", "30")),
    ]
