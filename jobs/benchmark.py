"""Measures the main job against its own limit, in one run on one machine.

    python jobs/benchmark.py                    end to end, against the bare engine
    python jobs/benchmark.py engine             the bare engine alone: no Ray, no zarr
    python jobs/benchmark.py archives           readers, against their decoders alone

The machine may be shared and noisy, so only ratios within one run count: the engine is
timed before and after the end-to-end run, on the same tiles, and the two are averaged.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

# What lies beside this file, under whichever name Python runs it (docs/decisions/0002).
sys.path.insert(0, str(Path(__file__).parent))

from benchmarks.archives import archives
from benchmarks.reporting import made_tiles, report
from cvm_batch.cpus import usable_cpus
from cvm_batch.model.bundle import Bundle, BundleSpec, write_bundle
from cvm_batch.model.classes import CVM_CERVIX_CLASSES, PRIMARY_GROUP, cervical_groups
from cvm_batch.model.engine import TorchEngine
from cvm_batch.model.network import CVM_CERVIX, CvmCervix
from cvm_batch.model.precision import Precision
from cvm_batch.model.registry import find_bundle


@click.group(invoke_without_command=True)
@click.pass_context
def benchmark(context: click.Context) -> None:
    """Tiles per second, each figure beside what it is measured against."""
    if context.invoked_subcommand is None:
        context.invoke(end_to_end)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--model", help="A bundle; default: the full size with random weights."),
        click.option("--tiles", default=1024, show_default=True, help="Cells to classify."),
        click.option("--cells", type=click.Path(path_type=Path), help="Folder of real crops."),
        click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"])),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    ):
        command = option(command)
    return command


@benchmark.command()
@_options
def engine(
    model: str | None, tiles: int, cells: Path | None, precision: str | None, as_json: bool
) -> None:
    """The bare engine on tiles in memory."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = _bundle(model, Path(folder))
        bare = _BareEngine(bundle, precision)
        speed = bare.speed(made_tiles(tiles, cells))
    report({**bare.described(), "tiles": tiles, "engine_tiles_per_second": speed}, as_json)


@benchmark.command("end-to-end")
@_options
@click.option("--format", "kind", type=click.Choice(["zarr", "jpeg", "png"]), default="zarr")
@click.option("--slides", default=4, show_default=True, help="Archives the cells lie in.")
@click.option("--executor", type=click.Choice(["ray", "local"]), default="ray")
def end_to_end(
    model: str | None,
    tiles: int,
    cells: Path | None,
    precision: str | None,
    as_json: bool,
    kind: str = "zarr",
    slides: int = 4,
    executor: str = "ray",
) -> None:
    """Archives on disk -> Parquet, as a share of the bare engine on the same tiles."""
    from cvm_batch.screening.run import run
    from cvm_batch.screening.settings import ExecutorKind, Settings

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = _bundle(model, folder)
        pixels = made_tiles(tiles, cells)
        _write_slides(folder / "slides", pixels, slides, kind)
        bare = _BareEngine(bundle, precision)
        before = bare.speed(pixels)
        summary = run(
            Settings(
                inputs=(str(folder / "slides"),),
                model=str(bundle.path),
                out=folder / "results",
                precision=bare.engine.precision,
                executor=ExecutorKind(executor),
            )
        )
        after = bare.speed(pixels)
    if summary.exit_code or summary.cells != tiles:
        raise click.ClickException(f"the run did not classify everything: {summary.to_json()}")
    engine_speed = (before + after) / 2
    assert summary.tiles_per_second is not None
    figures = {
        **bare.described(),
        "executor": executor,
        "archive": f"{slides} x {kind}",
        "tiles": tiles,
        "engine_tiles_per_second": engine_speed,
        "engine_before_and_after": [before, after],
        "end_to_end_tiles_per_second": summary.tiles_per_second,
        "share_of_engine": summary.tiles_per_second / engine_speed,
        "seconds_starting": summary.seconds_starting,
        "seconds_classifying": summary.seconds_classifying,
    }
    report(figures, as_json)


@dataclass
class _BareEngine:
    """The engine a replica would run, in this process."""

    bundle: Bundle
    precision: str | None

    def __post_init__(self) -> None:
        wanted = Precision(self.precision) if self.precision else None
        self.engine = TorchEngine(self.bundle, precision=wanted, threads=usable_cpus())

    def speed(self, tiles: NDArray[np.uint8]) -> float:
        """Tiles per second over all of ``tiles``, after a warm-up batch."""
        self.engine.probabilities(tiles[: self.engine.batch_size])
        started = time.perf_counter()
        self.engine.probabilities(tiles)
        return len(tiles) / (time.perf_counter() - started)

    def described(self) -> dict[str, Any]:
        return {
            "device": torch.cuda.get_device_name()
            if torch.cuda.is_available()
            else f"{platform.machine()}, {usable_cpus()} CPUs",
            "torch": torch.__version__,
            "model": self.bundle.spec.name,
            "precision": str(self.engine.precision),
            "backend": self.engine.backend,
            "batch_size": self.engine.batch_size,
        }


def _bundle(model: str | None, folder: Path) -> Bundle:
    if model is not None:
        return find_bundle(model)
    torch.manual_seed(0)
    spec = BundleSpec(
        name="cvm-cervix (random weights)",
        architecture=CVM_CERVIX,
        class_names=CVM_CERVIX_CLASSES,
        groups=cervical_groups(CVM_CERVIX_CLASSES),
        primary_group=PRIMARY_GROUP,
        precision=Precision.FP16,
    )
    network = CvmCervix(CVM_CERVIX, len(CVM_CERVIX_CLASSES))
    return write_bundle(
        folder / "bundle", spec, network, made_tiles(8, None), card="# Random weights"
    )


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


benchmark.add_command(archives)


if __name__ == "__main__":
    benchmark()
