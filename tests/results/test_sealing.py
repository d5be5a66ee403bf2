"""Runs that did not end in order are sealed: not a row can be added to them any more."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cvm_batch.errors import ResultsError, TakenOverError
from cvm_batch.results.claims import Claims, Hold
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.live import runs_seen
from cvm_batch.results.manifest import RunManifest, RunState, manifests, write_manifest
from cvm_batch.results.sealing import exclusive, write_while_held
from cvm_batch.results.slides import History, commit_slides, newest_rows
from cvm_batch.results.verifying import verify_results
from tests.results.test_claims import ELSEWHERE, QUICK, RUNS
from tests.results.test_slides import row

OLD, NEW, NEXT = RUNS[:3]


@pytest.fixture
def results(tmp_path: Path) -> ResultsFolder:
    folder = ResultsFolder(tmp_path / "results")
    folder.prepare()
    return folder


def manifest(run: RunName, state: RunState = RunState.RUNNING, **more: Any) -> RunManifest:
    mappings = ("settings", "bundle", "versions", "host", "slides", "cells")
    nothing: dict[str, Any] = {name: {} for name in mappings}
    return RunManifest(
        run_id=run.run_id,
        state=state,
        started_at=datetime.now(UTC).isoformat(),
        precision="fp32",
        backend="torch-eager",
        executor="local",
        ignored=(),
        **(nothing | more),
    )


def silent_holder(results: ResultsFolder, run: RunName) -> Hold:
    """As of a driver that was frozen: no beat, on a host of which nothing is known."""
    return Claims(results, QUICK, process=ELSEWHERE).take(run.run_id)


def batches(results: ResultsFolder) -> list[str]:
    return [name.rpartition("/")[2] for name in results.names("slides", deep=True)]


def stored(results: ResultsFolder, run: RunName) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(results.read(run.manifest))
    return found


def test_a_frozen_driver_cannot_commit_after_another_took_over(results: ResultsFolder) -> None:
    frozen = silent_holder(results, OLD)
    write_manifest(results, OLD, manifest(OLD))
    commit_slides(results, OLD, 0, [row("a")])
    commit_slides(results, OLD, 1, [row("b")])
    with exclusive(results, NEW, QUICK):
        assert batches(results)[-1] == f"{OLD.run_id}-00002.parquet"
        history = History.read(results)
        assert history.settled("b", "key")
        with pytest.raises(TakenOverError):
            commit_slides(results, OLD, 2, [row("c")])
        with pytest.raises(TakenOverError, match=NEW.run_id):
            write_while_held(results, frozen, manifest(OLD, RunState.FINISHED))
    assert [one["slide_id"] for one in newest_rows(results).to_pylist()] == ["a", "b"]
    sealed = stored(results, OLD)
    assert (sealed["state"], sealed["sealed_by"]) == ("interrupted", NEW.run_id)
    assert [seen.state for seen in runs_seen(results)] == [RunState.INTERRUPTED]


def test_a_driver_frozen_before_its_first_commit_cannot_begin(results: ResultsFolder) -> None:
    silent_holder(results, OLD)
    with exclusive(results, NEW, QUICK), pytest.raises(TakenOverError):
        commit_slides(results, OLD, 0, [row("a")])
    assert Claims(results).read(1).released, "once is enough"
    with exclusive(results, NEXT, QUICK):
        assert batches(results) == [f"{OLD.run_id}-00000.parquet"]


def test_a_manifest_written_at_the_very_moment_is_corrected(
    results: ResultsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver is frozen between its last look and the writing."""
    frozen = silent_holder(results, OLD)
    write_manifest(results, OLD, manifest(OLD))
    replace_, taken_over = results.replace, []

    def freeze(name: Any, data: Any) -> None:
        if not taken_over:
            taken_over.append(True)
            with exclusive(ResultsFolder(results.root), NEW, QUICK):
                pass
        replace_(name, data)

    monkeypatch.setattr(results, "replace", freeze)
    with pytest.raises(TakenOverError):
        write_while_held(results, frozen, manifest(OLD, RunState.FINISHED, exit_code=0))
    assert stored(results, OLD)["sealed_by"] == NEW.run_id


