"""What planning and finishing a slide costs the driver."""

from __future__ import annotations

import io
import json
import resource
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.echo import EchoExecutor
from benchmarks.processes import alone, peak_mib, submit
from cvm_batch.archives.discovery import discover
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.manifest import manifests
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import Settings

_MODEL = "cvm-cervix-mini-cric6"
_CELLS = 3


@dataclass(frozen=True)
class _Case:
    folder: Path
    slides: int

    @property
    def inputs(self) -> Path:
        return self.folder / "slides"

    @property
    def results(self) -> Path:
        return self.folder / "results"


def slide_figures(folder: Path, counts: Sequence[int]) -> dict[str, Any]:
    """Of runs over so many tiny slides each."""
    figures: dict[str, Any] = {}
    for count in counts:
        case = _Case(folder / str(count), count)
        _write_slides(case)
        found = alone(_first_and_second_run, case) | _third_run(case)
        figures |= {f"{count} slides: {name}": value for name, value in found.items()}
    return figures


def _write_slides(case: _Case) -> None:
    case.inputs.mkdir(parents=True)
    image, packed = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(image, "PNG")
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(_CELLS):
            archive.writestr(f"{number}.png", image.getvalue())
    for number in range(case.slides):
        (case.inputs / f"slide-{number:06d}.zip").write_bytes(packed.getvalue())


def _first_and_second_run(case: _Case) -> dict[str, float]:
    """In milliseconds a slide: of this process's time, and of all CPUs with its workers'."""
    began = time.perf_counter()
    discover([str(case.inputs)])
    discovery = time.perf_counter() - began
    settings = Settings(inputs=(str(case.inputs),), model=_MODEL, out=case.results)
    executor, cpu = EchoExecutor(), _cpu_seconds()
    first = run(settings, executor=executor)
    spent = _cpu_seconds() - cpu
    peak, cpu = peak_mib(), _cpu_seconds()
    second = run(settings, executor=EchoExecutor())
    if first.cells != _CELLS * case.slides or second.settled.total() != case.slides:
        raise AssertionError(f"not all was classified and then skipped: {first} {second}")
    again, before = (run["seconds"]["planning"] for run in manifests(ResultsFolder(case.results)))
    each = 1e3 / case.slides
    return {
        "discovery_ms_each": discovery * each,
        "planning_ms_each": before * each,
        "finishing_ms_each": first.seconds_classifying * each,
        "cpu_ms_each": spent * each,
        "leases": executor.leases,
        "peak_mib": peak,
        "again_planning_ms_each": again * each,
        "again_cpu_ms_each": (_cpu_seconds() - cpu) * each,
    }


def _third_run(case: _Case) -> dict[str, float]:
    """As a command, from its start to its end: imports, planning, and the way out."""
    began, cpu = time.perf_counter(), _cpu_seconds()
    done = submit(str(case.inputs), "--model", _MODEL, "--out", str(case.results), "--json")
    seconds = time.perf_counter() - began
    if json.loads(done.stdout)["settled"]["complete"] != case.slides:
        raise AssertionError(f"not all was skipped: {done.stdout!r}")
    return {
        "again_command_seconds": seconds,
        "again_command_cpu_seconds": _cpu_seconds() - cpu,
    }


def _cpu_seconds() -> float:
    """Of this process, and of workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
