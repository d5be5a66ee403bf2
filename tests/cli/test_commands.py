"""The commands as a user types them: one clear sentence and an exit code, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

import cvm_batch
from cvm_batch.cli.screening import Replicas
from cvm_batch.model.bundle import WEIGHTS_FILE, Bundle
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.sealing import exclusive
from tests.archives import making
from tests.screening.test_run import flip_byte_in_member, many_slides, tiles

COMMAND = [sys.executable, "-m", "cvm_batch"]


def cvm_batch_run(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    making.write_zip(tmp_path / "slides" / "a.zip", tiles(20, seed=0))
    making.write_folder(tmp_path / "slides" / "b", tiles(30, seed=1))
    return tmp_path / "slides"


def submit(slides: Path, model: object, out: Path, *more: object) -> tuple[int, str, str]:
    ended = cvm_batch_run(
        "submit", slides, "--model", model, "--out", out, "--executor", "local", *more
    )
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stdout, ended.stderr


def test_version_and_help_answer_without_loading_torch() -> None:
    script = (
        "import sys; from cvm_batch.cli import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert cvm_batch.__version__ in cvm_batch_run("--version").stdout


@pytest.mark.parametrize(
    "command",
    [
        *("demo", "plan", "submit", "status", "list", "stop", "retry", "results"),
        *("models", "train", "export"),
    ],
)
def test_every_command_has_help(command: str) -> None:
    ended = cvm_batch_run(command, "--help")
    assert ended.returncode == 0
    assert ended.stdout.startswith("Usage: ")


def test_submit_says_what_it_did(slides: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    code, told, _ = submit(slides, tiny_bundle.path, out)
    assert code == 0
    assert told.startswith("2 slides: 2 complete. 50 cells in ")
    code, told, _ = submit(slides, tiny_bundle.path, out)
    assert code == 0
    assert "2 slides were complete already and were left as they are." in told
    assert "Nothing to classify." in told


def test_submit_as_json(slides: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    code, told, _ = submit(slides, tiny_bundle.path, tmp_path / "results", "--json")
    assert code == 0
    assert json.loads(told)["slides"] == {"complete": 2, "incomplete": 0, "failed": 0}


def test_a_damaged_slide_is_told_with_its_reason(
    slides: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    flip_byte_in_member(slides / "a.zip")
    code, told, _ = submit(slides, tiny_bundle.path, tmp_path / "results")
    assert code == 3
    assert "1 complete, 1 failed" in told
    assert "\n  a.zip: failed, checksum_mismatch: " in told
    code, told, _ = submit(slides, tiny_bundle.path, tmp_path / "results")
    assert code == 3
    assert "\n  a.zip: failed, checksum_mismatch: " in told, "still told when it is left alone"


def test_a_missing_bundle(slides: Path, tmp_path: Path) -> None:
    code, _, told = submit(slides, tmp_path / "none", tmp_path / "results")
    assert code == 2
    assert told.startswith("Error: No bundle called or at")
    assert told.count("\n") == 1


def test_a_bundle_with_a_wrong_digest(slides: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(tiny_bundle.path, bad)
    weights = bytearray((bad / WEIGHTS_FILE).read_bytes())
    weights[-1] ^= 1
    (bad / WEIGHTS_FILE).write_bytes(weights)
    code, _, told = submit(slides, bad, tmp_path / "results")
    assert code == 2
    assert "differs from the digest recorded" in told
    assert told.count("\n") == 1


def test_an_output_that_cannot_be_written(
    slides: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    code, _, told = submit(slides, tiny_bundle.path, tmp_path / "file")
    assert code == 2
    assert "cannot be written" in told


def test_no_slides_and_no_such_folder(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for inputs in (tmp_path / "empty", tmp_path / "nowhere"):
        code, _, told = submit(inputs, tiny_bundle.path, tmp_path / "results")
        assert code == 2
        assert told.startswith("Error: ")
        assert str(inputs) in told


def test_a_results_folder_in_use(slides: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    results = ResultsFolder(tmp_path / "results")
    results.prepare()
    with exclusive(results, RunName.new(datetime.now(UTC))):
        code, _, told = submit(slides, tiny_bundle.path, results.root)
    assert code == 2
    assert "Another run is writing" in told


def test_wrong_options(slides: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    assert submit(slides, tiny_bundle.path, tmp_path, "--no-such")[0] == 2
    assert submit(slides, tiny_bundle.path, tmp_path, "--precision", "fp16")[0] == 2
    assert submit(slides, tiny_bundle.path, tmp_path, "--replicas", "2")[0] == 2
    assert submit(slides, tiny_bundle.path, tmp_path, "--replicas", "many")[0] == 2


def test_auto_is_as_many_replicas_as_there_is_room_for() -> None:
    assert Replicas().convert("auto", None, None) is None
    assert Replicas().convert("3", None, None) == 3


@pytest.mark.parametrize(
    ("number", "executor"),
    [(signal.SIGINT, "local"), (signal.SIGTERM, "local"), (signal.SIGTERM, "ray")],
)
def test_a_signal_finishes_what_runs_and_exits_4(
    number: signal.Signals, executor: str, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    many_slides(tmp_path / "slides", 200)
    out = tmp_path / "results"
    arguments = ["submit", tmp_path / "slides", "--model", tiny_bundle.path, "--out", out]
    options = ["--executor", executor, "--batch-size", "4", "--precision", "fp32"]
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 90
    while not any((out / "cells").rglob("*.parquet")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    told, noise = process.communicate(timeout=60)
    assert process.returncode == 4, noise
    assert "SIGTERM received" not in noise, "Ray aborts the process soon after that"
    assert "slides are left; submit again to go on" in told


def test_models_lists_and_shows(tiny_bundle: Bundle, tmp_path: Path) -> None:
    environment = os.environ | {"CVM_BATCH_MODELS": str(tiny_bundle.path.parent)}
    listed = subprocess.run(
        [*COMMAND, "models", "--json"], env=environment, capture_output=True, check=True
    )
    names = {entry["name"]: entry["digest"] for entry in json.loads(listed.stdout)}
    assert names["tiny"] == tiny_bundle.digest
    shown = json.loads(cvm_batch_run("models", "show", tiny_bundle.path, "--json").stdout)
    assert shown["class_names"] == list(tiny_bundle.spec.class_names)
    assert shown["digest"] == tiny_bundle.digest
    assert shown["sentinel_difference"] <= 1e-3
    assert cvm_batch_run("models", "show", tiny_bundle.path).returncode == 0
