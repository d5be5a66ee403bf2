"""The audit log: what it says of runs, and that no change of it or of slides goes unseen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cvm_batch.errors import CommitError
from cvm_batch.model.bundle import Bundle, write_bundle
from cvm_batch.results.audit import log
from cvm_batch.results.audit.checking import AuditCheck
from cvm_batch.results.audit.log import Event
from cvm_batch.results.claims import Claims
from cvm_batch.results.folder import Name, ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.processes import Process
from cvm_batch.results.slides import commit_slides
from cvm_batch.results.stores.store import Bytes
from cvm_batch.results.verifying import verify_results
from cvm_batch.screening.run import run
from tests.results.nights import (
    CELLS,
    HOSTILE,
    screened,
    settings_for,
    write_hostile_slides,
    write_slide,
)
from tests.results.test_slides import row


def entries(root: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in sorted((root / "audit").iterdir())]


def found(root: Path) -> list[tuple[str, str]]:
    return list(AuditCheck(ResultsFolder(root)).findings())


def manifest_of(root: Path, run_id: str) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((root / f"runs/{run_id}.json").read_text())
    return manifest


@pytest.fixture(scope="module")
def two_nights(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Path:
    """Two runs, the second one over a further slide."""
    folder = tmp_path_factory.mktemp("nights")
    slides = write_hostile_slides(folder / "slides")
    screened(slides, tiny_bundle, folder / "results")
    write_slide(slides, "new.zarr.zip", seed=99)
    screened(slides, tiny_bundle, folder / "results")
    return folder / "results"


def prepared(root: Path) -> ResultsFolder:
    results = ResultsFolder(root)
    results.prepare()
    return results


@pytest.fixture
def results(two_nights: Path, tmp_path: Path) -> Path:
    return shutil.copytree(two_nights, tmp_path / "results")


def test_each_run_is_told_at_its_start_and_at_its_end(two_nights: Path) -> None:
    told = entries(two_nights)
    assert [entry["event"] for entry in told] == ["run_started", "run_ended"] * 2
    runs = sorted(path.stem for path in (two_nights / "runs").iterdir())
    assert [entry["facts"]["run"] for entry in told] == [runs[0]] * 2 + [runs[1]] * 2
    start, end = told[0]["facts"], told[1]["facts"]
    manifest = manifest_of(two_nights, runs[0])
    assert start["bundle"] == {name: manifest["bundle"][name] for name in ("name", "digest")}
    assert start["versions"].keys() == end["versions"].keys()
    assert end["versions"] == manifest["versions"]
    slides, cells = len(HOSTILE), len(HOSTILE) * CELLS
    assert (start["slides_planned"], start["cells_expected"]) == (slides, cells)
    assert (end["state"], end["exit_code"], end["in_order"]) == ("finished", 0, True)
    assert (end["slides"]["complete"], end["cells"]["classified"]) == (slides, cells)
    assert all((two_nights / path).is_file() for path in end["batches"])
    assert manifest["audit"] == {"entry": 2, "digest": told[1]["digest"]}


def test_a_whole_log_is_found_whole(two_nights: Path) -> None:
    verdict = verify_results(two_nights)
    assert verdict.findings == ()
    assert verdict.audit_head is not None
    assert (
        verdict.audit_head.reference()
        == manifest_of(two_nights, entries(two_nights)[-1]["facts"]["run"])["audit"]
    )


def test_the_log_names_no_slide(two_nights: Path) -> None:
    text = "".join(path.read_text() for path in (two_nights / "audit").iterdir())
    for name in HOSTILE:
        assert name not in text
        assert json.dumps(name)[1:-1] not in text


def test_who_ran_it(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "@" in entries(results)[0]["who"]
    monkeypatch.setenv("CVM_BATCH_ACTOR", "night shift <Ann>")
    log.append(ResultsFolder(results), Event.MODEL_CHANGED, {"from": 1, "to": 2})
    assert entries(results)[-1]["who"] == "night shift <Ann>"


def test_no_changed_byte_of_any_entry_goes_unseen(tmp_path: Path) -> None:
    results = prepared(tmp_path / "results")
    for number in range(3):
        log.append(results, Event.MODEL_CHANGED, {"from": number, "to": "ä\n"})
    assert found(results.root) == []
    for path in sorted((results.root / "audit").iterdir()):
        whole = path.read_bytes()
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert found(results.root), f"byte {at} of {path.name}"
        for other in (b"", whole[:-1], whole + b"\n", b"[]", b"{}", b"[" * 100_000):
            path.write_bytes(other)
            assert found(results.root), other[:9]
        path.write_bytes(whole)
    assert found(results.root) == []


def remove_entry(number: int) -> Callable[[Path], None]:
    return lambda root: (root / log.path_of(number)).unlink()


def remove_log(root: Path) -> None:
    shutil.rmtree(root / "audit")


def forge_first(root: Path) -> None:
    """Changed with all care: its own digest fits."""
    path = root / log.path_of(1)
    content = json.loads(path.read_bytes())
    del content["digest"]
    content["who"] = "somebody else"
    path.write_bytes(log._canonical(content | {"digest": log._digest(content)}))


def swap(root: Path) -> None:
    one, two = root / log.path_of(2), root / log.path_of(4)
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)


def stray(root: Path) -> None:
    (root / "audit" / "note.txt").write_text("I was here")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (remove_entry(1), "audit/000001.json is missing from the audit log"),
        (remove_entry(3), "audit/000003.json is missing from the audit log"),
        (remove_entry(4), "names an entry of the audit log that is not there"),
        (remove_log, "audit is gone, though manifests of runs name entries"),
        (forge_first, "audit/000002.json does not follow the entry before it"),
        (swap, "audit/000002.json is no whole entry of the audit log: it is the entry 4"),
        (stray, "audit/note.txt is no entry of the audit log"),
    ],
)
def test_what_is_gone_or_forged_is_found(
    results: Path, damage: Callable[[Path], None], told: str
) -> None:
    damage(results)
    assert any(told in " ".join(one) for one in found(results)), found(results)


def test_an_entry_that_fits_and_says_nothing_is_found(results: Path) -> None:
    for event in Event:
        log.append(ResultsFolder(results), event, {})
    told = {path for path, what in found(results) if "does not say what it should" in what}
    assert len(told) == len(Event) - 1, "of a changed model nothing is needed"


def batch_of(root: Path) -> Path:
    return sorted(root.glob("slides/**/*.parquet"))[0]


def test_a_slides_batch_that_was_changed_added_or_removed_is_found(results: Path) -> None:
    batch = batch_of(results)
    name, whole = batch.relative_to(results).as_posix(), batch.read_bytes()
    other = sorted(results.glob("slides/**/*.parquet"))[1]
    batch.write_bytes(other.read_bytes())
    assert (name, "differs from the digest that the audit log has of it") in found(results)
    batch.unlink()
    assert found(results) == [(name, "is not there, though the audit log names it")]
    batch.write_bytes(whole)
    more = batch.with_name(batch.name.replace("-00000.", "-00077."))
    shutil.copy(batch, more)
    assert found(results) == [
        (more.relative_to(results).as_posix(), "is named by no entry of the audit log")
    ]


def test_a_manifest_that_tells_otherwise_is_found(results: Path) -> None:
    path = sorted((results / "runs").iterdir())[0]
    manifest = json.loads(path.read_text())
    manifest["slides"]["failed"] += 1
    path.write_text(json.dumps(manifest))
    assert found(results) == [
        (f"runs/{path.name}", "tells of the run's end otherwise than audit/000002.json")
    ]


# Runs that do not end in order, or are older


def test_a_run_that_was_killed_while_it_planned_is_sealed_and_told(
    results: Path, tiny_bundle: Bundle
) -> None:
    gone = replace(Process.this(), started=1)
    killed = RunName.of("20991231T000000Z-0a1b2c3d")
    Claims(ResultsFolder(results), process=gone).take(killed.run_id)
    write_slide(results.parent / "slides", "a.zarr.zip")
    screened(results.parent / "slides", tiny_bundle, results)
    sealed = entries(results)[4]
    assert (sealed["event"], sealed["facts"]["runs"]) == ("runs_found", [killed.run_id])
    assert [*sealed["facts"]["batches"]] == [str(killed.slides_batch(0))]
    assert verify_results(results).findings == ()


def test_a_batch_that_comes_after_a_run_was_aborted_is_taken_up(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """The answer to its last commit was lost, and so was the batch, as it seemed then."""
    slides, out = tmp_path / "slides", tmp_path / "results"
    write_slide(slides, "a.zarr.zip")
    put_new = ResultsFolder.put_new

    def lost(folder: ResultsFolder, name: Name, data: Bytes) -> bool:
        if str(name).startswith("slides/"):
            raise CommitError("no answer in time")
        return put_new(folder, name, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResultsFolder, "put_new", lost)
        with pytest.raises(CommitError):
            screened(slides, tiny_bundle, out)
    end = entries(out)[-1]
    assert (end["event"], end["facts"]["in_order"]) == ("run_ended", False)
    run = RunName.of(end["facts"]["run"])
    commit_slides(ResultsFolder(out), run, 0, [row("b", run_id=run.run_id, cells_files=[])])
    assert found(out) == [], "it is in nobody's list yet, and that is no fault"
    screened(slides, tiny_bundle, out)
    events = [entry["event"] for entry in entries(out)]
    assert events == ["run_started", "run_ended", "runs_found", "run_started", "run_ended"]
    batches = entries(out)[2]["facts"]["batches"]
    assert [*batches] == [str(run.slides_batch(n)) for n in range(2)]
    assert found(out) == []


def test_a_batch_that_was_changed_before_its_run_is_sealed_is_not_whitewashed(
    results: Path, tiny_bundle: Bundle
) -> None:
    path = sorted((results / "runs").iterdir())[-1]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"error": "as if aborted"}))
    batch = sorted(results.glob("slides/**/*.parquet"))[-1]
    pq.write_table(pq.ParquetFile(batch).read().slice(1), batch)
    write_slide(results.parent / "slides", "a.zarr.zip")
    screened(results.parent / "slides", tiny_bundle, results)
    name = batch.relative_to(results).as_posix()
    assert (log.path_of(5), f"names {name}, which was changed before") in found(results)


def test_a_killed_run_is_taken_up_by_the_next(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Its log is as a kill leaves it: a start, slides, a manifest that says that it runs."""
    slides, out = tmp_path / "slides", tmp_path / "results"
    write_slide(slides, "a.zarr.zip")
    killed = screened(slides, tiny_bundle, out).run_id
    (out / log.path_of(2)).unlink()
    manifest = manifest_of(out, killed)
    manifest |= {
        "state": "running",
        "exit_code": None,
        "audit": {"entry": 1, "digest": entries(out)[0]["digest"]},
    }
    (out / f"runs/{killed}.json").write_text(json.dumps(manifest))
    assert found(out) == [], "its slides are in nobody's list yet, and that is no fault"
    screened(slides, tiny_bundle, out)
    told = entries(out)
    assert [entry["event"] for entry in told[1:]] == ["runs_found", "run_started", "run_ended"]
    assert told[1]["facts"]["runs"] == [killed]
    assert found(out) == []
    batch = batch_of(out)
    batch.write_bytes(batch.read_bytes()[:-1])
    assert found(out) == [
        (batch.relative_to(out).as_posix(), "differs from the digest that the audit log has of it")
    ]


