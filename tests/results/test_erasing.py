"""A slide that is erased: nothing of it is left, nothing else is touched, whenever it is killed."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cvm_batch.errors import CommitError, ResultsError, ResultsInUseError, TakenOverError
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision
from cvm_batch.pseudonyms import Pseudonyms
from cvm_batch.results.audit.log import Entry, Event, append
from cvm_batch.results.claims import Claims
from cvm_batch.results.erasing import erase
from cvm_batch.results.erasing.erase import erase_slide
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName, slide_stem
from cvm_batch.results.manifest import RunState
from cvm_batch.results.parquet import parquet_bytes
from cvm_batch.results.processes import Process
from cvm_batch.results.schemas import NAMES, SLIDES
from cvm_batch.results.sealing import exclusive
from cvm_batch.results.slides import commit_slides, newest_rows
from cvm_batch.results.verifying import verify_results
from cvm_batch.screening.run import run
from tests.archives.object_store import serving_s3
from tests.results.nights import (
    CELLS,
    HOSTILE,
    content,
    screened,
    settings_for,
    write_hostile_slides,
)
from tests.results.test_claims import QUICK
from tests.results.test_slides import row


@dataclass(frozen=True)
class Nights:
    slides: Path
    results: Path


@pytest.fixture(scope="module")
def two_nights(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Nights:
    """Every slide has a row in each of two runs. The second one named one slide by itself."""
    folder = tmp_path_factory.mktemp("nights")
    slides, out = write_hostile_slides(folder / "slides"), folder / "results"
    screened(slides, tiny_bundle, out)
    inputs = tuple(str(slides / name) for name in HOSTILE)
    second = settings_for(slides, tiny_bundle, out, precision=Precision.BF16)
    run(replace(second, inputs=inputs, priorities=tuple((name, 9) for name in HOSTILE)))
    for path in (out / "runs").iterdir():
        report = out / "reports" / path.stem / "index.html"
        report.parent.mkdir(parents=True)
        report.write_text("\n".join(HOSTILE), encoding="utf-8", newline="")
    return Nights(slides, out)


@pytest.fixture
def results(two_nights: Nights, tmp_path: Path) -> ResultsFolder:
    return ResultsFolder(shutil.copytree(two_nights.results, tmp_path / "results"))


def spellings(name: str) -> Iterator[bytes]:
    """How a file may hold a name."""
    yield name.encode()
    yield json.dumps(name)[1:-1].encode()
    yield json.dumps(name, ensure_ascii=False)[1:-1].encode()
    yield repr(name)[1:-1].encode()


def holding(root: Path, name: str) -> set[str]:
    """The files that hold a slide's name, or what files of its cells are called by.

    The audit log may hold a digest of it.
    """
    hashed = slide_stem(name)
    found = set()
    for path, data in content(root).items():
        digested = hashed in path or hashed.encode() in data
        if path.endswith(".parquet"):
            data += decoded(root / path)
        plain = any(spelling in data for spelling in spellings(name))
        if plain or (digested and not path.startswith("audit/")):
            found.add(path)
    return found


def decoded(path: Path) -> bytes:
    """All that a table holds: rows, statistics, and dictionaries, of which no row may make use."""
    with pq.ParquetFile(path) as file:
        table, statistics = file.read(), file.metadata.to_dict()
    dictionaries = [
        chunk.dictionary.to_pylist()
        for column in table.columns
        for chunk in column.chunks
        if pa.types.is_dictionary(column.type)
    ]
    return repr((table.to_pylist(), statistics, dictionaries)).encode()


def files_of(root: Path, name: str, *, shared: bool) -> list[Path]:
    """Cells and tops files that hold the slide beside others, or the slide alone."""
    found = []
    for kind in ("cells", "tops"):
        for path in sorted((root / kind).rglob("*.parquet")):
            slides = set(pq.ParquetFile(path).read(columns=["slide_id"])["slide_id"].to_pylist())
            if name in slides and (len(slides) > 1) is shared:
                found.append(path)
    return found


def left_by_a_killed_run(root: Path, name: str) -> Path:
    """A cells file that no row names, of a slide of any name."""
    first = sorted((root / "cells").rglob("*.parquet"))[0]
    table = pq.ParquetFile(first).read(columns=["index"])
    named = table.append_column("slide_id", pa.array([name] * len(table)))
    path = first.with_name(f"lease-99999999-{len(list(first.parent.iterdir())):03d}.parquet")
    pq.write_table(named, path)
    return path


def tables(root: Path, without: str) -> dict[str, Any]:
    """All rows of slides and cells but those of one slide, by path."""
    found = {}
    for path in sorted(root.glob("*/run_date=*/**/*.parquet")):
        table = pq.ParquetFile(path).read()
        rows = [row for row in table.to_pylist() if row["slide_id"] != without]
        if rows:
            found[path.relative_to(root).as_posix()] = rows
    return found


@pytest.mark.parametrize("slide", HOSTILE)
def test_nothing_of_the_slide_is_left_and_nothing_else_is_touched(
    results: ResultsFolder, slide: str
) -> None:
    others, before = tables(results.root, slide), content(results.root)
    assert {path.split("/")[0] for path in holding(results.root, slide)} == {
        *("slides", "cells", "tops", "runs", "reports")
    }
    shared = files_of(results.root, slide, shared=True)
    its_own = files_of(results.root, slide, shared=False)
    erased = erase_slide(results, slide)
    assert (erased.rows, erased.runs, erased.files_removed) == (2, 2, len(its_own))
    assert (erased.files_rewritten, erased.reports_removed) == (len(shared), 2)
    assert holding(results.root, slide) == set()
    assert tables(results.root, slide) == others
    rewritten = {
        path for path, data in content(results.root).items() if before.get(path, data) != data
    }
    kinds = {path.relative_to(results.root).parts[0] for path in shared}
    assert {path.split("/")[0] for path in rewritten} == {"slides", "runs", *kinds}
    assert verify_results(results.root).findings == ()


def test_the_log_tells_that_it_was_done(results: ResultsFolder) -> None:
    erased = erase_slide(results, HOSTILE[0])
    last = [json.loads(path.read_bytes()) for path in sorted((results.root / "audit").iterdir())]
    start, end = last[-2:]
    assert (start["event"], end["event"]) == ("erasure_started", "erasure_ended")
    assert start["facts"]["slide"] == end["facts"]["slide"]
    assert end["facts"]["algorithm"] == "sha256"
    assert (end["facts"]["rows"], len(end["facts"]["batches"])) == (2, 2)
    assert erased.entry == {"entry": end["entry"], "digest": end["digest"]}


def test_under_a_key_the_log_names_the_slide_by_that(results: ResultsFolder) -> None:
    key = Pseudonyms(b"0123456789abcdef")
    entry = erase_slide(results, HOSTILE[0], key).entry["entry"]
    facts = json.loads((results.root / f"audit/{entry:06d}.json").read_bytes())["facts"]
    assert facts["algorithm"] == "hmac-sha256"
    assert facts["slide"] == key.digest(HOSTILE[0])


def test_erasing_twice_is_told_and_changes_nothing(results: ResultsFolder) -> None:
    first = erase_slide(results, HOSTILE[0])
    before = content(results.root)
    again = erase_slide(results, HOSTILE[0])
    assert again.already
    assert again.entry == first.entry
    assert content(results.root) == before


def test_a_rewritten_batch_that_is_changed_later_is_found(results: ResultsFolder) -> None:
    erase_slide(results, HOSTILE[0])
    batch = sorted(results.root.glob("slides/**/*.parquet"))[0]
    pq.write_table(pq.ParquetFile(batch).read().slice(1), batch)
    assert any("audit log" in finding.what for finding in verify_results(results.root).findings)


def test_a_batch_that_was_changed_before_is_not_whitewashed(results: ResultsFolder) -> None:
    batch = sorted(results.root.glob("slides/**/*.parquet"))[0]
    table = pq.ParquetFile(batch).read()
    batch.write_bytes(parquet_bytes(table.filter(pa.compute.field("slide_id") != HOSTILE[1])))
    erase_slide(results, HOSTILE[0])
    assert any(
        f"names {batch.relative_to(results.root)}, which was changed before" in finding.what
        for finding in verify_results(results.root).findings
    )


def test_the_slide_is_classified_again_while_it_lies_among_the_inputs(
    two_nights: Nights, results: ResultsFolder, tiny_bundle: Bundle
) -> None:
    erase_slide(results, HOSTILE[0])
    again = screened(two_nights.slides, tiny_bundle, results.root)
    assert again.by_status.total() == 1
    assert again.settled.total() == len(HOSTILE) - 1
    assert verify_results(results.root).findings == ()
    assert not erase_slide(results, HOSTILE[0]).already


def test_inputs_that_are_another_s_stay(results: ResultsFolder) -> None:
    erase_slide(results, HOSTILE[0])
    manifests = [json.loads(path.read_text()) for path in sorted((results.root / "runs").iterdir())]
    first, second = (manifest["settings"]["inputs"] for manifest in manifests)
    assert [Path(path).name for path in first] == ["slides"]
    assert [Path(path).name for path in second] == list(HOSTILE[1:])


def test_what_a_manifest_tells_in_words_is_taken_out(results: ResultsFolder) -> None:
    path = sorted((results.root / "runs").iterdir())[0]
    manifest = json.loads(path.read_text())
    name = HOSTILE[2]
    manifest["replicas_lost"] = [f"died of {name!r}", "out of memory"]
    manifest["error"] = f"/night/{slide_stem(name)}.html could not be committed"
    manifest["settings"]["priorities"] = [["*red*", 5], [name, 7], ["other", 9]]
    manifest["sealed_by"] = "a later run"
    path.write_text(json.dumps(manifest))
    erase_slide(results, name)
    told = json.loads(path.read_text())
    assert told["replicas_lost"] == ["died of '(an erased slide)'", "out of memory"]
    assert told["error"] == "/night/(an erased slide).html could not be committed"
    assert told["settings"]["priorities"] == [["other", 9]]


# Refusals


def test_a_run_that_holds_the_folder_is_not_disturbed(results: ResultsFolder) -> None:
    before = content(results.root)
    driving = exclusive(results, RunName.of("20991231T000000Z-0a1b2c3d"), QUICK)
    with driving, pytest.raises(ResultsInUseError):
        erase_slide(ResultsFolder(results.root), HOSTILE[0])
    assert content(results.root) == before


def test_a_killed_run_is_sealed_before_its_rows_are_erased(results: ResultsFolder) -> None:
    killed = RunName.of("20991231T000000Z-0a1b2c3d")
    gone = replace(Process.this(), started=1)
    Claims(results, process=gone).take(killed.run_id)
    mine = row(HOSTILE[0], run_id=killed.run_id, cells_files=[])
    commit_slides(results, killed, 0, [mine])
    assert erase_slide(results, HOSTILE[0]).rows == 3
    with pytest.raises(TakenOverError):  # it was only frozen, and wakes up
        commit_slides(results, killed, 1, [mine])
    assert HOSTILE[0] not in newest_rows(results)["slide_id"].to_pylist()
    what = {finding.what for finding in verify_results(results.root).findings}
    assert what == set(), "its sealed batches are in the log"


def test_who_is_taken_over_changes_nothing_more(
    results: ResultsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen once the log says that it begins, while another run took the folder over."""

    def rows_and_manifests() -> dict[str, bytes]:
        there = content(results.root)
        return {path: there[path] for path in there if path.startswith(("slides/", "runs/"))}

    before = rows_and_manifests()

    def frozen(folder: ResultsFolder, event: Event, facts: dict[str, Any]) -> Entry:
        entry = append(folder, event, facts)
        newest = Claims(folder).newest()
        assert newest is not None
        later = replace(newest, number=newest.number + 1, run_id="20991231T000000Z-0a1b2c3d")
        folder.publish(later.name, later.to_json())
        return entry

    monkeypatch.setattr(erase, "append", frozen)
    with pytest.raises(TakenOverError, match="The slide is not erased yet"):
        erase_slide(results, HOSTILE[0])
    assert rows_and_manifests() == before


