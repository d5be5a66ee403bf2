"""The bare engine on tiles in memory, in all its forms, beside its peers.

Nothing here needs Ray, zarr or OpenSlide: the repository and PyTorch, torchvision, timm,
safetensors, Pillow, NumPy and click are enough.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.contest import COMPARED, Stage, contest
from benchmarks.contestants import Contestant, contestants
from benchmarks.reporting import made_tiles
from benchmarks.rooflines import Roofline, kernels_of
from benchmarks.standings import rows, table
from benchmarks.subject import bundle_to_measure, device_name, versions
from cvm_batch.cpus import usable_cpus
from cvm_batch.model.backends.choosing import Backend, Work, choose_backend
from cvm_batch.model.bundle import reference_probabilities
from cvm_batch.model.engine import default_device
from cvm_batch.model.precision import Precision, choose_precision

#: Enough work for whatever has to be prepared.
_LONG_RUN = 10_000_000
#: Distinct tiles; a longer turn repeats them.
_TILES = 1024
_LIBRARIES = ("torch", "torchvision", "timm", "openvino", "onnxruntime", "numpy")


@click.command()
@click.option("--model", help="A bundle; default: the full size with random weights.")
@click.option("--cells", type=click.Path(path_type=Path), help="Folder of real crops.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), help="This one alone.")
@click.option("--only", multiple=True, metavar="NAME", help="Contestants with NAME in theirs.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Of each contestant in each round.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def engine(
    model: str | None,
    cells: Path | None,
    precision: str | None,
    only: tuple[str, ...],
    rounds: int,
    seconds: float,
    as_json: bool,
) -> None:
    """Every backend and precision of the engine beside its peers, by turns.

    All start from the same tiles of native size and end with probabilities. Each has a
    process of its own; the median of the rounds counts, and ratios within one run. A
    contestant that fails is listed with the reason. A GPU holds all of them at once: where
    its memory does not suffice, use --only.
    """
    device = default_device()
    wanted = Precision(precision) if precision else None
    taking_part = _selected(contestants(device), wanted, only)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = bundle_to_measure(model, folder)
        tiles = made_tiles(_TILES, cells)
        np.save(folder / "tiles.npy", tiles)
        stage = Stage(bundle.path, folder / "tiles.npy", folder, device, seconds)
        spec = bundle.spec
        reference = reference_probabilities(bundle.network(), spec.preprocessing, tiles[:COMPARED])
        side = spec.preprocessing.input_px
        kernels = kernels_of(spec.architecture, len(spec.class_names), side)
        roofline = Roofline(kernels, device, sorted({one.precision for one in taking_part}))
        standings = contest(taking_part, stage, rounds, tell=_tell, each_round=roofline.measure)
    gflop, bounds = sum(kernel.flop for kernel in kernels) / 1e9, roofline.bounds()
    found = rows(standings, reference, bounds, _chosen(device, wanted, gflop))
    figures = {
        "device": device_name(device),
        "threads": usable_cpus(),
        "versions": versions(*_LIBRARIES),
        "model": spec.name,
        "tile_px": tiles.shape[1],
        "input_px": side,
        "gflop_per_tile": gflop,
        "roofline": {
            str(precision): asdict(peak) | {"tiles_per_second": bounds[precision]}
            for precision, peak in roofline.peaks.items()
        },
        "rounds": rounds,
        "seconds_per_turn": seconds,
        "contestants": found,
    }
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        click.echo(f"{_heading(figures)}\n\n{table(found)}")


def _selected(
    everyone: Sequence[Contestant], precision: Precision | None, only: Sequence[str]
) -> list[Contestant]:
    """Those whose name and precision hold one of ``only``, whatever the case."""
    found = [
        contestant
        for contestant in everyone
        if precision in (None, contestant.precision)
        and (not only or any(name.lower() in str(contestant).lower() for name in only))
    ]
    if not found:
        names = ", ".join(map(str, everyone))
        raise click.UsageError(f"--precision and --only leave no contestant. There are: {names}")
    return found


def _chosen(
    device: torch.device, wanted: Precision | None, gflop: float
) -> tuple[Backend, Precision]:
    """What a night's run would use on this machine."""
    precision = choose_precision(device.type, wanted)
    processors = 1 if device.type == "cuda" else usable_cpus()
    work = Work(_LONG_RUN, lambda: gflop, device.type, processors)
    return choose_backend(work, precision), precision


def _heading(figures: Mapping[str, Any]) -> str:
    rooflines = [
        f"{precision} {peak['flops'] / 1e12:,.3g} TFLOP/s"
        + (f" and {peak['bandwidth'] / 1e12:.3g} TB/s" if peak["bandwidth"] else "")
        + f", {peak['tiles_per_second']:,.0f} tiles/s"
        for precision, peak in figures["roofline"].items()
    ]
    return "\n".join(
        [
            f"{figures['model']}: {figures['gflop_per_tile']:.3g} GFLOP a tile of "
            f"{figures['tile_px']} px, at {figures['input_px']} px.",
            f"{figures['device']}. PyTorch {figures['versions']['torch']}.",
            f"{figures['rounds']} rounds of {figures['seconds_per_turn']:g} s each.",
            f"Roofline: {'; '.join(rooflines) or 'not known for this device'}.",
        ]
    )


def _tell(text: str) -> None:
    click.echo(text, err=True)
