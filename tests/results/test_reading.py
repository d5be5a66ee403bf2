"""A results folder read again: the newest rows, their cells and nothing superseded."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from pyarrow.fs import FSSpecHandler, PyFileSystem

import cvm_batch.results
from cvm_batch.errors import ResultsError, UsageError
from cvm_batch.results.cells import CellColumns, FoundCells, PartFiles
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.parquet import parquet_bytes
from cvm_batch.results.reading import Results, View
from cvm_batch.results.schemas import CELLS, SLIDES
from cvm_batch.results.shared_files import Holding, SharedFiles
from cvm_batch.results.slides import commit_slides
from cvm_batch.screening import commits
from cvm_batch.screening.run import run
from tests.archives.object_store import SECRET, serving_s3
from tests.results.nights import HOSTILE, Night
from tests.results.test_slides import NOON, RUN, row
from tests.screening.test_run import many_slides


@pytest.fixture
def results(night: Night) -> Iterator[Results]:
    with cvm_batch.results.open(night.results) as opened:
        yield opened


def rows(table: pa.Table) -> list[dict[str, Any]]:
    return list(table.to_pylist(maps_as_pydicts="strict"))


def by_slide(results: Results) -> dict[str, dict[str, Any]]:
    return {found["slide_id"]: found for found in rows(results.table("slides"))}


# Views


def test_slides_are_the_newest_rows(results: Results, night: Night) -> None:
    slides, everything = by_slide(results), rows(results.table("slides_all"))
    assert len(slides) == results.table("slides").num_rows == 6 + len(HOSTILE)
    assert results.table("slides").schema.names == SLIDES.names
    told = {name: (found["status"], found["run_id"]) for name, found in slides.items()}
    assert told["hsil.zip"] == ("complete", night.first_run)
    assert told["changed.zip"] == ("complete", night.second_run)
    assert told["failed.zip"] == ("failed", night.second_run), "a passing reason is tried again"
    assert told["holed"] == told["holed-normal"] == ("incomplete", night.first_run)
    assert all(told[name] == ("complete", night.first_run) for name in HOSTILE)
    assert Counter(found["run_id"] for found in everything) == {
        night.first_run: 6 + len(HOSTILE),
        night.second_run: 2,
    }
    assert slides["changed.zip"]["cells_classified"] == 25


def test_cells_are_those_that_the_newest_rows_count(results: Results) -> None:
    found = results.table(View.CELLS)
    slides = by_slide(results)
    assert Counter(found["slide_id"].to_pylist()) == {
        name: slide["cells_classified"]
        for name, slide in slides.items()
        if slide["cells_classified"]
    }
    keys = list(zip(found["slide_id"].to_pylist(), found["index"].to_pylist(), strict=True))
    assert len(keys) == len(set(keys)), "no attempt counts twice"
    classes = Counter(zip(found["slide_id"].to_pylist(), found["class"].to_pylist(), strict=True))
    for name in ("hsil.zip", "changed.zip", "normal"):
        counted = {(name, class_): n for class_, n in slides[name]["class_counts"].items() if n}
        assert {key: n for key, n in classes.items() if key[0] == name} == counted


def test_tops_come_with_their_tiles(results: Results) -> None:
    found = rows(results.query("FROM tops WHERE slide_id = 'hsil.zip' ORDER BY p_primary DESC"))
    # Each part keeps up to 20, and the slide may have several.
    assert [top["class"] for top in found[:20]] == ["HSIL"] * 20
    for top in found:
        assert np.asarray(Image.open(io.BytesIO(top["png"]))).shape == (40, 40, 3)


def test_classes_of_slides(results: Results) -> None:
    found = rows(results.table("slide_classes"))
    slides = by_slide(results)
    complete = [name for name, slide in slides.items() if slide["status"] == "complete"]
    assert len(found) == 11 * (len(complete) + 2), "a failed slide has none"
    for each in found:
        slide = slides[each["slide_id"]]
        if slide["status"] == "complete":
            assert each["count"] == slide["class_counts"][each["class"]]
            assert each["fraction"] == each["count"] / slide["cells_classified"]
            assert each["count_at_least"] is None
        else:
            assert each["count"] is each["fraction"] is None
            assert each["count_at_least"] == slide["counts_at_least"][each["class"]]


def test_runs_are_what_their_manifests_say(results: Results, night: Night) -> None:
    first, second = rows(results.table("runs"))
    assert (first["run_id"], second["run_id"]) == (night.first_run, night.second_run)
    assert (first["state"], first["exit_code"]) == ("finished", 3)
    assert first["slides_complete"] == 3 + len(HOSTILE)
    assert (first["slides_incomplete"], first["slides_failed"]) == (2, 1)
    assert (second["slides_planned"], second["slides_settled"]) == (2, 4 + len(HOSTILE))
    assert second["cells_classified"] == 25
    assert first["class_groups"]["hsil_plus"] == ["HSIL", "SCC"]
    assert timedelta(0) < first["finished_at"] - first["started_at"] < timedelta(minutes=5)
    manifest = json.loads((night.results / "runs" / f"{night.first_run}.json").read_text())
    assert json.loads(first["manifest"]) == manifest


@pytest.mark.parametrize("view", View)
def test_every_view_as_table_batches_and_relation(results: Results, view: View) -> None:
    table = results.table(view)
    assert table.num_rows > 0
    assert results.batches(view).read_all().num_rows == table.num_rows
    assert results.relation(view).count("*").fetchall() == [(table.num_rows,)]
    assert results.relation(view).columns == table.column_names


def test_a_query_takes_parameters(results: Results) -> None:
    found = results.query("SELECT status FROM slides WHERE slide_id = ?", [HOSTILE[2]])
    assert found["status"].to_pylist() == ["complete"]


def test_hostile_names_are_found_by_name(results: Results) -> None:
    for name in HOSTILE:
        found = results.query("FROM cells WHERE slide_id = $name", {"name": name})
        assert sorted(found["index"].to_pylist()) == list(range(20))


# Which files are opened


@dataclass(frozen=True)
class Named:
    """A slide and its files, as `cells_of` takes it."""

    slide_id: str
    cells_files: list[str]
    tops_files: list[str]

    @classmethod
    def of(cls, slide: dict[str, Any]) -> Named:
        return cls(slide["slide_id"], slide["cells_files"], slide["tops_files"])


def test_a_slide_asked_for_by_name_opens_its_own_files(night: Night, tmp_path: Path) -> None:
    copy = shutil.copytree(night.results, tmp_path / "results")
    with Results(copy) as results:
        slide = Named.of(by_slide(results)["hsil.zip"])
        for path in copy.glob("*/*/*/*.parquet"):
            if path.relative_to(copy).as_posix() not in (*slide.cells_files, *slide.tops_files):
                path.unlink()
        asked = results.query("FROM cells WHERE slide_id = 'hsil.zip' ORDER BY index")
        assert asked.num_rows == 30
        own = results.cells_of(slide)
        assert own["index"].to_pylist() == asked["index"].to_pylist() == list(range(30))
        assert own["probabilities"].to_pylist() == asked["probabilities"].to_pylist()
        scores = results.tops_of(slide)["p_primary"].to_pylist()
        assert scores == sorted(scores, reverse=True)
        assert len(scores) >= 20
        with pytest.raises(ResultsError, match="cvm-batch verify"):
            results.table("cells")


def cell_columns(index: list[int], classes: int = 2) -> CellColumns:
    n = len(index)
    return CellColumns(
        index=np.array(index),
        cell_id=[None] * n,
        xy=np.full((n, 2), np.nan),
        padded=np.zeros(n, np.bool_),
        probabilities=np.eye(classes, dtype=np.float32)[[0] * n],
        p_primary=np.ones(n, np.float32),
    )


@pytest.fixture
def made(tmp_path: Path) -> ResultsFolder:
    folder = ResultsFolder(tmp_path / "made")
    folder.prepare()
    return folder


def write_cells(folder: ResultsFolder, slide_id: str, index: list[int], classes: int = 2) -> str:
    names = [f"class {number}" for number in range(classes)]
    columns = cell_columns(index, classes)
    found = FoundCells(slide_id=slide_id, cells=columns, tops=None, top_tiles=())
    name = f"{slide_id}-{index[0]}-{classes}.parquet"
    return PartFiles(folder, RUN, names).write_cells(name, [found])


def join_files(folder: ResultsFolder, *names: str) -> str:
    """One file with the cells of several."""
    tables = [pq.ParquetFile(folder.root / name).read() for name in names]
    pq.write_table(pa.concat_tables(tables).unify_dictionaries(), folder.root / "cells" / "shared")
    return "cells/shared"


def test_files_that_slides_share(made: ResultsFolder) -> None:
    """Slide b's newest row names a file of its own: what the shared one holds of it is old."""
    shared = join_files(made, write_cells(made, "a", [0, 1]), write_cells(made, "b", [0, 1, 2]))
    newer = write_cells(made, "b", [3, 4])
    later = NOON + timedelta(hours=1)
    old = [row(name, cells_files=[shared]) for name in ("a", "b")]
    commit_slides(
        made, RUN, 0, [*old, row("b", cells_files=[newer], finished_at=later, run_id="2")]
    )
    with Results(made.root) as results:
        found = rows(results.query("SELECT slide_id, index FROM cells ORDER BY ALL"))
        assert [tuple(cell.values()) for cell in found] == [("a", 0), ("a", 1), ("b", 3), ("b", 4)]
        assert results.query("FROM cells WHERE slide_id = 'b'").num_rows == 2
        assert results.cells_of(Named("b", [shared], [])).num_rows == 3