@pytest.mark.parametrize("slide", ["unknown", "", HOSTILE[0].upper(), HOSTILE[0] + " ", "*"])
def test_a_slide_that_is_not_there(results: ResultsFolder, slide: str) -> None:
    before = content(results.root)
    with pytest.raises(ResultsError, match="holds nothing of a slide"):
        erase_slide(results, slide)
    assert content(results.root) == before


def test_a_folder_that_holds_no_results_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="holds no runs"):
        erase_slide(ResultsFolder(tmp_path), "a")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_slides_batch_stops_it_before_anything_changes(results: ResultsFolder) -> None:
    batch = sorted(results.root.glob("slides/**/*.parquet"))[1]
    batch.write_bytes(batch.read_bytes()[:-9])
    before = content(results.root)
    with pytest.raises(ResultsError, match="cannot be read"):
        erase_slide(results, HOSTILE[0])
    assert content(results.root) == before


def test_what_cannot_be_removed_is_told(results: ResultsFolder) -> None:
    mine = left_by_a_killed_run(results.root, HOSTILE[0])
    delete = results.store.delete

    def refuse(name: str, *, lasting: bool = True) -> None:
        if mine.match(name):
            raise PermissionError(errno.EACCES, "Permission denied")
        delete(name, lasting=lasting)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results.store, "delete", refuse)
        with pytest.raises(CommitError, match=r"not erased yet.*Permission denied.*erase it again"):
            erase_slide(results, HOSTILE[0])
    assert erase_slide(results, HOSTILE[0]).files_removed >= 1
    assert holding(results.root, HOSTILE[0]) == set()
    assert verify_results(results.root).findings == ()


