"""Runs seen from outside: planned, watched, stopped and tried again, as a user types it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cvm_batch.model.bundle import Bundle
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.live import runs_seen
from cvm_batch.results.verifying import verify_results
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings
from tests.archives import making
from tests.cli.test_commands import COMMAND, cvm_batch_run, submit
from tests.screening.test_run import flip_byte_in_member, many_slides, tiles


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    making.write_zip(tmp_path / "slides" / "a.zip", tiles(20, seed=0))
    making.write_folder(tmp_path / "slides" / "b", tiles(30, seed=1))
    return tmp_path / "slides"


def told(*arguments: object) -> Any:
    ended = cvm_batch_run(*arguments, "--json")
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def statuses(results: Path) -> dict[str, str]:
    """Each slide's newest status."""
    table = pq.read_table(results / "slides", partitioning=None).sort_by("finished_at")
    return dict(zip(*(table[name].to_pylist() for name in ("slide_id", "status")), strict=True))


@contextmanager
def running(tmp_path: Path, bundle: Bundle, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A submit of many slides, at least one of which is committed."""
    many_slides(tmp_path / "slides", 600)
    out = tmp_path / "results"
    command = ["submit", tmp_path / "slides", "--model", bundle.path, "--out", out]
    command += ["--executor", "local", "--batch-size", "1", *more]
    process = subprocess.Popen(
        [*COMMAND, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: any((out / "slides").rglob("*.parquet")), process)
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_plan_says_what_would_run(slides: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    (slides / "broken.zip").write_bytes(b"PK no zip")
    precision = ("--precision", "fp32")
    arguments = ("plan", slides, "--model", tiny_bundle.path, "--out", out, *precision)
    before = told(*arguments)
    assert not out.exists(), "planning writes nothing"
    assert (before["slides"], before["tiles"], before["settled"]) == (2, 50, {})
    assert [slide["slide_id"] for slide in before["cannot_be_opened"]] == ["broken.zip"]
    assert before["seconds"] is None
    submit(slides, tiny_bundle.path, out, *precision)
    after = told(*arguments)
    assert (after["slides"], after["tiles"]) == (0, 0)
    assert after["settled"]["complete"] == 2
    shutil.copytree(slides / "b", slides / "c")
    again = told(*arguments)
    assert (again["slides"], again["tiles"]) == (1, 30)
    assert again["seconds"] == pytest.approx(30 / again["tiles_per_second"])
    assert "1 slides, 30 tiles" in cvm_batch_run(*arguments).stdout
    assert again["replicas"] == 1
    # A run that was left to choose, on whatever machine, says what the next one will take.
    assert told(*arguments[:-2], "--precision", "fp16")["settled"] == {}
    (manifest,) = (out / "runs").glob("*.json")
    run = json.loads(manifest.read_bytes())
    assert told(*arguments[:-2])["precision"] in ("fp32", "bf16"), "as this machine would"
    run["settings"]["precision"] = None
    run["precision"] = "fp16"
    manifest.write_text(json.dumps(run))
    assert told(*arguments[:-2])["precision"] == "fp16"
    manifest.write_text(json.dumps(run | {"precision": "fp32"}))
    four = told(*arguments, "--replicas", 4)
    assert four["replicas"] == 4
    assert four["seconds"] == pytest.approx(again["seconds"] / 4)


def test_slides_that_just_changed_are_left(
    slides: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    what = (slides, "--model", tiny_bundle.path, "--out", out, "--precision", "fp32")
    planned = told("plan", *what, "--settle", "1h")
    assert planned["slides"] == 0
    assert [slide["slide_id"] for slide in planned["fresh"]] == ["a.zip", "b"]
    shown = cvm_batch_run("plan", *what, "--settle", "1h").stdout
    assert re.search(r"left until they settle: 2.\n  a.zip: ..:..:..\n  b: ..:..:..\n", shown)
    config = tmp_path / "night.toml"
    config.write_text('[submit]\nsettle = "1h30m"\nrehash = true\nexecutor = "local"\n')
    ended = cvm_batch_run("--config", config, "submit", *what)
    assert ended.returncode == 0, ended.stderr
    assert "2 slides are left until they have settled" in ended.stdout
    assert "2 slides had just changed and were left" in cvm_batch_run("status", out).stdout
    (page,) = (out / "reports").glob("*/index.html")
    assert "2 slides had just changed and were left" in page.read_text()
    ended = cvm_batch_run("--config", config, "submit", *what, "--settle", "0s")
    assert ended.returncode == 0, ended.stderr
    assert statuses(out) == {"a.zip": "complete", "b": "complete"}
    assert told("plan", *what, "--rehash")["settled"] == {"complete": 2}
    assert told("plan", *what)["settled"] == {}, "as its key says how it was told"
    refused = cvm_batch_run("submit", *what, "--settle", "5")
    assert refused.returncode == 2
    assert "5m" in refused.stderr


def test_status_and_stop_of_a_running_run(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    with running(tmp_path, tiny_bundle) as process:
        (seen,) = runs_seen(ResultsFolder(out))
        assert seen.state == "running"
        wait_for(lambda: runs_seen(ResultsFolder(out))[0].live is not None, process)
        live = told("status", out)["live"]
        assert live["slides"] == 600
        assert 0 <= live["slides_done"] <= 600
        assert "599.zip" not in statuses(out)
        assert cvm_batch_run("prioritise", out, "59?.zip", "--priority", 7).returncode == 0
        wait_for(lambda: "599.zip" in statuses(out), process)
        ended = cvm_batch_run("stop", out, "--wait")
        assert ended.returncode == 0
        assert process.wait(30) == 4
    done = statuses(out)
    assert 0 < len(done) < 600
    assert set(done.values()) == {"complete"}
    after = told("status", out)
    assert (after["state"], after["live"], after["run"]["exit_code"]) == ("stopped", None, 4)
    assert [path.suffixes for path in (out / "runs").iterdir()] == [[".json"]]
    assert cvm_batch_run("stop", out).returncode == 2, "nothing runs any more"


def test_status_and_stop_of_a_run_that_plans(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """It has no manifest yet, and looks at its slides one by one."""
    out = tmp_path / "results"
    many_slides(tmp_path / "slides", 3)
    settings = Settings(
        inputs=(str(tmp_path / "slides"),),
        model=str(tiny_bundle.path),
        out=out,
        executor=ExecutorKind.LOCAL,
    )
    seen: list[Any] = []

    def meanwhile() -> bool:
        if not seen:
            assert not list(out.glob("runs/*.json"))
            seen.append(told("status", out))
            assert "looks at the slides" in cvm_batch_run("status", out).stdout
            assert cvm_batch_run("stop", out).returncode == 0
            time.sleep(0.6)  # the marker is looked for twice a second
        return False

    summary = run(settings, should_stop=meanwhile)
    assert seen[0]["state"] == "running"
    assert seen[0]["run"]["run_id"] == summary.run_id
    assert (summary.exit_code, summary.left, summary.by_status.total()) == (4, 3, 0)
    after = told("status", out)
    assert (after["state"], after["run"]["slides"]["planned"]) == ("stopped", 3)
    assert [path.suffixes for path in (out / "runs").iterdir()] == [[".json"]]
    assert run(settings).exit_code == 0


_KILLED_WHILE_IT_PLANS = """
import os, signal, sys
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings

inputs, model, out = sys.argv[1:]
settings = Settings(inputs=(inputs,), model=model, out=out, executor=ExecutorKind.LOCAL)
run(settings, should_stop=lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_run_that_is_killed_while_it_plans_is_interrupted(
    slides: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Also after an earlier night: what is told is of the newest run."""
    out = tmp_path / "results"
    assert submit(slides, tiny_bundle.path, out)[0] == 0
    command = [sys.executable, "-c", _KILLED_WHILE_IT_PLANS, slides, tiny_bundle.path, out]
    assert subprocess.run(list(map(str, command)), check=False).returncode == -signal.SIGKILL
    seen = told("status", out)
    assert seen["state"] == "interrupted"
    assert seen["run"]["run_id"] > told("list", out)[0]["run"]["run_id"]
    assert "died while it looked at the slides" in cvm_batch_run("status", out).stdout
    assert cvm_batch_run("stop", out).returncode == 2, "nothing runs any more"
    assert submit(slides, tiny_bundle.path, out)[0] == 0
    assert told("status", out)["state"] == "finished"


def test_a_killed_run_is_interrupted(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    with running(tmp_path, tiny_bundle) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list((out / "runs").glob("*.live")), "nobody was left to remove it"
    assert not [found for found in verify_results(out).findings if "live" in found.path]
    assert told("status", out)["state"] == "interrupted"
    assert "Submit again" in cvm_batch_run("status", out).stdout
    assert cvm_batch_run("stop", out).returncode == 2
    (listed,) = told("list", out)
    assert listed["state"] == "interrupted"


def test_a_deadline_ends_the_run_in_time(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    with running(tmp_path, tiny_bundle) as process:
        process.kill()  # so that the folder is there, and something of it is done
    done = len(statuses(out))
    started = time.monotonic()
    code, text, _ = submit(
        tmp_path / "slides", tiny_bundle.path, out, "--batch-size", "1", "--until", "12s"
    )
    assert time.monotonic() - started < 60
    assert code == 4, text
    assert done <= len(statuses(out)) < 600
    assert set(statuses(out).values()) == {"complete"}


def test_retry_takes_up_what_failed_and_nothing_else(
    slides: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    sound = (slides / "a.zip").read_bytes()
    (slides / "broken.zip").write_bytes(b"PK no zip")
    flip_byte_in_member(slides / "a.zip")
    assert submit(slides, tiny_bundle.path, out)[0] == 3
    assert statuses(out) == {"a.zip": "failed", "b": "complete", "broken.zip": "failed"}
    (slides / "a.zip").write_bytes(sound)
    shutil.copytree(slides / "b", slides / "new")
    ended = cvm_batch_run("retry", out, "--json")
    assert ended.returncode == 3, ended.stderr
    summary = json.loads(ended.stdout)
    assert summary["slides"] == {"complete": 1, "incomplete": 0, "failed": 1}
    assert statuses(out) == {"a.zip": "complete", "b": "complete", "broken.zip": "failed"}
    assert [seen["run"]["settings"]["retry"] for seen in told("list", out)] == [True, False]


def test_retry_means_the_same_in_every_folder(
    slides: Path, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    sound = (slides / "a.zip").read_bytes()
    flip_byte_in_member(slides / "a.zip")
    monkeypatch.chdir(slides.parent)
    assert submit(Path(slides.name), Path(os.path.relpath(tiny_bundle.path)), out)[0] == 3
    (slides / "a.zip").write_bytes(sound)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(slides / "b", elsewhere / slides.name / "a.zip")  # another slide of that name
    monkeypatch.chdir(elsewhere)
    assert cvm_batch_run("retry", out).returncode == 0
    table = pq.read_table(out / "slides", partitioning=None).sort_by("finished_at")
    assert table["uri"].to_pylist()[-1] == str(slides / "a.zip")


def test_retry_tells_of_what_it_cannot_take_up(
    slides: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """The newest run had other inputs, or the slide's file is gone."""
    out = tmp_path / "results"
    flip_byte_in_member(slides / "a.zip")
    assert submit(slides, tiny_bundle.path, out)[0] == 3
    shutil.copytree(slides / "b", tmp_path / "others" / "c")
    assert submit(tmp_path / "others", tiny_bundle.path, out)[0] == 0
    ended = cvm_batch_run("retry", out)
    assert ended.returncode == 3
    assert "a.zip" in ended.stdout
    assert "among the inputs of the newest run" in ended.stdout
    assert statuses(out)["a.zip"] == "failed"


def test_a_folder_without_runs_is_told(tmp_path: Path) -> None:
    for command in ("status", "list", "stop", "retry"):
        ended = cvm_batch_run(command, tmp_path)
        assert ended.returncode == 2
        assert "holds no runs" in ended.stderr
