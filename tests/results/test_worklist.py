"""The worklist: who comes first, who stands apart, and how well a ranking does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvm_batch.errors import UsageError
from cvm_batch.results.canned import canned_queries
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.reading import Results
from cvm_batch.results.roc import Roc, read_labels, rocs
from cvm_batch.results.schemas import Adequacy, Status
from cvm_batch.results.slides import SlideRow, commit_slides
from cvm_batch.results.worklist import Entry, Measure, Worklist
from tests.results.nights import HOSTILE, Night
from tests.results.test_slides import RUN, row

LISTS = ("urgent_incomplete", "ranked", "unranked", "scant", "incomplete", "failed")


@pytest.fixture
def results(night: Night) -> Iterator[Results]:
    with Results(night.results) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> ResultsFolder:
    made = ResultsFolder(tmp_path / "results")
    made.prepare()
    return made


def worklist(folder: ResultsFolder, rows: Sequence[SlideRow], by: str = "slide_score") -> Worklist:
    commit_slides(folder, RUN, len(list(folder.root.glob("slides/*/*"))), rows)
    with Results(folder.root) as results:
        return Worklist.read(results, Measure.parse(by))


def names(entries: Sequence[Entry]) -> list[str]:
    return [entry.slide_id for entry in entries]


# A real night


def test_every_slide_is_in_exactly_one_list(results: Results) -> None:
    found = Worklist.read(results)
    listed = [name for field in LISTS for name in names(getattr(found, field))]
    assert sorted(listed) == sorted(results.table("slides")["slide_id"].to_pylist())
    assert names(found.entries) == listed
    assert all(entry.list == field for field in LISTS for entry in getattr(found, field))


def test_what_is_not_whole_stands_apart(results: Results) -> None:
    found = Worklist.read(results)
    (urgent,) = found.urgent_incomplete
    assert (urgent.slide_id, urgent.counts["hsil_plus"], urgent.top_grade) == ("holed", 20, "SCC")
    assert (urgent.cells_classified, urgent.cells_unreadable) == (29, 1)
    assert urgent.fractions == {}, "of an unknown whole there is no share"
    assert names(found.incomplete) == ["holed-normal"]
    assert found.incomplete[0].top_grade == "NILM"
    (failed,) = found.failed
    assert (failed.slide_id, failed.reason, failed.counts) == (
        "failed.zip",
        "checksum_mismatch",
        {},
    )
    for entry in (urgent, *found.incomplete, failed):
        assert entry.rank is entry.quintile is entry.value is None
        assert not entry.negative


def test_complete_slides_are_ranked(results: Results) -> None:
    found = Worklist.read(results)
    n = 3 + len(HOSTILE)
    assert [entry.rank for entry in found.ranked] == list(range(1, n + 1))
    assert {entry.ranks for entry in found.ranked} == {n}
    assert set(names(found.ranked)[:2]) == {"hsil.zip", "changed.zip"}
    scores = [entry.slide_score for entry in found.ranked]
    assert scores == [entry.value for entry in found.ranked]
    assert scores == sorted(scores, key=lambda score: -(score or 0))
    grades = {entry.slide_id: entry.top_grade for entry in found.ranked}
    assert grades == dict.fromkeys(grades, "NILM") | {"hsil.zip": "HSIL", "changed.zip": "ASC-US"}
    changed = next(entry for entry in found.ranked if entry.slide_id == "changed.zip")
    assert changed.counts == {
        "asc_us_plus": 20,
        "lsil_plus": 0,
        "hsil_plus": 0,
        "paper_abnormal": 0,
    }
    assert changed.fractions["asc_us_plus"] == 20 / 25


def test_by_another_group(results: Results) -> None:
    by_fraction = Worklist.read(results, Measure.parse("fraction:hsil_plus"))
    assert names(by_fraction.ranked)[0] == "hsil.zip"
    assert by_fraction.ranked[0].value == 20 / 30
    assert by_fraction.ranked[1].slide_id == "changed.zip", "the score decides among equals"
    by_count = Worklist.read(results, Measure.parse("count:asc_us_plus"))
    assert {entry.value for entry in by_count.ranked[:2]} == {20}
    assert names(by_count.scant) == names(by_fraction.scant) == []


def test_the_slides_of_one_run(results: Results, night: Night) -> None:
    first = Worklist.read(results, run_id=night.first_run)
    assert len(first.entries) == 6 + len(HOSTILE)
    old = next(entry for entry in first.ranked if entry.slide_id == "changed.zip")
    assert (old.cells_classified, old.counts["asc_us_plus"]) == (30, 0)
    assert results.cells_of(old).num_rows == 30, "what an older row names is there still"
    second = Worklist.read(results, run_id=night.second_run)
    assert sorted(names(second.entries)) == ["changed.zip", "failed.zip"]
    with pytest.raises(UsageError, match="no run 'another'"):
        Worklist.read(results, run_id="another")


def test_the_named_query_says_the_same(results: Results) -> None:
    found = Worklist.read(results)
    told = results.query(canned_queries()["worklist"].sql).to_pylist()
    assert [(each["list"], each["rank"], each["slide_id"]) for each in told] == [
        (entry.list, entry.rank, entry.slide_id) for entry in found.entries
    ]
    for each, entry in zip(told, found.entries, strict=True):
        assert each["hsil_plus"] == entry.counts.get("hsil_plus")
        assert each["quality_control"] == entry.quality_control


def test_as_a_table(results: Results) -> None:
    found = Worklist.read(results)
    table = found.to_table()
    assert table["slide_id"].to_pylist() == names(found.entries)
    for told, entry in zip(table.to_pylist(), found.entries, strict=True):
        assert told["status"] == entry.status
        for group in found.groups:
            assert told[group] == entry.counts.get(group)
            assert told[f"{group}_fraction"] == entry.fractions.get(group)


# What seldom happens


def test_scant_slides_are_never_ranked(folder: ResultsFolder) -> None:
    found = worklist(
        folder,
        [
            row("low", slide_score=0.1, adequacy=Adequacy.SCANT),
            row("high", slide_score=0.9, adequacy=Adequacy.SCANT),
            row("enough", slide_score=0.2, adequacy=Adequacy.ADEQUATE),
            row("broken", Status.FAILED, adequacy=Adequacy.SCANT),
        ],
    )
    assert names(found.ranked) == ["enough"]
    assert names(found.scant) == ["high", "low"], "abnormal cells count even among few"
    assert names(found.failed) == ["broken"]
    assert not any(entry.negative for entry in found.scant)


def test_bundles_that_lack_the_measure(folder: ResultsFolder) -> None:
    no_groups: dict[str, Any] = {"primary_group": None, "slide_score": None, "group_counts": {}}
    rows = [row("a", **no_groups), row("b")]
    found = worklist(folder, rows)
    assert names(found.ranked) == ["b"]
    assert names(found.unranked) == ["a"]
    assert names(worklist(folder, [], "count:paper_abnormal").unranked) == ["b", "a"]
    with pytest.raises(UsageError, match="'other'; there are: hsil_plus, paper_abnormal"):
        worklist(folder, [], "count:other")


def test_an_incomplete_slide_without_a_group_is_no_urgent_one(folder: ResultsFolder) -> None:
    holed: dict[str, Any] = {"reason": "unreadable_tiles", "counts_at_least": {"HSIL": 3}}
    found = worklist(
        folder,
        [
            row("none", Status.INCOMPLETE, group_counts_at_least={"hsil_plus": 0}, **holed),
            row("null", Status.INCOMPLETE, group_counts_at_least={"hsil_plus": None}, **holed),
            row("few", Status.INCOMPLETE, group_counts_at_least={"hsil_plus": 1}, **holed),
            row("many", Status.INCOMPLETE, group_counts_at_least={"hsil_plus": 3}, **holed),
        ],
    )
    assert names(found.urgent_incomplete) == ["many", "few"]
    assert sorted(names(found.incomplete)) == ["none", "null"]


def test_quintiles_and_ties(folder: ResultsFolder) -> None:
    scores = [0.9, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    found = worklist(folder, [row(f"{n:02d}", slide_score=s) for n, s in enumerate(scores)])
    assert names(found.ranked) == [f"{n:02d}" for n in range(11)]
    assert [entry.quintile for entry in found.ranked] == [1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize(
    ("classes", "grade"),
    [
        ({"NILM": 19, "SCC": 1}, "SCC"),
        ({"ASC-US": 10, "LSIL": 10}, "LSIL"),
        ({"LSIL": 10, "ASC-H": 1}, "ASC-H"),
        ({"HSIL": 0, "Parabasal": 20}, "Parabasal"),
        ({"Basophil": 20}, None),
        (None, None),
    ],
)
def test_the_highest_grade(
    folder: ResultsFolder, classes: Mapping[str, int] | None, grade: str | None
) -> None:
    (entry,) = worklist(folder, [row("a", top_classes=classes)]).ranked
    assert entry.top_grade == grade


@pytest.mark.parametrize("text", ["", "score", "fraction", "fraction:", "slide_score:x", "sum:a"])
def test_no_such_measure(text: str) -> None:
    with pytest.raises(UsageError, match=r"slide_score, fraction:GROUP or count:GROUP"):
        Measure.parse(text)


# Quality control


@pytest.fixture
def many(folder: ResultsFolder) -> Iterator[Results]:
    """57 negatives, 30 positives, and scant ones that are neither."""
    low = [row(f"low-{n}", slide_score=n / 200) for n in range(57)]
    high = [row(f"high-{n}", slide_score=0.5 + n / 100) for n in range(30)]
    scant = [row(f"scant-{n}", slide_score=0.1, adequacy=Adequacy.SCANT) for n in range(20)]
    commit_slides(folder, RUN, 0, [*low, *high, *scant])
    with Results(folder.root) as results:
        yield results


@pytest.mark.parametrize("share", [0.1, 0.25, 1.0])
def test_at_least_the_share_of_the_negatives_is_drawn(many: Results, share: float) -> None:
    found = Worklist.read(many, quality_control_share=share)
    drawn = names(found.quality_control)
    assert len(drawn) == len(set(drawn)) == ceil(share * 57)
    assert all(name.startswith("low-") for name in drawn)
    assert sum(entry.negative for entry in found.entries) == 57


def test_the_seed_decides_who_is_drawn(many: Results) -> None:
    drawn = [names(Worklist.read(many, seed=seed).quality_control) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({tuple(each) for each in drawn}) == 3


def test_the_threshold_says_what_a_negative_is(many: Results) -> None:
    found = Worklist.read(many, Measure.parse("count:hsil_plus"), negative_below=0.1)
    assert sorted(names([e for e in found.ranked if e.negative])) == sorted(
        f"low-{n}" for n in range(20)
    )
    assert Worklist.read(many, negative_below=0).quality_control == []


# Labelled slides


def brute_auc(entries: Sequence[Entry], labels: Mapping[str, bool]) -> float:
    pairs = [
        (a.value > b.value) + (a.value == b.value) / 2
        for a, b in product(entries, repeat=2)
        if labels[a.slide_id] and not labels[b.slide_id]
        if a.value is not None and b.value is not None
    ]
    return sum(pairs) / len(pairs)


def labelled(folder: ResultsFolder, n: int) -> tuple[Worklist, dict[str, bool]]:
    rng = np.random.default_rng(0)
    truth = rng.random(n) < 0.4
    # Rounded, so that some are equal.
    scores = np.clip(rng.normal(0.4 + 0.2 * truth, 0.2), 0, 1).round(2)
    rows = [
        row(f"{k}", slide_score=float(score), group_counts={"hsil_plus": int(k % 4)})
        for k, score in enumerate(scores)
    ]
    return worklist(folder, rows), {f"{k}": bool(each) for k, each in enumerate(truth)}


def by_measure(curves: Sequence[Roc]) -> dict[str, Roc]:
    return {str(roc.measure): roc for roc in curves}


def test_the_area_is_that_of_all_pairs(folder: ResultsFolder) -> None:
    found, labels = labelled(folder, 200)
    curves = by_measure(rocs(found, labels))
    assert set(curves) == {"slide_score", "fraction:hsil_plus", "count:hsil_plus"}
    roc = curves["slide_score"]
    assert roc.auc == pytest.approx(brute_auc(found.ranked, labels))
    assert (roc.positives, roc.negatives) == (sum(labels.values()), 200 - sum(labels.values()))
    low, high = roc.auc_interval
    assert low < roc.auc < high
    # DeLong's standard error of such a curve is about 0.03.
    assert 0.05 < high - low < 0.2
    low, high = curves["count:hsil_plus"].auc_interval
    assert low < 0.5 < high, "a count that knows nothing"


def test_the_points_are_what_each_threshold_would_do(folder: ResultsFolder) -> None:
    found, labels = labelled(folder, 60)
    roc = by_measure(rocs(found, labels))["slide_score"]
    thresholds = [point.threshold for point in roc.points]
    assert thresholds == sorted({entry.value for entry in found.ranked}, reverse=True)
    for point in roc.points:
        called = [labels[e.slide_id] for e in found.ranked if (e.value or 0) >= point.threshold]
        assert point.sensitivity == pytest.approx(sum(called) / roc.positives)
        false = len(called) - sum(called)
        assert point.specificity == pytest.approx(1 - false / roc.negatives)


def test_only_complete_slides_that_are_labelled_count(folder: ResultsFolder) -> None:
    rows = [
        row("pos", slide_score=0.9),
        row("neg", slide_score=0.1, adequacy=Adequacy.SCANT),
        row("unlabelled", slide_score=0.99),
        row("broken", Status.FAILED),
    ]
    labels = {"pos": True, "neg": False, "broken": False, "unknown": True}
    roc = rocs(worklist(folder, rows), labels)[0]
    assert (roc.positives, roc.negatives, roc.auc) == (1, 1, 1.0)
    assert roc.auc_interval == (pytest.approx(0.025), 1.0), "one pair says next to nothing"
    with pytest.raises(UsageError, match="of 2 labelled slides 1 are complete, 1 of them positive"):
        rocs(worklist(folder, []), {"pos": True, "broken": False})


@pytest.mark.parametrize("positives_score", [0.9, 0.1])
def test_a_perfect_order_of_few_slides_is_no_certainty(
    folder: ResultsFolder, positives_score: float
) -> None:
    labels = {f"{kind}{n}": kind == "pos" for kind in ("pos", "neg") for n in range(10)}
    rows = [row(name, slide_score=positives_score if p else 0.5) for name, p in labels.items()]
    roc = rocs(worklist(folder, rows), labels)[0]
    # Clopper and Pearson's for 10 of 10, as R's binom.test gives it.
    low, high = (0.6915029, 1.0) if positives_score > 0.5 else (0.0, 1 - 0.6915029)
    assert roc.auc == (1.0 if positives_score > 0.5 else 0.0)
    assert roc.auc_interval == pytest.approx((low, high), abs=1e-6)


def test_labels_as_laboratories_write_them(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(
        '\ufeffslide_id,reader,label\na,x,positive\na,z,1\nb,x,Negative\n"c, d",y,1\ne,y,false\n'
    )
    assert read_labels(path) == {"a": True, "b": False, "c, d": True, "e": False}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"slide,label\na,1\n", "needs the columns slide_id and label"),
        (b"", "needs the columns"),
        (b"slide_id,label\na,1\nb,maybe\n", "Line 3 of .*'maybe'"),
        (b"slide_id,label\na,1\nb,0\na,negative\n", "Line 4 .*'a' is labelled positive and"),
        (b"slide_id,label\na\n", "Line 2"),
        (b"slide_id,label\n,1\n", "Line 2"),
        (b"slide_id,label\n\xff\xfe,1\n", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_labels_that_make_no_sense(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "labels.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=told):
        read_labels(path)