def test_a_slide_is_erased_from_object_storage(two_nights: Nights) -> None:
    with serving_s3() as server:
        results = ResultsFolder(server.put_all(two_nights.results, "lab/results"))
        erased = erase_slide(results, HOSTILE[2])
        assert (erased.rows, erased.runs) == (2, 2)
        kinds = ("audit", "cells", "reports", "runs", "slides", "tops")
        left = [name for kind in kinds for name in results.names(kind, deep=True)]
        prefix = slide_stem(HOSTILE[2])
        assert not [name for name in left if prefix in name]
        data = b"".join(results.read(name) for name in left if not name.startswith("audit/"))
        assert not any(spelling in data for spelling in spellings(HOSTILE[2]))
        assert HOSTILE[2] not in newest_rows(results)["slide_id"].to_pylist()
        verdict = verify_results(str(results))
        assert verdict.findings == ()
        assert verdict.audit_head is not None
        assert verdict.audit_head.reference() == erased.entry


# Files that slides share, and files that no row names


def share_files(root: Path, names_as: pa.DataType = NAMES) -> Path:
    """Put the cells of all slides of the first run into one file, which each row names."""
    batch = sorted(root.glob("slides/**/*.parquet"))[0]
    rows = pq.ParquetFile(batch).read().to_pylist(maps_as_pydicts="strict")
    for column in ("cells_files", "tops_files"):
        names = sorted({name for row in rows for name in row[column]})
        table = pa.concat_tables([pq.ParquetFile(root / name).read() for name in names])
        table = table.set_column(0, "slide_id", table["slide_id"].cast(names_as))
        shared = Path(names[0]).with_name("shared.parquet")
        (root / shared).write_bytes(parquet_bytes(table.unify_dictionaries()))
        for name in names:
            (root / name).unlink()
        for each in rows:
            each[column] = [shared.as_posix()]
    batch.write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=SLIDES)))
    shutil.rmtree(root / "audit")
    for path in (root / "runs").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"audit": None}))
    return sorted(root.glob("cells/**/shared.parquet"))[0]


