"""The slides table: rows go in and come out as they are; what earlier runs settle."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cvm_batch.errors import ResultsError, TakenOverError
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.schemas import SLIDES, Status
from cvm_batch.results.slides import History, SlideRow, commit_slides, newest_rows

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
RUN = RunName("20260131T220000Z-0a1b2c3d", "2026-01-31")


@pytest.fixture
def results(tmp_path: Path) -> ResultsFolder:
    folder = ResultsFolder(tmp_path)
    folder.prepare()
    return folder


def row(slide_id: str, status: Status = Status.COMPLETE, **changes: Any) -> SlideRow:
    complete = status is Status.COMPLETE
    whole = SlideRow(
        run_id=RUN.run_id,
        slide_id=slide_id,
        uri=f"/slides/{slide_id}",
        slide_identity="1d",
        result_key="key",
        bundle="tiny",
        bundle_digest="d1",
        status=status,
        reason=None if complete else "bad_format",
        detail=None if complete else "no header",
        cells_expected=3,
        expected_from="listing",
        cells_classified=3,
        cells_unreadable=0,
        integrity="verified",
        class_counts={"HSIL": 1, "NILM": 2} if complete else None,
        group_counts={"hsil_plus": 1, "paper_abnormal": None} if complete else None,
        primary_group="hsil_plus",
        abnormal_count=1 if complete else None,
        abnormal_fraction=1 / 3 if complete else None,
        counts_at_least=None,
        group_counts_at_least=None,
        slide_score=0.5,
        confidence_mean=0.9,
        brightness_mean=100.0,
        brightness_std=1.0,
        focus_mean=10.0,
        cells_files=["cells/a.parquet"],
        tops_files=[],
        attempts=1,
        seconds=0.25,
        started_at=NOON,
        finished_at=NOON + timedelta(seconds=1),
        precision="fp32",
        backend="torch-eager",
        versions={"torch": "2.15.0"},
    )
    return replace(whole, **changes)


def test_the_row_has_exactly_the_tables_columns() -> None:
    assert sorted(asdict(row("a"))) == sorted(SLIDES.names)


def test_rows_come_back_as_they_were(results: ResultsFolder) -> None:
    given = [row("a"), row("ümlaut\n.zip", Status.FAILED)]
    commit_slides(results, RUN, 7, given)
    path = results.root / f"slides/run_date=2026-01-31/{RUN.run_id}-00007.parquet"
    back = pq.read_table(path, partitioning=None).to_pylist(maps_as_pydicts="strict")
    assert back == [asdict(one) for one in given]


def test_a_batch_is_committed_once(results: ResultsFolder) -> None:
    commit_slides(results, RUN, 0, [row("a")])
    commit_slides(results, RUN, 0, [row("a")])  # as after an answer that was lost
    with pytest.raises(TakenOverError, match="sealed this one"):
        commit_slides(results, RUN, 0, [row("b")])
    assert [one["slide_id"] for one in newest_rows(results).to_pylist()] == ["a"]


def test_the_newest_row_of_each_slide(results: ResultsFolder) -> None:
    later = NOON + timedelta(hours=1)
    commit_slides(results, RUN, 0, [row("b"), row("a", finished_at=later, attempts=2)])
    commit_slides(results, RUN, 1, [row("a")])
    rows = newest_rows(results).to_pylist()
    assert [(one["slide_id"], one["attempts"]) for one in rows] == [("a", 2), ("b", 1)]


def test_an_empty_folder_has_no_rows_and_no_history(results: ResultsFolder) -> None:
    assert newest_rows(results).num_rows == 0
    assert History.read(results).settled("a", "key") is None


@pytest.mark.parametrize(
    ("rows", "settled"),
    [
        ([row("a")], Status.COMPLETE),
        ([row("a", result_key="another")], None),
        ([row("b")], None),
        ([row("a", Status.FAILED)], Status.FAILED),
        ([row("a", Status.INCOMPLETE, reason="unreadable_tiles")], Status.INCOMPLETE),
        ([row("a", Status.FAILED, reason="read_error")], None),
        ([row("a"), row("a", Status.FAILED, finished_at=NOON + timedelta(1))], Status.COMPLETE),
        (
            [
                row("a", Status.FAILED),
                row("a", Status.FAILED, reason="read_error", finished_at=NOON + timedelta(1)),
            ],
            None,
        ),
        ([row("a", Status.FAILED, result_key=None)], None),
    ],
)
def test_what_is_settled(results: ResultsFolder, rows: list[SlideRow], settled: Status) -> None:
    commit_slides(results, RUN, 0, rows)
    found = History.read(results).settled("a", "key")
    assert (found.status if found else None) is settled


def test_a_damaged_table_is_an_error_that_names_the_folder(results: ResultsFolder) -> None:
    commit_slides(results, RUN, 0, [row("a")])
    (path,) = (results.root / "slides").rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ResultsError, match="cannot be read"):
        History.read(results)
