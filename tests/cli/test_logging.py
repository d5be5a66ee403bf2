"""A log under pseudonyms: whatever else the same process writes names no slide either."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cvm_batch.cli import cli
from cvm_batch.cli.screening import run_settings
from cvm_batch.cluster.ending import Ending
from cvm_batch.jobfiles import jobs_folder
from cvm_batch.model.bundle import Bundle
from cvm_batch.pseudonyms import Pseudonyms
from cvm_batch.screening.settings import ExecutorKind, Settings
from cvm_batch.screening.summary import RunSummary
from tests.archives import making
from tests.screening.test_run import flip_byte_in_member, tiles

KEY = "sixteen bytes or more"
NAME = "2026-0815-MUELLER"


@pytest.fixture
def night(tmp_path: Path, tiny_bundle: Bundle) -> list[str]:
    """Arguments of a submit whose only slide is damaged."""
    slide = tmp_path / "slides" / f"{NAME}.zip"
    making.write_zip(slide, tiles(10, seed=1))
    flip_byte_in_member(slide)
    folders = (str(slide.parent), "--out", str(tmp_path / "results"))
    return [*folders, "--model", str(tiny_bundle.path), "--no-report", "--log-json"]


def submit(*arguments: str) -> Any:
    words = ["submit", *arguments, "--executor", "local"]
    result = CliRunner().invoke(cli, words, standalone_mode=False)
    assert result.return_value == 3, result.output
    return result


def test_no_table_stands_beside_a_log_of_json(night: list[str]) -> None:
    result = submit(*night)
    assert result.stdout == ""
    told = [json.loads(line) for line in result.stderr.splitlines()]
    assert f"{NAME}.zip" in {event.get("slide_id") for event in told}


def test_a_submit_names_no_slide(night: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVM_BATCH_PSEUDONYM_KEY", KEY)
    result = submit(*night, "--json")
    assert NAME not in result.output
    (failed,) = json.loads(result.stdout)["not_complete"]
    assert failed["slide_id"] == Pseudonyms(KEY.encode()).of(f"{NAME}.zip")
    assert (failed["reason"], failed["detail"]) == ("checksum_mismatch", None)


def _here(settings: Settings, *others: Any, **options: Any) -> RunSummary:
    here = replace(settings, executor=ExecutorKind.LOCAL, address=None)
    return run_settings(here, *others, **options)


def test_a_job_on_a_cluster_names_no_slide(
    night: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job's own script; in place of Ray, the run takes place in this process."""
    monkeypatch.setenv("CVM_BATCH_PSEUDONYM_KEY", KEY)
    monkeypatch.syspath_prepend(str(jobs_folder()))
    monkeypatch.delitem(sys.modules, "screen", raising=False)
    import screen  # type: ignore[import-not-found]

    monkeypatch.setattr(screen.ray, "init", lambda **_: None)
    monkeypatch.setattr(screen, "check_nodes", lambda _: None)
    monkeypatch.setattr(screen, "run_settings", _here)
    code = screen.main(night, standalone_mode=False)
    told = capsys.readouterr()
    assert (code, NAME in told.out + told.err) == (0, False), told
    ending = Ending(**json.loads(told.out.splitlines()[-1].partition(" ")[2]))
    assert ending.exit_code == 3
    assert RunSummary.from_json(ending.summary or {}).not_complete[0].slide_id.startswith("slide-")