@pytest.mark.parametrize("names_as", [pa.string(), NAMES], ids=["now", "in earlier versions"])
def test_a_file_that_other_slides_need_is_rewritten(
    results: ResultsFolder, names_as: pa.DataType
) -> None:
    shared = share_files(results.root, names_as)
    others = tables(results.root, HOSTILE[0])
    both, its_own = (files_of(results.root, HOSTILE[0], shared=each) for each in (True, False))
    erased = erase_slide(results, HOSTILE[0])
    assert (erased.files_rewritten, erased.files_removed) == (len(both), len(its_own))
    assert holding(results.root, HOSTILE[0]) == set(), "nor in a dictionary that lists all names"
    assert tables(results.root, HOSTILE[0]) == others
    assert pq.ParquetFile(shared).read().num_rows == CELLS * (len(HOSTILE) - 1)
    for name in HOSTILE[1:]:
        erase_slide(results, name)
    assert not shared.exists()
    assert newest_rows(results).num_rows == 0


def test_a_shared_file_that_is_damaged_stops_it_before_anything_changes(
    results: ResultsFolder,
) -> None:
    shared = share_files(results.root)
    shared.write_bytes(shared.read_bytes()[:-9])
    before = content(results.root)
    with pytest.raises(ResultsError, match=r"shared\.parquet cannot be read"):
        erase_slide(results, HOSTILE[0])
    after = content(results.root)
    del after["audit/000001.json"]  # which tells of runs that are older than the log
    assert after == before


def test_what_killed_runs_left_of_it_goes_too(results: ResultsFolder) -> None:
    """Under any name, damaged or whole; what is left of other slides stays."""
    its_own = files_of(results.root, HOSTILE[0], shared=False)
    left = left_by_a_killed_run(results.root, HOSTILE[0])
    kept = left_by_a_killed_run(results.root, HOSTILE[1])
    damaged = left.with_name("lease-99999999-999.parquet")
    damaged.write_bytes(b"half")
    removed = erase_slide(results, HOSTILE[0]).files_removed
    assert removed == len({*its_own, left, damaged})
    assert holding(results.root, HOSTILE[0]) == set()
    assert kept.exists()


def test_a_slide_that_no_row_names_can_be_erased(results: ResultsFolder) -> None:
    """A run was killed before it committed the slide."""
    left = left_by_a_killed_run(results.root, "never committed")
    assert erase_slide(results, "never committed").files_removed == 1
    assert not left.exists()
    assert verify_results(results.root).findings == ()


