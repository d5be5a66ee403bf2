"""`report` as a user types it, and the report that each run leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from cvm_batch.cli import cli
from cvm_batch.cli.report import report_at_end
from cvm_batch.errors import RunAbortedError, UsageError
from cvm_batch.model.bundle import Bundle
from cvm_batch.pseudonyms import KEY_VARIABLE, Pseudonyms
from cvm_batch.results.report import writing
from tests.archives import making
from tests.cli.test_commands import submit
from tests.results.nights import HOSTILE, Night
from tests.screening.test_run import flip_byte_in_member, tiles


@pytest.fixture
def results(night: Night, tmp_path: Path) -> Path:
    return shutil.copytree(night.results, tmp_path / "results")


def invoked(*arguments: object) -> str:
    ended = CliRunner().invoke(cli, ["report", *map(str, arguments)])
    assert ended.exception is None, ended.exception
    return ended.stdout


def refused(*arguments: object) -> str:
    ended = CliRunner().invoke(cli, ["report", *map(str, arguments)])
    assert isinstance(ended.exception, UsageError)
    return str(ended.exception)


def test_the_latest_run_and_another(night: Night, results: Path) -> None:
    page = results / "reports" / night.second_run / "index.html"
    assert invoked("--results", results) == (
        f"Report: {page}\nDrift: Not judged yet: there is 1 earlier night of this model to "
        "compare with, and 5 are needed.\n"
    )
    assert page.is_file()
    invoked(night.first_run, "--results", results)
    assert (results / "reports" / night.first_run / "index.html").is_file()
    assert "holds no run 'x'" in refused("x", "--results", results)


def test_json(night: Night, results: Path) -> None:
    found = json.loads(invoked("--results", results, "--json"))
    assert Path(found["report"]).is_file()
    assert (found["run_id"], found["drift"]["level"]) == (night.second_run, "not judged")
    assert set(found["drift"]["measures"]) == {
        *("mix", "abnormal", "confidence", "brightness", "focus")
    }
    assert found["files"] > 5


def test_pseudonyms_need_a_key(
    night: Night, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert "need a key" in refused("--results", results, "--pseudonyms")
    monkeypatch.setenv(KEY_VARIABLE, "k" * 32)
    invoked(night.first_run, "--results", results, "--pseudonyms")
    folder = results / "reports" / f"{night.first_run}-pseudonyms" / "slides"
    assert (folder / f"{Pseudonyms(b'k' * 32).of(HOSTILE[0])}.html").is_file()


def test_elsewhere_but_not_among_the_results(results: Path, tmp_path: Path) -> None:
    invoked("--results", results, "--out", tmp_path / "share" / "night")
    assert (tmp_path / "share" / "night" / "index.html").is_file()
    assert not (results / "reports").exists()
    assert "among the results" in refused("--results", results, "--out", results / "x")


def test_every_submit_leaves_one(tiny_bundle: Bundle, tmp_path: Path) -> None:
    slides, out = tmp_path / "slides", tmp_path / "results"
    making.write_zip(slides / "a.zip", tiles(20, seed=0))
    making.write_zip(slides / "b.zip", tiles(20, seed=1))
    flip_byte_in_member(slides / "b.zip")
    code, _, told = submit(slides, tiny_bundle.path, out)
    (page,) = out.glob("reports/*/index.html")
    assert code == 3
    assert f"Report: {page}" in told
    assert "Finished, 1 slide is not complete" in page.read_text()
    # The next one finds nothing new, and says what is still open.
    (slides / "b.zip").unlink()
    submit(slides, tiny_bundle.path, out, "--no-report")
    assert list(out.glob("reports/*/index.html")) == [page]
    invoked("--results", out)
    newer = max(out.glob("reports/*/index.html"))
    assert "Nothing was new" in newer.read_text()
    assert "Still open from earlier runs" in (newer.parent / "failures.html").read_text()


def test_what_goes_wrong_changes_nothing_and_is_told(
    night: Night,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RunAbortedError("The disk\nis full.")

    monkeypatch.setattr(writing, "write_report", fails)
    report_at_end(results, night.first_run)
    assert (
        f"The report could not be written: The disk\\nis full. The results are whole; "
        f"`cvm-batch report {night.first_run} --results {results}` tries again."
        in capsys.readouterr().err
    )