def test_who_only_waits_too_long_with_his_seals_seals_no_later_holder(
    results: ResultsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newcomer is frozen just after his claim, and wakes up when another has begun to run."""
    claims = Claims(results, QUICK, process=ELSEWHERE)
    late = claims.take(OLD.run_id)
    with exclusive(results, NEW, QUICK):
        write_manifest(results, NEW, manifest(NEW))
        from cvm_batch.results.sealing import seal_unfinished

        with pytest.raises(TakenOverError):
            seal_unfinished(results, claims, late)
        commit_slides(results, NEW, 0, [row("a")])


@pytest.mark.parametrize(
    ("state", "error", "sealed"),
    [
        (RunState.RUNNING, None, True),
        (RunState.ABORTED, "the server did not answer", True),
        (RunState.STOPPED, "KeyboardInterrupt()", True),
        (RunState.STOPPED, None, False),
        (RunState.FINISHED, None, False),
    ],
)
def test_what_may_still_commit_is_sealed_once(
    results: ResultsFolder, state: RunState, error: str | None, sealed: bool
) -> None:
    """Who let go: a request to put a batch may be under way all the same."""
    commit_slides(results, OLD, 0, [row("a")])
    write_manifest(results, OLD, manifest(OLD, state, error=error))
    for run in (NEW, NEXT):
        with exclusive(results, run, QUICK):
            pass
    assert len(batches(results)) == 1 + sealed
    found = stored(results, OLD)
    assert found["sealed_by"] == (NEW.run_id if sealed else None)
    assert found["state"] == ("interrupted" if state is RunState.RUNNING else state)


def test_cells_of_a_killed_run_that_no_row_names_are_cleared_away(results: ResultsFolder) -> None:
    """Also those of a run that the full disk ended, on that very disk."""
    write_manifest(results, OLD, manifest(OLD))
    kept, left = (str(OLD.cells_folder / f"lease-{n}-0.parquet") for n in range(2))
    tops = str(OLD.tops_folder / "lease-1-0.parquet")
    living = str(NEXT.cells_folder / "lease-0-0.parquet")
    for name in (kept, left, tops, living):
        results.publish(name, b"cells")
    commit_slides(results, OLD, 0, [row("a", cells_files=[kept])])
    with exclusive(results, NEW, QUICK):
        assert results.exists(kept)
        assert not results.exists(left)
        assert not results.exists(tops)
        assert results.exists(living), "of a run that nobody sealed"


def test_readers_do_not_trip_over_a_seal(results: ResultsFolder) -> None:
    silent_holder(results, OLD)
    write_manifest(results, OLD, manifest(OLD))
    with exclusive(results, NEW, QUICK):
        assert newest_rows(results).num_rows == 0
        assert History.read(results).settled("a", "key") is None
        verdict = verify_results(results.root)
        assert (verdict.slides, verdict.findings) == (0, ())


def test_a_manifest_that_is_none_is_told(results: ResultsFolder) -> None:
    results.replace("runs/x.json", b"[]")
    with pytest.raises(ResultsError, match=r"runs/x\.json cannot be read as .* Move it away"):
        list(manifests(results))
    with suppress(ResultsError), exclusive(results, NEW, QUICK):
        pass
    results.remove(["runs/x.json"])
    with exclusive(results, NEXT, QUICK):
        pass


def test_a_run_that_does_not_hold_the_folder_is_not_running(results: ResultsFolder) -> None:
    write_manifest(results, OLD, manifest(OLD))
    hold = Claims(results, QUICK).take(NEW.run_id)
    write_manifest(results, NEW, manifest(NEW))
    assert [seen.state for seen in runs_seen(results)] == ["running", "interrupted"]
    hold.release()
