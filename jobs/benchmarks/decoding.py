"""What decoding costs a replica: in threads of its own, and by tasks over the object store.

Which of them is faster depends on how many CPUs lie where, so what counts is the CPU time of
a tile, in the replica's process and in all others (docs/decisions/0017).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.archives import Contest, contests
from benchmarks.reporting import made_tiles, report
from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import SlideArchive, SlideInfo
from cvm_batch.archives.formats import open_archive
from cvm_batch.cpus import usable_cpus
from cvm_batch.screening.cluster_decoding import ClusterArchive
from cvm_batch.screening.quality import measure
from cvm_batch.screening.ray_cluster import RayCluster
from cvm_batch.screening.work import SlideSource

_ROUNDS = 5
_TICKS = os.sysconf("SC_CLK_TCK")
#: Tiles of a block where the format stores them one by one, as in a replica.
_BLOCK_TILES = 64
#: As in a replica: one runs and one waits on every CPU.
_ASKED_FOR_EACH_CPU = 2


@click.command()
@click.option("--tiles", default=20_000, show_default=True, help="Cells in each slide.")
@click.option("--cells", type=click.Path(path_type=Path), help="Folder of real crops.")
@click.option("--wsi", type=click.Path(path_type=Path), help="A real whole slide.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def decoding(tiles: int, cells: Path | None, wsi: Path | None, as_json: bool) -> None:
    """Archives on disk -> tiles in a replica, decoded by itself and by Ray tasks.

    By turns, in one run. CPU microseconds per tile are those of the replica's process, and of
    all other processes of Ray together; medians over the rounds.
    """
    figures: dict[str, Any] = {"tiles": tiles, "cpus": usable_cpus()}
    pixels = made_tiles(tiles, cells)
    cluster = RayCluster(None, object_store_bytes=None)
    cluster.connect()
    with tempfile.TemporaryDirectory() as name, closing(cluster):
        for contest in contests(Path(name), pixels, wsi):
            figures |= _measured(contest)
    figures["quality of a tile, in the replica anyway, us"] = _microseconds(
        partial(measure, pixels[:256]), 256
    )
    report(figures, as_json)


def _measured(contest: Contest) -> dict[str, Any]:
    address = SlideAddress(uri=str(contest.slide))
    cpus = usable_cpus()
    own, ours = [], []
    with closing(open_archive(address, contest.options)) as here:
        info = here.info
        there = ClusterArchive(
            SlideSource(0, contest.name, address, info.identity), contest.options
        )
        _read(there, info, _ASKED_FOR_EACH_CPU * cpus)  # processes start and import
        for _ in range(_ROUNDS):
            own.append(_read(here, info, cpus))
            ours.append(_read(there, info, _ASKED_FOR_EACH_CPU * cpus))
    return {
        f"{contest.name}: by the replica, tiles/s": median(one.speed for one in own),
        f"{contest.name}: by tasks, share of that": median(
            one.speed / other.speed for one, other in zip(ours, own, strict=True)
        ),
        f"{contest.name}: by the replica, its us/tile": median(one.here for one in own),
        f"{contest.name}: by tasks, the replica's us/tile": median(one.here for one in ours),
        f"{contest.name}: by tasks, all others' us/tile": median(one.elsewhere for one in ours),
    }


@dataclass(frozen=True)
class _Cost:
    speed: float
    """Tiles per second."""
    here: float
    """CPU microseconds per tile of this process."""
    elsewhere: float
    """The same of the processes below it."""


def _read(archive: SlideArchive, info: SlideInfo, threads: int) -> _Cost:
    """Read a whole slide in blocks, as a replica's decoding threads do."""
    step = info.chunk_tiles if info.chunk_tiles > 1 else _BLOCK_TILES

    def block(span: tuple[int, int]) -> int:
        return len(archive.read(*span))

    started, here, elsewhere = time.perf_counter(), time.process_time(), _cpu_seconds_below()
    with ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(block, _spans(info.tiles, step)))
    seconds = time.perf_counter() - started
    return _Cost(
        count / seconds,
        1e6 * (time.process_time() - here) / count,
        1e6 * (_cpu_seconds_below() - elsewhere) / count,
    )


def _spans(tiles: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, tiles, step):
        yield start, min(start + step, tiles)


def _cpu_seconds_below() -> float:
    """CPU time of all processes that this one started, and that they started."""
    found = list(_processes())
    parents = {process: parent for process, parent, _ in found}
    return sum(spent for process, _, spent in found if os.getpid() in _above(process, parents))


def _above(process: int, parents: dict[int, int]) -> Iterator[int]:
    while process := parents.get(process, 0):
        yield process


def _processes() -> Iterator[tuple[int, int, float]]:
    """Each process's number, its parent's, and its CPU seconds."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        yield int(folder.name), int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS


def _microseconds(work: Callable[[], object], tiles: int) -> float:
    spent = []
    for _ in range(_ROUNDS):
        started = time.process_time()
        work()
        spent.append(1e6 * (time.process_time() - started) / tiles)
    return median(spent)