@pytest.mark.parametrize("row_groups", [[5], [2, 3], [1, 1, 1, 2], [3, 2]])
def test_slides_that_share_one_file(made: ResultsFolder, row_groups: list[int]) -> None:
    """Wherever in it their cells lie."""
    shared = join_files(made, write_cells(made, "a", [0, 1]), write_cells(made, "b", [0, 1, 2]))
    table = pq.ParquetFile(made.root / shared).read()
    (made.root / shared).write_bytes(parquet_bytes(table, row_groups=row_groups))
    commit_slides(made, RUN, 0, [row(name, cells_files=[shared]) for name in ("a", "b")])
    with Results(made.root) as results:
        found = results.query("SELECT slide_id, count(*) AS n FROM cells GROUP BY 1 ORDER BY 1")
        assert found.to_pylist() == [{"slide_id": "a", "n": 2}, {"slide_id": "b", "n": 3}]


def test_a_file_is_opened_once_for_all_its_slides_and_not_for_others(
    made: ResultsFolder, tmp_path: Path
) -> None:
    files = ["ab", "cd", "e"]
    holdings = [Holding(slide, str(tmp_path / file)) for file in files for slide in file]
    for file in files:
        shared = join_files(made, *(write_cells(made, slide, [0, 1]) for slide in file))
        shutil.copy(made.root / shared, tmp_path / file)
    opened: list[str] = []

    class Counted(LocalFileSystem):
        def open(self, path: Any, *rest: Any, **options: Any) -> Any:
            opened.append(Path(path).name)
            return super().open(path, *rest, **options)

    counted = PyFileSystem(FSSpecHandler(Counted(skip_instance_cache=True)))
    shared_files = SharedFiles.of(holdings, CELLS, counted)
    with duckdb.connect() as connection:
        connection.register("cells", shared_files)

        def ask(where: str) -> dict[str, int]:
            opened.clear()
            counts = f"SELECT slide_id, count(*) FROM cells {where} GROUP BY 1 ORDER BY 1"
            return dict(connection.sql(counts).fetchall())

        assert ask("") == dict.fromkeys("abcde", 2)
        assert sorted(opened) == files
        assert ask("WHERE slide_id = 'd'") == {"d": 2}
        assert opened == ["cd"]
        assert ask("WHERE slide_id IN ('e', 'a')") == {"a": 2, "e": 2}
        assert sorted(opened) == ["ab", "e"]
        assert ask("WHERE slide_id = 'f'") == {}
        assert opened == []