def test_runs_that_are_older_than_the_log_are_taken_up(results: Path, tiny_bundle: Bundle) -> None:
    remove_log(results)
    for path in (results / "runs").iterdir():
        manifest = json.loads(path.read_text())
        del manifest["audit"], manifest["notices"]
        path.write_text(json.dumps(manifest))
    assert verify_results(results).findings == ()
    assert verify_results(results).audit_head is None
    write_slide(results.parent / "slides", "a.zarr.zip")
    screened(results.parent / "slides", tiny_bundle, results)
    first = entries(results)[0]
    assert first["event"] == "runs_found"
    assert len(first["facts"]["runs"]) == len(first["facts"]["batches"]) == 2
    assert verify_results(results).findings == ()


def test_another_model_is_told(tiny_bundle: Bundle, tmp_path: Path) -> None:
    slides, out = tmp_path / "slides", tmp_path / "results"
    write_slide(slides, "a.zarr.zip")
    screened(slides, tiny_bundle, out)
    another = write_bundle(
        tmp_path / "another",
        replace(tiny_bundle.spec, name="another"),
        tiny_bundle.network(),
        tiny_bundle.sentinels().tiles,
        card="#",
    )
    screened(slides, another, out)
    changed = entries(out)[2]
    assert changed["event"] == "model_changed"
    assert (changed["facts"]["from"]["name"], changed["facts"]["to"]["name"]) == ("tiny", "another")
    assert found(out) == []


