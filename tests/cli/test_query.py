"""`query` and `worklist` as a user types them."""

from __future__ import annotations

import base64
import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cvm_batch.cli import cli
from cvm_batch.cli.tables import as_csv, as_json, as_text
from cvm_batch.errors import ExitCode, UsageError
from cvm_batch.results.canned import canned_queries
from cvm_batch.results.reading import Results
from tests.cli.test_commands import cvm_batch_run
from tests.results.nights import HOSTILE, Night

COMPLETE = 3 + len(HOSTILE)


def told(*arguments: object) -> str:
    """What a command prints; in this process, as each one of its own takes a second."""
    ended = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert ended.exception is None, ended.exception
    assert ended.stderr == ""
    return ended.stdout


def refused(*arguments: object) -> str:
    """What a command says that is used wrongly; nothing else is printed."""
    ended = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert ended.stdout == ""
    if isinstance(ended.exception, UsageError):
        return str(ended.exception)
    assert ended.exit_code == ExitCode.USAGE, ended.exception
    return ended.stderr


def harmless(text: str) -> bool:
    """Nothing in it moves a cursor, turns text around or breaks a line that should not be."""
    return all(line.isprintable() for line in text.split("\n"))


# query


def test_sql_as_a_table(night: Night) -> None:
    sql = "SELECT status, count(*) AS n FROM slides GROUP BY status ORDER BY status"
    assert told("query", sql, "--results", night.results) == (
        f"status       n\ncomplete    {COMPLETE}\nfailed       1\nincomplete   2\n"
    )


def test_sql_as_json_csv_and_parquet(night: Night, tmp_path: Path) -> None:
    sql = "SELECT slide_id, class_counts, cells_files, finished_at, abnormal_fraction FROM slides"
    asked = ("query", f"{sql} ORDER BY slide_id", "--results", night.results)
    objects = json.loads(told(*asked, "--format", "json"))
    out = tmp_path / "out.parquet"
    assert told(*asked, "--format", "parquet", "--file", out) == ""
    table = pq.read_table(out)
    assert table["slide_id"].to_pylist() == [each["slide_id"] for each in objects]
    assert set(HOSTILE) < {each["slide_id"] for each in objects}, "exactly as they are"
    counts = table["class_counts"].to_pylist(maps_as_pydicts="strict")
    assert counts == [each["class_counts"] for each in objects]
    assert sum(each["NILM"] for each in counts if each) > 0
    lines = list(csv.DictReader(io.StringIO(told(*asked, "--format", "csv"))))
    assert [json.loads(line["cells_files"]) for line in lines] == [
        each["cells_files"] for each in objects
    ]
    assert [line["finished_at"] for line in lines] == [each["finished_at"] for each in objects]


@pytest.mark.parametrize("name", canned_queries())
def test_queries_that_have_a_name(night: Night, name: str) -> None:
    by_name = json.loads(told("query", name, "--results", night.results, "--format", "json"))
    with Results(night.results) as results:
        found = results.query(canned_queries()[name].sql)
    assert by_name
    assert len(by_name) == found.num_rows
    assert list(by_name[0]) == found.column_names


def test_failures_say_what_happens_next(night: Night) -> None:
    found = json.loads(told("query", "failures", "--results", night.results, "--format", "json"))
    assert {(each["slide_id"], each["reason"], each["tried_again"]) for each in found} == {
        ("failed.zip", "checksum_mismatch", True),
        ("holed", "unreadable_tiles", False),
        ("holed-normal", "unreadable_tiles", False),
    }


def test_drift_compares_a_run_with_those_before(night: Night) -> None:
    newest, first = json.loads(
        told("query", "drift", "--results", night.results, "--format", "json")
    )
    assert (first["run_id"], first["slides"]) == (night.first_run, COMPLETE)
    assert first["cells"] == 3 * 30 + 20 * len(HOSTILE)
    assert first["abnormal"] == pytest.approx(20 / first["cells"])
    assert (newest["run_id"], newest["cells"], newest["abnormal"]) == (night.second_run, 25, 0.8)
    assert newest["abnormal_off"] is None, "one run before it has no spread"


def test_the_list_names_them_all() -> None:
    lines = told("query", "--list").splitlines()
    assert [line.split()[0] for line in lines] == list(canned_queries())
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["SELECT nothing FROM slides"], 'Binder Error: Referenced column "nothing" not found'),
        (["SELEC 1"], "Parser Error"),
        (["COPY slides TO 'x.csv'"], "A query reads"),
        (["SELECT * FROM read_csv('/etc/passwd')"], "Permission Error"),
        (["worklist", "--format", "parquet"], "give --file"),
        ([], "Give SQL"),
    ],
)
def test_what_cannot_be_answered(night: Night, arguments: list[str], why: str) -> None:
    message = refused("query", *arguments, "--results", night.results)
    assert why in message
    assert harmless(message)


def test_nothing_is_written_among_the_results(night: Night, tmp_path: Path) -> None:
    inside = night.results / "slides" / "mine.csv"
    for command in (
        ["query", "worklist", "--file", inside],
        ["worklist", "--csv", inside],
    ):
        assert "lies among the results" in refused(*command, "--results", night.results)
    assert not inside.exists()
    nowhere = tmp_path / "nowhere" / "out.csv"
    assert "cannot be written" in refused(
        "query", "worklist", "--file", nowhere, "--results", night.results
    )