#: In a process of its own, which a crash ends.
_MANY_SCANS = """
import sys
from concurrent.futures import ThreadPoolExecutor

import pyarrow.compute as pc
from pyarrow.fs import LocalFileSystem

from cvm_batch.results.schemas import CELLS
from cvm_batch.results.shared_files import Holding, SharedFiles

files = SharedFiles.of([Holding("a", sys.argv[1])], CELLS, LocalFileSystem())

def scan(number):
    return files.scanner(columns=["index"], filter=pc.field("index") >= 1).to_table().num_rows

with ThreadPoolExecutor(4) as pool:
    assert set(pool.map(scan, range(1000))) == {40}
"""


def test_scans_at_once(made: ResultsFolder) -> None:
    """A query that has the cells twice scans them twice, and Arrow's fragments bear one scan."""
    found = [
        FoundCells(slide_id=f"{slide}", cells=cell_columns([0, 1, 2]), tops=None, top_tiles=())
        for slide in range(20)
    ]
    name = PartFiles(made, RUN, ["one", "two"]).write_cells("shared.parquet", found)
    command = [sys.executable, "-c", _MANY_SCANS, str(made.root / name)]
    subprocess.run(command, check=True)


def test_cells_stay_out_of_a_query_s_memory(results: Results) -> None:
    """What the rows name is kept beside them, not they."""
    (plan,) = results.query("EXPLAIN FROM cells")["explain_value"].to_pylist()
    assert "Join Type: MARK" in plan, "of which the side that is asked, the cells, is not kept"


