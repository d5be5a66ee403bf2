"""Questions to a night of many slides, each as a user asks it and inside one process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.made_results import make_results
from benchmarks.reporting import report
from cvm_batch.results.canned import canned_queries
from cvm_batch.results.reading import Results
from cvm_batch.results.worklist import Worklist

_CELLS_BY_CLASS = "SELECT class, count(*) FROM cells GROUP BY class"


@click.command()
@click.option("--slides", type=click.IntRange(min=1), default=5000, show_default=True)
@click.option("--cells", type=click.IntRange(min=1), default=1_000_000, show_default=True)
@click.option("--tiles", type=click.Path(path_type=Path), help="Folder of real crops for the tops.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="Write the results there; keep them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def query(
    slides: int, cells: int, tiles: Path | None, rounds: int, keep: Path | None, as_json: bool
) -> None:
    """Results of a made-up night -> answers: whole commands, and within one process.

    Medians of the rounds, files in the page cache. --keep leaves the results, for other
    commands to be measured on.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = keep or Path(name)
        began = time.perf_counter()
        make_results(folder, slides, cells, tiles_from=tiles)
        made = time.perf_counter() - began
        figures: dict[str, Any] = {"slides": slides, "cells": cells, "seconds to make them": made}
        for label, ask in _questions(folder).items():
            figures[f"{label}, s"] = median(_seconds(ask) for _ in range(rounds))
        figures |= _report_sizes(folder)
    report(figures, as_json)


def _questions(folder: Path) -> dict[str, Callable[[], object]]:
    """What to measure by its name; the first tells what a command costs that does nothing."""
    there = ["--results", str(folder)]
    sql = {name: canned.sql for name, canned in canned_queries().items()}
    return {
        "command --version": partial(_run, "--version"),
        "command query worklist": partial(_run, "query", "worklist", *there),
        "command worklist": partial(_run, "worklist", *there),
        "command report": partial(_run, "report", *there),
        **{f"open, query {name}": partial(_ask, folder, text) for name, text in sql.items()},
        "open, query cells by class": partial(_ask, folder, _CELLS_BY_CLASS),
        "open, Worklist.read": partial(_worklist, folder),
    }


def _report_sizes(folder: Path) -> dict[str, float]:
    """Of the report that was written last."""
    (report,) = (folder / "reports").iterdir()
    files = [path for path in report.rglob("*") if path.is_file()]
    return {
        "front page of the report, bytes": (report / "index.html").stat().st_size,
        "largest page of the report, bytes": max(path.stat().st_size for path in files),
        "report, files": len(files),
        "report, MB": sum(path.stat().st_size for path in files) / 1e6,
    }


def _seconds(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return time.perf_counter() - began


def _run(*arguments: str) -> None:
    command = [sys.executable, "-m", "cvm_batch", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  what we run


def _ask(folder: Path, sql: str) -> None:
    with Results(folder) as results:
        results.query(sql)


def _worklist(folder: Path) -> None:
    with Results(folder) as results:
        Worklist.read(results)
