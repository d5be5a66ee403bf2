"""The whole chain on the shipped sample, as a user goes through it."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

import cvm_batch
from cvm_batch.model.registry import MODELS_VARIABLE

DEMO = Path(cvm_batch.__file__).parent / "assets" / "demo"


def command(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cvm_batch", *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def rows() -> list[dict[str, str]]:
    """Of the sound slides, in the order of their tiles."""
    with (DEMO / "labels.csv").open(newline="") as file:
        found = [row for row in csv.DictReader(file) if "damaged" not in row["slide_id"]]
    return sorted(found, key=lambda row: (row["slide_id"], row["file"]))


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """The demo's slides beside a table of their labels."""
    root = tmp_path / "labelled"
    shutil.copytree(DEMO / "slides", root, ignore=shutil.ignore_patterns("*damaged*"))
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("slide", "index", "label"))
        for slide, cells in groupby(rows(), key=lambda row: row["slide_id"]):
            writer.writerows((slide, at, row["label"]) for at, row in enumerate(cells))
    return root


def test_train_evaluate_promote_submit_query(
    tmp_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "models"))
    out, results = tmp_path / "mine", tmp_path / "results"
    said = command(
        *("train", "--data", labelled, "--recipe", "smoke", "--out", out, "--no-report"),
        *("--promote", "nightly"),
    )
    assert "epoch 2/2: loss" in said
    assert "Registered as nightly" in said
    figures = json.loads(command("evaluate", "--model", "nightly", "--data", labelled, "--json"))
    command(
        *("submit", labelled, "--model", "nightly", "--out", results, "--executor", "local"),
    )
    (found,) = json.loads(
        command(
            *("query", "--results", results, "--format", "json"),
            "select sum(cells_classified) as cells, any_value(bundle_digest) as digest from slides",
        )
    )
    assert figures["cells"] == found["cells"] == len(rows())
    assert figures["digest"] == found["digest"]
