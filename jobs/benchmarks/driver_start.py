"""From `cvm-batch submit` to the first classified tile of the demo."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from ray.cluster_utils import Cluster

import cvm_batch
from benchmarks.processes import submit
from cvm_batch.cpus import usable_cpus

MODEL = "cvm-cervix-mini-cric6"
SLIDES = Path(cvm_batch.__file__).parent / "assets" / "demo" / "slides"


def start_figures(folder: Path, rounds: int) -> dict[str, Any]:
    """Medians in seconds, and the first tile of every round: with a Ray of its own, in one
    process, and on a cluster that runs already."""
    figures: dict[str, Any] = {}
    ways = {"ray": ["--executor", "ray"], "local": ["--executor", "local"]}
    runs = _runs(folder, ways, rounds)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": usable_cpus()})
    try:
        runs |= _runs(
            folder, {"cluster": ["--address", cluster.address, "--allow-open-cluster"]}, rounds
        )
    finally:
        cluster.shutdown()
    for way, found in runs.items():
        for name in found[0]:
            figures[f"{way}: {name}"] = median(one[name] for one in found)
        figures[f"{way}: first_tile of each round"] = [one["first_tile"] for one in found]
    return figures


def _runs(
    folder: Path, ways: Mapping[str, list[str]], rounds: int
) -> dict[str, list[dict[str, float]]]:
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    # One round more: the first one warms the disk's cache, and writes Python's bytecode.
    for number, way in product(range(rounds + 1), ways):
        seconds = _seconds(folder / f"{way}-{number}", ways[way])
        if number:
            runs[way].append(seconds)
    return runs


def _seconds(results: Path, options: Sequence[str]) -> dict[str, float]:
    """Of one run: where the time goes until the first part's cells are on disk."""
    began = time.time()
    done = submit(str(SLIDES), "--model", MODEL, *options, "--out", str(results))
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