def test_an_aborted_run_is_told(tiny_bundle: Bundle, tmp_path: Path) -> None:
    slides, out = tmp_path / "slides", tmp_path / "results"
    write_slide(slides, "a.zarr.zip")

    def put_a_file_in_the_way(progress: object) -> None:
        (out / "cells").write_text("not a folder")

    with pytest.raises(CommitError):
        run(settings_for(slides, tiny_bundle, out), report=put_a_file_in_the_way)
    end = entries(out)[-1]
    assert (end["event"], end["facts"]["state"]) == ("run_ended", "aborted")
    assert end["facts"]["exit_code"] == 1
    assert found(out) == []


def test_a_damaged_log_ends_no_night(results: Path, tiny_bundle: Bundle) -> None:
    for number in range(1, 5):
        (results / log.path_of(number)).write_bytes(b"\xff not JSON")
    write_slide(results.parent / "slides", "a.zarr.zip")
    assert screened(results.parent / "slides", tiny_bundle, results).exit_code == 0
    damaged = {path for path, what in found(results) if "no whole entry" in what}
    assert damaged == {log.path_of(number) for number in range(1, 5)}


# Writing


APPEND = """
import sys
from pathlib import Path
from cvm_batch.results.audit.log import Event, append
from cvm_batch.results.folder import ResultsFolder
root, name = sys.argv[1:]
for number in range(15):
    append(ResultsFolder(Path(root)), Event.MODEL_CHANGED, {"from": name, "to": number})
"""


def test_two_that_write_at_once_make_one_chain(tmp_path: Path) -> None:
    results = prepared(tmp_path / "results")
    writers = [
        subprocess.Popen([sys.executable, "-c", APPEND, str(results.root), name]) for name in "ab"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert found(results.root) == []
    told = [(entry["facts"]["from"], entry["facts"]["to"]) for entry in entries(results.root)]
    assert len(told) == 30
    assert [number for name, number in told if name == "a"] == list(range(15))
    assert [number for name, number in told if name == "b"] == list(range(15))


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    results = prepared(tmp_path / "results")
    (results.root / "audit").write_text("not a folder")
    with pytest.raises(CommitError, match="audit/000001"):
        log.append(results, Event.RUN_STARTED, {"run": "a"})
