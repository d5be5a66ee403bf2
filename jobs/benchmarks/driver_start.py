"""From `cvm-batch submit` to the first classified tile of the demo."""

from __future__ import annotations

import json
import time
from datetime import datetime
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import cvm_batch
from benchmarks.processes import submit

MODEL = "cvm-cervix-mini-cric6"
SLIDES = Path(cvm_batch.__file__).parent / "assets" / "demo" / "slides"
_EXECUTORS = ("ray", "local")


def start_figures(folder: Path, rounds: int) -> dict[str, Any]:
    """Medians in seconds, and the first tile of every round, by executor."""
    figures: dict[str, Any] = {}
    runs: dict[str, list[dict[str, float]]] = {executor: [] for executor in _EXECUTORS}
    # One round more: the first one warms the disk's cache, and writes Python's bytecode.
    for number, executor in product(range(rounds + 1), _EXECUTORS):
        seconds = _seconds(folder / f"{executor}-{number}", executor)
        if number:
            runs[executor].append(seconds)
    for executor, found in runs.items():
        for name in found[0]:
            figures[f"{executor}: {name}"] = median(one[name] for one in found)
        figures[f"{executor}: first_tile of each round"] = [one["first_tile"] for one in found]
    return figures


def _seconds(results: Path, executor: str) -> dict[str, float]:
    """Of one run: where the time goes until the first part's cells are on disk."""
    began = time.time()
    done = submit(str(SLIDES), "--model", MODEL, "--executor", executor, "--out", str(results))
    ended = time.time()
    manifests = list((results / "runs").glob("*.json"))
    if len(manifests) != 1:
        raise AssertionError(f"no run: {done.stderr!r}")
    manifest = json.loads(manifests[0].read_bytes())
    imported = datetime.fromisoformat(manifest["started_at"]).timestamp() - began
    first = min(path.stat().st_mtime for path in (results / "cells").rglob("*.parquet"))
    return {
        "imports": imported,
        **manifest["seconds"],
        "first_tile": first - began,
        "command": ended - began,
    }
