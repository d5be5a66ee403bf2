"""A night on a real cluster in which something is killed, at moments that a seed draws.

The driver is `cvm-batch submit` in a process of its own, so that it can be killed too.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum, auto
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings
from tests.archives import making
from tests.conftest import coloured_tiles
from tests.faults.comparing import Found, assert_equal, assert_tidy, read_night, rows_of
from tests.faults.watching import Watch

#: The command, which says when the imports are over: nothing of a run is in danger before.
_DRIVER = """
import cvm_batch.screening.ray_executor, cvm_batch.screening.run
from cvm_batch.cli import main
print("imported", flush=True)
main()
"""
#: One node more is as a hospital's: small, and with hardly any object store.
_NODE: Mapping[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
_PATIENCE_SECONDS = 300.0
_SMALL_SLIDES = 18


class Phase(IntEnum):
    """Of a run, in their order."""

    PLANNING = auto()
    STARTING = auto()
    """Replicas; the manifest is written."""
    CLASSIFYING = auto()
    ENDING = auto()
    """All cells are written; the last rows and the manifest are not."""


#: When each begins, as a share of a run, and how many seconds it takes on a quiet machine.
_BEGINS = {Phase.PLANNING: 0.0, Phase.STARTING: 0.1, Phase.CLASSIFYING: 0.3, Phase.ENDING: 0.8}
_SECONDS = {Phase.PLANNING: 2.0, Phase.STARTING: 4.0, Phase.ENDING: 1.0}
_GOLDEN = (5**0.5 - 1) / 2
#: Nights until one in which nothing ended before it could be killed.
_NIGHTS = 6


@dataclass(frozen=True, order=True)
class Moment:
    """A moment of a run, be it fast or slow."""

    place: float
    """0 to 1, over the whole run."""

    @classmethod
    def draw(cls, seed: int) -> Moment:
        """Any number of seeds in a row is spread evenly over the run, and no two are alike."""
        return cls((seed + 0.5) * _GOLDEN % 1)

    @property
    def phase(self) -> Phase:
        return max(phase for phase, begins in _BEGINS.items() if begins <= self.place)

    @property
    def share(self) -> float:
        """How much of the phase is over, 0 to 1."""
        begins = _BEGINS[self.phase]
        ends = min([later for later in _BEGINS.values() if later > begins], default=1.0)
        return (self.place - begins) / (ends - begins)

    def earlier(self) -> Moment:
        return Moment(0.9 * self.place)

    def __str__(self) -> str:
        return f"{self.phase.name.lower()} {self.share:.2f}"


def seeded_nights(*three: int, count: int = 20) -> Any:
    """``three`` kills in one night for each test run; for campaigns, nights of one kill each."""
    campaign = [pytest.param([seed], marks=pytest.mark.campaign) for seed in range(count)]
    return pytest.mark.parametrize("seeds", [list(three), *campaign], ids=str)


def kill_at_moments(
    seeds: Sequence[int], folder: Path, night: Callable[[Path, Sequence[Moment]], int]
) -> None:
    """Let ``night(results, moments)`` kill something at each moment.

    It returns how many kills landed while the run was under way. A night in which one came
    too late proves nothing, and another follows with earlier ones.
    """
    moments = [Moment.draw(seed) for seed in seeds]
    for number in range(_NIGHTS):
        began = time.monotonic()
        landed = night(folder / f"results-{number}", moments)
        told = f"{landed} of {len(moments)} landed, {time.monotonic() - began:.1f} s"
        print(f"seeds {seeds}: {', '.join(map(str, moments))}: {told}")
        if landed == len(moments):
            return
        moments = [moment.earlier() for moment in moments]
    pytest.fail(f"{_NIGHTS} nights ended before all kills")


def write_slides(folder: Path) -> Path:
    """Small slides of several formats, and one giant."""
    formats: dict[str, Callable[[Path, making.Cells], Path]] = {
        "": lambda path, slide: making.write_folder(path, slide.tiles),
        ".zip": lambda path, slide: making.write_zip(path, slide.tiles),
        ".tar": making.write_tar,
        ".zarr": lambda path, slide: making.write_zarr(path, slide.tiles, xy=slide.xy, chunk=16),
        ".v2.zarr": partial(_write_zarr, zarr_format=2, chunk=16),
        ".zarr.zip": partial(_write_zarr, chunk=16),
    }
    for number in range(_SMALL_SLIDES):
        suffix = list(formats)[number % len(formats)]
        formats[suffix](folder / f"{number:02d}{suffix}", slide_of(30 + number, seed=number))
    _write_zarr(folder / "giant.zarr", slide_of(800, seed=99), chunk=32)
    return folder


def slide_of(count: int, seed: int) -> making.Cells:
    draws = random.Random(seed)
    classes = draws.choices(range(11), k=count)
    like = making.cells(count, px=(1, 1), seed=seed)
    return making.Cells(coloured_tiles(classes, seed=seed), like.xy, like.cell_id)


def _write_zarr(path: Path, slide: making.Cells, **settings: Any) -> Path:
    return making.write_zarr(path, slide.tiles, xy=slide.xy, cell_id=slide.cell_id, **settings)


@dataclass(frozen=True)
class Nightly:
    """What is screened each night, and what comes out where nothing happens."""

    slides: Path
    bundle: Bundle
    cluster: RealCluster
    undisturbed: Mapping[str, Found]

    @classmethod
    def prepare(cls, folder: Path, bundle: Bundle, cluster: RealCluster) -> Nightly:
        slides = write_slides(folder / "slides")
        settings = Settings(
            inputs=(str(slides),),
            model=str(bundle.path),
            out=folder / "undisturbed",
            precision=Precision.FP32,
            executor=ExecutorKind.LOCAL,
        )
        assert run(settings).exit_code == 0
        return cls(slides, bundle, cluster, read_night(folder / "undisturbed"))

    def assert_as_undisturbed(self, results: Path, watch: Watch) -> None:
        assert_equal(read_night(results), self.undisturbed)
        assert watch.repeated == [], "complete slides were classified again"
        assert_tidy(results)

    @contextmanager
    def submit(self, results: Path, watch: Watch, *options: object) -> Iterator[Driver]:
        """A driver under way, which is gone at the end."""
        command = ["submit", self.slides, "--model", self.bundle.path, "--out", results]
        command += ["--address", self.cluster.address, "--allow-open-cluster", "--batch-size", 2]
        command += ["--precision", "fp32", "--backend", "torch-eager", *options]
        results.mkdir(exist_ok=True)
        known = set((results / "runs").glob("*.json"))
        log = results.parent / "driver.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", _DRIVER, *map(str, command)], stdout=file, stderr=file
            )
        try:
            yield Driver(process, results, watch, log, known)
        finally:
            process.kill()
            process.wait()


@dataclass
class Driver:
    """A run in a process of its own, from outside."""

    process: subprocess.Popen[bytes]
    results: Path
    watch: Watch
    log: Path
    known: set[Path]
    """Manifests of earlier runs."""

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def manifest(self) -> Mapping[str, Any]:
        """As it is now; empty until there is one."""
        for path in set((self.results / "runs").glob("*.json")) - self.known:
            return dict(json.loads(path.read_text()))
        return {}

    def progress(self) -> float:
        """The share of this run's cells that is written."""
        manifest = self.manifest
        if not manifest:
            return 0.0
        expected = manifest["cells"]["expected"]
        return self.watch.cells[manifest["run_id"]] / expected if expected else 1.0

    def wait_for(self, moment: Moment) -> bool:
        """True when it has come, False where the run ended before."""
        phase, share = moment.phase, moment.share
        if phase is Phase.CLASSIFYING:
            return self.wait_until(lambda: self.progress() >= share)
        if not self.wait_until(lambda: self.phase() >= phase):
            return False
        due = time.monotonic() + share * _SECONDS[phase]
        return self.wait_until(lambda: time.monotonic() >= due or self.phase() > phase)

    def phase(self) -> Phase | int:
        """Which it is in, 0 where it has not yet begun."""
        if self.progress() >= 1:
            return Phase.ENDING
        if self.progress() > 0:
            return Phase.CLASSIFYING
        if self.manifest:
            return Phase.STARTING
        return Phase.PLANNING if "imported" in self.output() else 0

    def wait_until(self, true: Callable[[], bool]) -> bool:
        """Whether that came to pass while the driver lived."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self.alive:
            if true():
                return True
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)
        return False

    def wait(self) -> int:
        """The exit code."""
        self.wait_until(lambda: False)
        return self.process.wait()

    def output(self) -> str:
        return self.log.read_text()


class RealCluster:
    """Two nodes for replicas, and a head for drivers alone, so that any node may be lost."""

    def __init__(self) -> None:
        head = {**_NODE, "num_cpus": 0, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []
        """Those for replicas, the oldest first."""
        self.add_node()
        self.add_node()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add_node(self) -> None:
        self.nodes.append(self._cluster.add_node(**_NODE))

    def lose(self, node: Any) -> None:
        """End all processes of a node at once, as when its power fails."""
        daemon = self.daemon(node)
        for process in (daemon, *children(daemon)):
            os.kill(process, signal.SIGKILL)
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    @contextmanager
    def paused(self, node: Any) -> Iterator[None]:
        """Stop all processes of a node, as when its virtual machine is paused; lost in the end."""
        daemon = self.daemon(node)
        for process in (daemon, *children(daemon)):
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            self.lose(node)

    @staticmethod
    def daemon(node: Any) -> int:
        """The process ID of a node's raylet, whose children its workers are."""
        return int(node.all_processes["raylet"][0].process.pid)

    def node_of(self, replica: int) -> Any:
        """Where the process of that ID runs."""
        return next(node for node in self.nodes if replica in children(self.daemon(node)))

    def shutdown(self) -> None:
        self._cluster.shutdown()


def children(process: int) -> list[int]:
    """IDs of the processes that it started."""
    of_threads = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for listed in of_threads for child in listed.read_text().split()]


def committed(results: Path) -> set[str]:
    """Slides that have a row, all of whose files are there; the driver may be dead."""
    found = read_night(results)
    assert len(rows_of(results)) == len(found)
    return set(found)
