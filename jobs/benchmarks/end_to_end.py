"""Archives on disk to Parquet, as a share of the bare engine on the same tiles."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.reporting import made_tiles, report
from benchmarks.subject import bundle_to_measure, device_name
from cvm_batch.cpus import usable_cpus
from cvm_batch.model.backends.choosing import Backend, Work, choose_backend
from cvm_batch.model.backends.starting import start_engine
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.engine import InferenceEngine, default_device
from cvm_batch.model.precision import Precision, choose_precision
from cvm_batch.screening.executor import hardware_here
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings


@click.command("end-to-end")
@click.option("--model", help="A bundle; default: the full size with random weights.")
@click.option("--tiles", default=2000, show_default=True, help="Cells to classify.")
@click.option("--cells", type=click.Path(path_type=Path), help="Folder of real crops.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]))
@click.option(
    "--format",
    "kinds",
    type=click.Choice(["zarr", "jpeg", "png"]),
    multiple=True,
    default=("zarr", "jpeg"),
    show_default=True,
    help="Of the archives; several are measured one after the other.",
)
@click.option(
    "--slides",
    type=click.IntRange(min=1),
    multiple=True,
    default=(2, 200),
    show_default=True,
    help="Archives that the cells lie in; several are measured one after the other.",
)
@click.option("--executor", type=click.Choice(["ray", "local"]), default="ray")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def end_to_end(
    model: str | None,
    tiles: int,
    cells: Path | None,
    precision: str | None,
    kinds: tuple[str, ...],
    slides: tuple[int, ...],
    executor: str,
    as_json: bool,
) -> None:
    """Archives on disk -> Parquet, as a share of the bare engine on the same tiles.

    The engine is the one that a replica of the run starts, timed before and after each run in
    a process that does nothing else; its two speeds are averaged.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = bundle_to_measure(model, folder)
        wanted = Precision(precision) if precision else None
        measured = _Measured(bundle, made_tiles(tiles, cells), wanted, ExecutorKind(executor))
        figures = measured.described()
        for kind, count in product(kinds, slides):
            figures |= measured.figures(folder / f"{kind}-{count}", kind, count)
    report(figures, as_json)


@dataclass
class _Measured:
    """The engine a replica would run, in this process, and runs that are held against it."""

    bundle: Bundle
    tiles: NDArray[np.uint8]
    wanted: Precision | None
    executor: ExecutorKind
    engine: InferenceEngine = field(init=False)
    _speed: float = field(init=False)
    """Of the engine, tiles/s, as last seen: after one run is before the next."""

    def __post_init__(self) -> None:
        precision = choose_precision(default_device().type, self.wanted)
        self.engine = start_engine(
            self.bundle, precision=precision, backend=self._backend(precision)
        )
        self._speed = self._engine_speed()

    def described(self) -> dict[str, Any]:
        return {
            "device": device_name(default_device()),
            "torch": torch.__version__,
            "model": self.bundle.spec.name,
            "precision": str(self.engine.precision),
            "backend": self.engine.backend,
            "batch_size": self.engine.batch_size,
            "lanes": self.engine.lanes,
            "threads": usable_cpus(),
            "executor": str(self.executor),
            "tiles": len(self.tiles),
        }

    def figures(self, folder: Path, kind: str, slides: int) -> dict[str, Any]:
        """Of one run over new archives in ``folder``."""
        _write_slides(folder / "slides", self.tiles, slides, kind)
        before = self._speed
        summary = run(
            Settings(
                inputs=(str(folder / "slides"),),
                model=str(self.bundle.path),
                out=folder / "results",
                precision=self.engine.precision,
                backend=Backend(self.engine.backend),
                executor=self.executor,
            )
        )
        self._speed = self._engine_speed()
        if summary.exit_code or summary.cells != len(self.tiles):
            raise click.ClickException(f"the run did not classify everything: {summary.to_json()}")
        assert summary.tiles_per_second is not None
        engine_speed = (before + self._speed) / 2
        found = {
            "engine_before_and_after": [before, self._speed],
            "engine_tiles_per_second": engine_speed,
            "end_to_end_tiles_per_second": summary.tiles_per_second,
            "share_of_engine": summary.tiles_per_second / engine_speed,
            "seconds_starting": summary.seconds_starting,
            "seconds_classifying": summary.seconds_classifying,
        }
        return {f"{slides} x {kind}: {name}": value for name, value in found.items()}

    def _backend(self, precision: Precision) -> Backend:
        """What a run of that many tiles chooses."""
        hardware, gflop = hardware_here(), self.bundle.spec.tile_gflop
        work = Work(len(self.tiles), gflop, hardware.device_type, hardware.processors)
        return choose_backend(work, precision)

    def _engine_speed(self) -> float:
        """Tiles per second over all tiles, after a warm-up."""
        self.engine.probabilities(self.tiles[: self.engine.lanes * self.engine.batch_size])
        started = time.perf_counter()
        self.engine.probabilities(self.tiles)
        return len(self.tiles) / (time.perf_counter() - started)


def _write_slides(folder: Path, tiles: NDArray[np.uint8], slides: int, kind: str) -> None:
    for number, part in enumerate(np.array_split(tiles, slides)):
        if kind == "zarr":
            import zarr

            group = zarr.open_group(folder / f"slide-{number:04d}.zarr", mode="w")
            chunks = (min(256, len(part)), *part.shape[1:])
            group.create_array("tiles", shape=part.shape, chunks=chunks, dtype="uint8")[:] = part
        else:
            slide = folder / f"slide-{number:04d}"
            slide.mkdir(parents=True)
            for index, tile in enumerate(part):
                Image.fromarray(tile).save(slide / f"{index:06d}.{kind}", quality=90)
