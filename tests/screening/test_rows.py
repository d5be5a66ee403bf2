"""From outcomes to a row: what is null when, and how parts add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import ExpectedFrom, SlideInfo
from cvm_batch.archives.tables.slides import Preparation
from cvm_batch.errors import Reason
from cvm_batch.model.bundle import Bundle
from cvm_batch.results.schemas import Status
from cvm_batch.results.slides import SlideRow
from cvm_batch.screening.ledger import SlideAccount
from cvm_batch.screening.plan import PlannedSlide
from cvm_batch.screening.rows import RunContext, slide_row
from cvm_batch.screening.work import Failure, Part, PartOutcome, QualitySums, SlideSource

ADDRESS = SlideAddress(uri="/slides/a.zip")
SOURCE = SlideSource(0, "a.zip", ADDRESS, "1d")
INFO = SlideInfo(identity="1d", tiles=8, expected_from=ExpectedFrom.LISTING, tile_px=None)
SLIDE = PlannedSlide(slide_id="a.zip", address=ADDRESS, info=INFO, result_key="key")


def outcome(start: int, stop: int, classes: dict[int, int], **more: Any) -> PartOutcome:
    """A counted part; ``classes`` says how many cells of which of the 11 classes."""
    counts = tuple(classes.get(place, 0) for place in range(11))
    files = {"cells_file": f"cells/{start}", "tops_file": f"tops/{start}"}
    return PartOutcome(
        part=Part(SOURCE, start, stop),
        class_counts=counts,
        classified=sum(counts),
        **{"integrity": "verified", **files, **more},
    )


def row_of(
    bundle: Bundle,
    outcomes: Sequence[PartOutcome],
    failure: Failure | None = None,
    slide: PlannedSlide = SLIDE,
) -> SlideRow:
    context = RunContext(
        run_id="run", bundle=bundle, precision="fp32", backend="torch-eager", versions={}
    )
    account = SlideAccount(tiles=8, counted=list(outcomes), failure=failure, first_leased=10.0)
    return slide_row(context, slide, account, finished=20.0)


def test_parts_add_up_in_whatever_order_they_came(tiny_bundle: Bundle) -> None:
    # ASC-H, ASC-US and NILM stand at 0, 1 and 5
    late = outcome(4, 8, {5: 4}, quality=QualitySums(3.0, 40.0, 400.0, 8.0), seconds=1.5)
    early = outcome(
        0, 4, {0: 1, 1: 2, 5: 1}, quality=QualitySums(1.0, 80.0, 1600.0, 0.0), seconds=0.5
    )
    row = row_of(tiny_bundle, [late, early])
    assert row.status is Status.COMPLETE
    assert row.class_counts is not None
    assert {name: n for name, n in row.class_counts.items() if n} == {
        "ASC-H": 1,
        "ASC-US": 2,
        "NILM": 5,
    }
    assert row.group_counts == {
        "asc_us_plus": 3,
        "lsil_plus": 1,
        "hsil_plus": 0,
        "paper_abnormal": 1,
    }
    assert (row.abnormal_count, row.abnormal_fraction) == (3, 3 / 8)
    assert row.confidence_mean == 0.5
    assert row.brightness_mean == 15.0
    assert row.brightness_std == pytest.approx((2000 / 8 - 15.0**2) ** 0.5)
    assert row.focus_mean == 1.0
    assert row.cells_files == ["cells/0", "cells/4"]
    assert row.tops_files == ["tops/0", "tops/4"]
    assert row.seconds == 2.0


def test_the_score_and_classes_are_of_the_twenty_highest(tiny_bundle: Bundle) -> None:
    low = tuple(n / 100 for n in range(20, 0, -1))
    parts = [
        outcome(0, 4, {5: 4}, top_scores=low, top_classes=(*[5] * 18, 0, 0)),
        outcome(4, 8, {5: 4}, top_scores=(0.9, 0.8), top_classes=(3, 5)),
    ]
    row = row_of(tiny_bundle, parts)
    assert row.slide_score == pytest.approx((0.9 + 0.8 + sum(low[:18])) / 20)
    assert row.top_classes == {"HSIL": 1, "NILM": 19}


def test_the_reason_does_not_depend_on_who_answered_first(tiny_bundle: Bundle) -> None:
    broken = outcome(4, 8, {5: 2}, unreadable=2, fault_details=("g.jpg", "h.jpg"))
    missing = outcome(0, 4, {1: 3}, unreadable=1, missing=1, fault_details=("chunk 0",))
    rows = [row_of(tiny_bundle, parts) for parts in ([broken, missing], [missing, broken])]
    for row in rows:
        assert (row.status, row.reason) == (Status.INCOMPLETE, Reason.MISSING_TILES)
        assert row.detail == "3 of 8 tiles could not be read: chunk 0; g.jpg; h.jpg"
        assert (row.cells_classified, row.cells_unreadable) == (5, 3)
        assert row.class_counts is row.group_counts is row.abnormal_count is None
        assert row.slide_score is None
        assert row.counts_at_least is not None
        assert sum(row.counts_at_least.values()) == 5
        assert row.group_counts_at_least is not None
        assert row.group_counts_at_least["asc_us_plus"] == 3


def test_only_a_few_faults_are_quoted(tiny_bundle: Bundle) -> None:
    part = outcome(0, 8, {5: 1}, unreadable=7, fault_details=("a", "b", "c"))
    assert row_of(tiny_bundle, [part]).detail == (
        "7 of 8 tiles could not be read: a; b; c; and 4 more"
    )


def test_one_unverified_part_makes_the_slide_unverified(tiny_bundle: Bundle) -> None:
    parts = [outcome(0, 4, {5: 4}), outcome(4, 8, {5: 4}, integrity="unverified")]
    assert row_of(tiny_bundle, parts).integrity == "unverified"
    assert row_of(tiny_bundle, [outcome(0, 8, {5: 8})]).integrity == "verified"


def test_a_failed_slide_shows_no_count_whatever_was_read(tiny_bundle: Bundle) -> None:
    failure = Failure(Reason.CHECKSUM_MISMATCH, "chunk 1")
    row = row_of(tiny_bundle, [outcome(0, 4, {0: 4})], failure)
    assert (row.status, row.reason) == (Status.FAILED, Reason.CHECKSUM_MISMATCH)
    assert (row.cells_classified, row.cells_unreadable) == (0, 8)
    assert row.integrity is row.class_counts is row.counts_at_least is row.abnormal_count is None
    assert row.cells_files == []


def test_names_that_are_not_utf8_are_stored_escaped(tiny_bundle: Bundle) -> None:
    slide = PlannedSlide(
        slide_id="x",
        address=SlideAddress(uri="/slides/x\udcff.zip"),
        info=None,
        failure=Failure(Reason.BAD_FORMAT, "/slides/x\udcff.zip is no zip"),
    )
    context = RunContext(
        run_id="run", bundle=tiny_bundle, precision="fp32", backend=None, versions={}
    )
    row = slide_row(context, slide, None, 20.0)
    assert row.uri == "/slides/x\\xff.zip"
    assert row.detail == "/slides/x\\xff.zip is no zip"


@pytest.mark.parametrize(
    ("preparation", "cells", "lacking", "adequacy"),
    [
        (None, 9_000, 0, "not_assessed"),
        (Preparation.LIQUID_BASED, 4_999, 0, "scant"),
        (Preparation.LIQUID_BASED, 5_000, 0, "adequate"),
        (Preparation.CONVENTIONAL, 7_999, 0, "scant"),
        (Preparation.CONVENTIONAL, 8_000, 0, "adequate"),
        (Preparation.CONVENTIONAL, 8_000, 1, "adequate"),
        (Preparation.CONVENTIONAL, 7_999, 1, "not_assessed"),
    ],
)
def test_whether_there_are_enough_cells(
    tiny_bundle: Bundle,
    preparation: Preparation | None,
    cells: int,
    lacking: int,
    adequacy: str,
) -> None:
    found = outcome(0, cells + lacking, {5: cells}, unreadable=lacking)
    row = row_of(tiny_bundle, [found], slide=replace(SLIDE, preparation=preparation))
    assert row.status is (Status.INCOMPLETE if lacking else Status.COMPLETE)
    assert row.adequacy == adequacy


def test_a_failed_slide_is_not_assessed(tiny_bundle: Bundle) -> None:
    failure = Failure(Reason.BAD_FORMAT, "broken")
    slide = replace(SLIDE, preparation=Preparation.CONVENTIONAL)
    row = row_of(tiny_bundle, [outcome(0, 9_000, {5: 9_000})], failure, slide)
    assert (row.status, row.adequacy) == (Status.FAILED, "not_assessed")