def test_of_a_shared_file_one_slide_is_read_without_the_others(made: ResultsFolder) -> None:
    """By whoever heeds what row groups hold, as Arrow does."""
    found = [
        FoundCells(slide_id=name, cells=cell_columns([0, 1]), tops=None, top_tiles=())
        for name in "abc"
    ]
    name = PartFiles(made, RUN, ["one", "two"]).write_cells("shared.parquet", found)
    (fragment,) = ds.dataset(made.root / name).get_fragments()
    (group,) = fragment.split_by_row_group(pc.field("slide_id") == "b")
    assert group.row_groups[0].id == 1
    assert group.to_table()["slide_id"].to_pylist() == ["b", "b"]


def test_bundles_with_other_classes_side_by_side(made: ResultsFolder) -> None:
    names = [write_cells(made, "a", [0], classes=2), write_cells(made, "b", [0], classes=5)]
    commit_slides(made, RUN, 0, [row(f, cells_files=[n]) for f, n in zip("ab", names, strict=True)])
    with Results(made.root) as results:
        found = results.query("SELECT len(probabilities) AS n FROM cells ORDER BY slide_id")
        assert found["n"].to_pylist() == [2, 5]


def test_rows_of_an_earlier_version_lack_what_is_new(made: ResultsFolder) -> None:
    commit_slides(made, RUN, 0, [row("a")])
    (path,) = (made.root / "slides").rglob("*.parquet")
    pq.write_table(pq.ParquetFile(path).read().drop_columns(["top_classes", "priority"]), path)
    with Results(made.root) as results:
        (found,) = rows(results.table("slides"))
        assert found["slide_score"] == 0.5
        assert found["top_classes"] is found["priority"] is None


def test_of_two_rows_at_one_moment_the_later_run_counts(made: ResultsFolder) -> None:
    commit_slides(made, RUN, 0, [row("a", run_id=run_id) for run_id in ("1", "3", "2")])
    with Results(made.root) as results:
        assert results.table("slides")["run_id"].to_pylist() == ["3"]


# While a run writes


def test_readers_see_whole_slides_while_a_run_writes(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "_MIN_AGE_SECONDS", 0.0)  # many batches in a short run
    many_slides(tmp_path / "slides", 40)
    out = tmp_path / "results"
    settings = replace(night.settings, inputs=(str(tmp_path / "slides"),), out=out, batch_size=8)
    seen = []

    def look(_: object) -> None:
        with Results(out) as results:
            (state,) = results.table("runs")["state"].to_pylist()
            counted = results.query(
                "SELECT slide_id, any_value(cells_classified) AS told, count(index) AS found "
                "FROM slides LEFT JOIN cells USING (slide_id) GROUP BY slide_id"
            )
            assert counted["told"].to_pylist() == counted["found"].to_pylist()
            seen.append((state, counted.num_rows))

    run(settings, report=look)
    assert {state for state, _ in seen} >= {"running"}
    assert any(0 < slides < 40 for _, slides in seen), seen


def test_what_is_opened_does_not_change(made: ResultsFolder) -> None:
    commit_slides(made, RUN, 0, [row("a")])
    with Results(made.root) as results:
        commit_slides(made, RUN, 1, [row("b")])
        assert results.table("slides")["slide_id"].to_pylist() == ["a"]
    with Results(made.root) as again:
        assert sorted(again.table("slides")["slide_id"].to_pylist()) == ["a", "b"]


# What cannot be answered