def test_cells_that_no_row_names_in_a_file_that_others_need(results: ResultsFolder) -> None:
    """The driver was killed when it had committed some of a lease's slides, and not this one."""
    share_files(results.root)
    for batch in sorted(results.root.glob("slides/**/*.parquet")):
        rows = pq.ParquetFile(batch).read()
        batch.write_bytes(parquet_bytes(rows.filter(pc.not_equal(rows["slide_id"], HOSTILE[0]))))
    shutil.rmtree(results.root / "audit", ignore_errors=True)
    shutil.rmtree(results.root / "reports")
    its_own = files_of(results.root, HOSTILE[0], shared=False)
    both = files_of(results.root, HOSTILE[0], shared=True)
    others = tables(results.root, HOSTILE[0])
    erased = erase_slide(results, HOSTILE[0])
    assert (erased.rows, erased.files_rewritten) == (0, len(both))
    assert erased.files_removed == len(its_own)
    assert len(both) >= 2
    assert files_of(results.root, HOSTILE[0], shared=True) == []
    assert tables(results.root, HOSTILE[0]) == others


def test_a_slide_s_cells_stay_a_row_group_of_their_own(results: ResultsFolder) -> None:
    shared = share_files(results.root)
    erase_slide(results, HOSTILE[3])
    with pq.ParquetFile(shared) as file:
        groups = [file.read_row_group(n)["slide_id"] for n in range(file.num_row_groups)]
    assert {len(group.unique()) for group in groups} == {1}


# Killed


#: Erases in one copy of a results folder after the other, each time in a process that kills
#: itself before one step further on: before the first rename, link or removal, before the second.
SWEEP = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from cvm_batch.results.erasing.erase import erase_slide
from cvm_batch.results.folder import ResultsFolder

source, copies, slide = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
STEPS = {"os.link", "os.rename", "os.remove"}
FOLDERS = {"audit", "cells", "reports", "runs", "slides", "tops"}

def of_results(path):
    return isinstance(path, (str, Path)) and not FOLDERS.isdisjoint(Path(path).parts)

def kill_before(step):
    steps = itertools.count()
    def hook(event, arguments):
        if event in STEPS and any(map(of_results, arguments)) and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

for step in itertools.count():
    copy = copies / f"{step:03d}"
    shutil.copytree(source, copy)
    child = os.fork()
    if not child:
        kill_before(step)
        erase_slide(ResultsFolder(copy), slide)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
"""


def test_killed_before_any_step_the_second_call_finishes(
    two_nights: Nights, tmp_path: Path
) -> None:
    """The first run's cells lie in files that slides share, the second one's in their own."""
    slide = HOSTILE[2]
    source = shutil.copytree(two_nights.results, tmp_path / "source")
    for name in (*HOSTILE[:2], *HOSTILE[4:]):  # two slides show as much as seven
        erase_slide(ResultsFolder(source), name)
    share_files(source)
    others = tables(source, slide)
    copies = tmp_path / "copies"
    subprocess.run([sys.executable, "-c", SWEEP, str(source), str(copies), slide], check=True)
    folders = sorted(copies.iterdir())
    assert len(folders) > 10, "each step is one that it can be killed before"
    for folder in folders:
        assert tables(folder, slide) == others, "no reader misses another slide's rows"
        killed = {finding.what for finding in verify_results(folder).findings}
        again = erase_slide(ResultsFolder(folder), slide)
        assert holding(folder, slide) == set(), folder.name
        assert tables(folder, slide) == others
        assert verify_results(folder).findings == (), folder.name
        if folder is folders[-1]:
            assert again.already
        elif killed:
            assert any("begins to erase" in what for what in killed), killed


def test_a_killed_erasure_under_another_key_is_told(
    two_nights: Nights, results: ResultsFolder
) -> None:
    """All is gone but the last entry: without the key nobody knows whose erasure it was."""
    entry = erase_slide(results, HOSTILE[0], Pseudonyms(b"0123456789abcdef")).entry["entry"]
    (results.root / f"audit/{entry:06d}.json").unlink()
    with pytest.raises(ResultsError, match="set the key for pseudonyms that was set then"):
        erase_slide(results, HOSTILE[0])
    assert erase_slide(results, HOSTILE[0], Pseudonyms(b"0123456789abcdef")).rows == 0
    assert verify_results(results.root).findings == ()


def test_manifests_keep_their_state(results: ResultsFolder) -> None:
    erase_slide(results, HOSTILE[0])
    for path in (results.root / "runs").iterdir():
        assert json.loads(path.read_text())["state"] == RunState.FINISHED
