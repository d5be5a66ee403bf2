"""Rows in batches: when they are committed, and what is counted."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cvm_batch.errors import CommitError
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.schemas import Status
from cvm_batch.results.slides import newest_rows
from cvm_batch.screening.commits import Commits
from tests.results.test_slides import row


def committed(results: ResultsFolder) -> list[str]:
    names: list[str] = newest_rows(results)["slide_id"].to_pylist()
    return names


def test_rows_wait_for_each_other_but_not_once_the_run_is_stopped(results: ResultsFolder) -> None:
    """Ray kills a stopped job after three seconds."""
    commits = Commits(results, RunName.new(datetime.now(UTC)), 0.0)
    hour = 3600.0
    commits.add(row("a"), hour)
    commits.flush_if_due(hour + 20.0)
    assert committed(results) == []
    commits.hurry()
    commits.flush_if_due(hour + 20.0)
    assert committed(results) == ["a"]
    commits.add(row("b"), hour + 21.0)
    commits.flush_if_due(hour + 21.0)
    assert committed(results) == ["a", "b"]


def test_what_could_not_be_committed_is_not_counted(
    results: ResultsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits(results, RunName.new(datetime.now(UTC)), 0.0)
    commits.add(row("a"), 1.0)
    commits.flush()
    before = commits.by_status.copy(), commits.classified, commits.unreadable
    commits.add(row("b"), 2.0)
    commits.add(row("c", Status.FAILED), 2.0)
    monkeypatch.setattr(results, "put_new", _full)
    with pytest.raises(CommitError):
        commits.flush()
    commits.give_up()
    assert (commits.by_status, commits.classified, commits.unreadable) == before
    assert commits.not_complete == []
    assert committed(results) == ["a"]


def _full(*_: object) -> bool:
    raise CommitError("no room")