@pytest.mark.parametrize(
    "sql",
    [
        "COPY slides TO '{there}/out.csv'",
        "EXPORT DATABASE '{there}'",
        "ATTACH '{there}/new.db'",
        "CREATE TABLE kept AS FROM slides",
        "DELETE FROM slides_all",
        "SET threads = 1",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "PRAGMA database_list",
        "SELECT 1; COPY slides TO '{there}/out.csv'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM read_parquet('{results}/slides/*/*.parquet')",
        "SELECT * FROM spied",
        "SELECT getenv('HOME')",
        "",
        "-- nothing",
        "SELEC 1",
        "SELECT nothing FROM slides",
        "SELECT slide_id::INTEGER FROM slides",
        "SELECT ?",
    ],
)
def test_what_is_no_query_is_refused(
    results: Results, night: Night, tmp_path: Path, sql: str
) -> None:
    spied = pa.table({"secret": [1]})  # DuckDB finds variables of Python, if one lets it
    before = {path: path.stat().st_mtime_ns for path in night.results.rglob("*")}
    with pytest.raises(UsageError) as refused:
        results.query(sql.format(there=tmp_path, results=night.results))
    assert "\n" not in str(refused.value)
    assert {path: path.stat().st_mtime_ns for path in night.results.rglob("*")} == before
    assert list(tmp_path.iterdir()) == []
    assert spied.num_rows == 1
    assert results.query("SELECT 1 AS one")["one"].to_pylist() == [1], "and then answers again"


def test_what_does_not_fit_memory_is_spilled_and_cleared(results: Results) -> None:
    """The only files that DuckDB writes are its own, and they go with the reader."""
    (spill,) = results.query("SELECT current_setting('temp_directory') AS at")["at"].to_pylist()
    assert Path(spill).is_dir()
    results.close()
    assert not Path(spill).exists()
    results.close()


def test_a_folder_without_runs(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere", str(tmp_path)):
        with pytest.raises(ResultsError) as refused:
            cvm_batch.results.open(folder)
        assert str(folder) in str(refused.value)


def test_an_address_that_cannot_be_read() -> None:
    with pytest.raises(UsageError, match="nonsense://"):
        cvm_batch.results.open("nonsense://bucket")


@pytest.mark.parametrize("kind", ["slides", "cells", "runs"])
def test_a_damaged_file_is_told(night: Night, tmp_path: Path, kind: str) -> None:
    copy = shutil.copytree(night.results, tmp_path / "results")
    for path in (copy / kind).rglob("*.*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-20])
    with Results(copy) as results, pytest.raises(ResultsError, match="cannot be read"):
        results.table(kind)


# Other ways to the same


def test_results_on_object_storage(night: Night, results: Results) -> None:
    with serving_s3() as server:
        address = server.put_all(night.results, "lab/results")
        with pytest.raises(ResultsError, match="holds no runs"):
            cvm_batch.results.open(server.uri("lab"))
        with cvm_batch.results.open(address) as remote:
            server.fail(503, times=1)  # as the store asks again, nobody notices
            for view in View:
                assert sorted(map(str, rows(remote.table(view)))) == sorted(
                    map(str, rows(results.table(view)))
                )
            server.fail(403)
            for view in (View.SLIDES, View.CELLS):
                with pytest.raises(ResultsError, match="parquet: the server refuses") as refused:
                    remote.table(view)
                assert SECRET not in str(refused.value)
            server.mend()
            slide = Named.of(by_slide(results)["hsil.zip"])
            server.client.delete_object(
                Bucket=server.bucket, Key=f"lab/results/{slide.cells_files[0]}"
            )
            for ask in (partial(remote.cells_of, slide), partial(remote.table, View.CELLS)):
                with pytest.raises(ResultsError, match="there is no such object"):
                    ask()


def test_pandas_reads_the_folders(night: Night, results: Results) -> None:
    slides = pd.read_parquet(night.results / "slides")
    assert sorted(slides["slide_id"]) == sorted(results.table("slides_all")["slide_id"].to_pylist())
    newest = slides.sort_values("finished_at").groupby("slide_id").tail(1)
    changed = newest[newest["slide_id"] == "changed.zip"].iloc[0]
    cells = pd.concat(
        pd.read_parquet(night.results / name, partitioning=None) for name in changed["cells_files"]
    )
    assert Counter(cells["class"]) == {"ASC-US": 20, "NILM": 5}


def test_polars_reads_the_folders(night: Night, results: Results) -> None:
    slides = pl.read_parquet(night.results / "slides/**/*.parquet")
    newest = slides.sort("finished_at").group_by("slide_id").last()
    ours = {name: slide["cells_classified"] for name, slide in by_slide(results).items()}
    assert dict(newest.select("slide_id", "cells_classified").iter_rows()) == ours
    (files,) = newest.filter(pl.col("slide_id") == "changed.zip")["cells_files"].to_list()
    cells = pl.concat(pl.read_parquet(night.results / name) for name in files)
    assert Counter(cells["class"]) == {"ASC-US": 20, "NILM": 5}
    assert cells["probabilities"].dtype.shape == (11,)
