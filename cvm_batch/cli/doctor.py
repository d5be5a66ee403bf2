"""``cvm-batch doctor``: whether this machine, and a cluster, are fit for a night."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from cvm_batch.cli.cluster import connect, connecting_options
from cvm_batch.cli.console import STDOUT, print_json
from cvm_batch.cli.results_root import ResultsRoot
from cvm_batch.errors import CvmBatchError, ExitCode
from cvm_batch.texts import printable

_GIB = 2**30
_LEAST_MEMORY, _LEAST_SHARED, _LEAST_DISK = 4 * _GIB, 256 * 2**20, 10 * _GIB
_DEFAULT_MODEL = "cvm-cervix-mini-cric6"


class Verdict(StrEnum):
    FINE = "fine"
    NOTE = "note"
    """It will run, slower or with less room than it might."""
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    found: str
    advice: str = ""


@click.command()
@click.option(
    "--out", type=ResultsRoot(), help="A results folder: can it be written, is there room?"
)
@click.option(
    "--model",
    default=_DEFAULT_MODEL,
    show_default=True,
    help="A bundle, which must reproduce its sentinel tiles on this machine's device.",
)
@click.option(
    "--address", help="A Ray cluster's Jobs API: does it answer, does it ask for a token?"
)
@connecting_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(
    out: Path | str | None, model: str, address: str | None, as_json: bool, **connecting: Any
) -> ExitCode:
    """Look at GPU, CPUs, memory, disk, versions, a bundle, and a cluster.

    Exits 2 where something would keep a run from working.
    """
    looks: list[Callable[[], Iterator[Finding]]] = [
        _versions,
        _cpus,
        _memory,
        _gpu,
        lambda: _disk(out),
        lambda: _bundle(model),
    ]
    if address is not None:
        looks.append(lambda: _cluster(address, connecting))
    findings = [finding for look in looks for finding in look()]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for finding in findings:
            told = ". ".join(filter(None, (finding.found, finding.advice)))
            table.add_row(finding.verdict, finding.what, printable(told))
        STDOUT.print(table)
    bad = any(finding.verdict is Verdict.BAD for finding in findings)
    return ExitCode.USAGE if bad else ExitCode.COMPLETE


def _versions() -> Iterator[Finding]:
    from cvm_batch.screening.versions import versions

    told = ", ".join(f"{name} {version}" for name, version in versions().items())
    yield Finding("versions", Verdict.FINE, told)


def _cpus() -> Iterator[Finding]:
    import os

    from cvm_batch.cpus import usable_cpus

    allowed, there = usable_cpus(), os.cpu_count() or 1
    advice = "" if allowed == there else "By affinity or a container's quota: threads follow it"
    found = f"{allowed} of {there} may be used, {platform.machine()}"
    yield Finding("CPUs", Verdict.FINE, found, advice)


def _memory() -> Iterator[Finding]:
    from cvm_batch.machine import shared_memory, usable_memory

    memory, shared = usable_memory(), shared_memory()
    yield _size("memory", memory, _LEAST_MEMORY, "A replica needs 2 GiB, its driver 1")
    advice = "Ray falls back to the disk: docker run --shm-size=1g, on Kubernetes a Memory volume"
    yield _size("shared memory", shared, _LEAST_SHARED, advice)


def _gpu() -> Iterator[Finding]:
    from cvm_batch.machine import nvidia_driver

    driver = nvidia_driver()
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            found = f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB, driver {driver}"
            yield Finding(f"GPU {number}", Verdict.FINE, found)
    elif driver is not None:
        advice = (
            f"PyTorch {torch.__version__} cannot use it: is the driver new enough for its CUDA?"
        )
        yield Finding("GPU", Verdict.BAD, f"driver {driver} is loaded", advice)
    else:
        yield Finding("GPU", Verdict.NOTE, "none", "Replicas run on CPUs")


def _disk(out: Path | str | None) -> Iterator[Finding]:
    import tempfile

    from cvm_batch.machine import free_disk
    from cvm_batch.results.folder import ResultsFolder

    spill = Path(tempfile.gettempdir())
    yield _size(f"disk at {spill}", free_disk(spill), _LEAST_DISK, "Ray keeps logs there")
    if out is None:
        return
    if isinstance(out, Path):
        yield _size(
            f"disk at {out}", free_disk(out), _LEAST_DISK, "A million cells take some 65 MB"
        )
    try:
        ResultsFolder(out).prepare()
    except CvmBatchError as error:
        yield Finding("results", Verdict.BAD, str(error))
    else:
        yield Finding("results", Verdict.FINE, f"{out} can be written")


def _bundle(model: str) -> Iterator[Finding]:
    """As a replica does before it serves."""
    from cvm_batch.model.backends.starting import start_engine
    from cvm_batch.model.precision import choose_precision
    from cvm_batch.model.registry import find_bundle
    from cvm_batch.screening.executor import hardware_here

    try:
        bundle = find_bundle(model)
        precision = choose_precision(hardware_here().device_type, None)
        engine = start_engine(bundle, precision=precision)
    except CvmBatchError as error:
        yield Finding("bundle", Verdict.BAD, str(error))
        return
    difference = engine.sentinel_difference
    engine.close()
    found = f"{bundle.spec.name} ({bundle.digest[:12]}) reproduces its sentinels in {precision}"
    yield Finding("bundle", Verdict.FINE, f"{found}: largest difference {difference:.1g}")


def _cluster(address: str, connecting: dict[str, Any]) -> Iterator[Finding]:
    try:
        client = connect(address, **connecting)
        jobs = client.jobs()
    except CvmBatchError as error:
        yield Finding("cluster", Verdict.BAD, str(error))
        return
    running = sum(not job.state.ended for job in jobs)
    lock = "open" if connecting["allow_open_cluster"] else "asks for a token, and takes ours"
    yield Finding("cluster", Verdict.FINE, f"{address} {lock}; {running} jobs run")


def _size(what: str, size: int, least: int, advice: str) -> Finding:
    enough = size >= least
    found = f"{size / _GIB:.1f} GiB"
    return Finding(what, Verdict.FINE if enough else Verdict.NOTE, found, "" if enough else advice)