def test_no_results(tmp_path: Path) -> None:
    assert "holds no runs" in refused("query", "worklist", "--results", tmp_path)
    assert "--results" in refused("query", "worklist")


def test_as_a_process_of_its_own(night: Night) -> None:
    asked = ["--results", night.results]
    assert cvm_batch_run("query", "SELECT 1 AS one", *asked).stdout == "one\n  1\n"
    cast = "SELECT slide_id::INT FROM slides WHERE slide_id LIKE '%red%'"
    ended = cvm_batch_run("query", cast, *asked)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Conversion Error: Could not convert string '\\x1b[31mred" in ended.stderr
    assert harmless(ended.stderr)


def test_pandas_costs_a_query_no_time(night: Night) -> None:
    script = (
        "import sys; from cvm_batch.cli import main\n"
        f"sys.argv = ['cvm-batch', 'query', 'worklist', '--results', {str(night.results)!r}]\n"
        "try: main()\n"
        "finally: assert 'pandas' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


# worklist


def test_the_worklist_for_people(night: Night) -> None:
    text = told("worklist", "--results", night.results)
    assert harmless(text)
    titles = [line for line in text.splitlines() if line.endswith(")")]
    assert titles == [
        "Look at these first: not read whole, and suspicious cells were found (1)",
        f"Ranked by slide_score, most suspicious first ({COMPLETE})",
        f"Quality control: drawn from the {COMPLETE - 2} negatives (1)",
        "Not read whole; nothing suspicious in what could be read (1)",
        "Failed: not looked at (1)",
    ]
    ranked = text[text.index("Ranked") :].splitlines()[2:4]
    assert {line.split()[3] for line in ranked} == {"hsil.zip", "changed.zip"}


def test_the_worklist_for_spreadsheets(night: Night, tmp_path: Path) -> None:
    out = tmp_path / "worklist.csv"
    told("worklist", "--results", night.results, "--by", "fraction:hsil_plus", "--csv", out)
    text = out.read_text()
    assert harmless(text)
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == COMPLETE + 3
    assert (lines[0]["list"], lines[0]["slide_id"]) == ("urgent_incomplete", "holed")
    assert (lines[1]["slide_id"], lines[1]["rank"], lines[1]["quintile"]) == ("hsil.zip", "1", "1")
    assert float(lines[1]["hsil_plus_fraction"]) == pytest.approx(20 / 30)
    every = [cell for line in lines for cell in line.values()]
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in every)
    assert any(line["slide_id"] == f"'{HOSTILE[1]}" for line in lines)


def test_the_worklist_for_scripts(night: Night, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label\nhsil.zip,positive\nnormal,negative\nchanged.zip,negative\n")
    text = told("worklist", "--results", night.results, "--labels", labels, "--json")
    assert text.isascii()
    found = json.loads(text)
    assert found["by"] == "slide_score"
    assert {each["slide_id"] for each in found["slides"]} > set(HOSTILE)
    areas = {roc["measure"]: roc["auc"] for roc in found["roc"]}
    assert areas["fraction:hsil_plus"] == 1.0
    assert areas["count:asc_us_plus"] == 0.75, "changed.zip has as many"
    assert all(len(roc["points"]) >= 2 for roc in found["roc"])
    shown = told("worklist", "--results", night.results, "--labels", labels)
    assert "count:asc_us_plus         0.750 (" in shown


def test_the_worklist_of_one_run(night: Night) -> None:
    asked = ("worklist", "--results", night.results, "--json", "--run")
    found = json.loads(told(*asked, night.second_run))["slides"]
    assert {each["slide_id"] for each in found} == {"changed.zip", "failed.zip"}
    assert "There is no run" in refused(*asked, "yesterday")


def test_a_worklist_that_makes_no_sense(night: Night) -> None:
    for wrong in (["--by", "score"], ["--by", "count:none"], ["--quality-control", "0.05"]):
        assert harmless(refused("worklist", "--results", night.results, *wrong))


# Tables


def table(**columns: Any) -> pa.Table:
    return pa.table({name: pa.array(*given) for name, given in columns.items()})


def test_what_json_does_not_have() -> None:
    counts = pa.map_(pa.string(), pa.int64())
    found = json.loads(
        as_json(
            table(
                png=([b"\x89PNG"], pa.binary()),
                nan=([float("nan")], pa.float64()),
                sum=([12345678901234567890], pa.decimal128(38, 0)),
                counts=([[("HSIL", 3)]], counts),
                none=([None], counts),
            )
        )
    )
    assert found == [
        {
            "png": base64.b64encode(b"\x89PNG").decode(),
            "nan": None,
            "sum": 12345678901234567890,
            "counts": {"HSIL": 3},
            "none": None,
        }
    ]


def test_aligned_whatever_the_width_of_letters() -> None:
    text = as_text(
        table(
            name=(["標本", "a", "x" * 99], pa.string()),
            n=([1, None, 1_000_000], pa.int64()),
            yes=([True, False, None], pa.bool_()),
        )
    )
    assert text.splitlines() == [
        f"name{' ' * 56}        n  yes",
        f"標本{' ' * 56}        1  yes",
        f"a{' ' * 59}        -  no",
        f"{'x' * 59}…  1000000  -",
    ]


def test_a_table_without_rows_has_a_heading() -> None:
    empty = table(name=([], pa.string()), n=([], pa.int64()))
    assert as_text(empty) == "name  n\n"
    assert as_csv(empty) == "name,n\n"
    assert as_json(empty) == "[]\n"
