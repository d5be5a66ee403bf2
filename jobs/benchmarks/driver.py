"""What one driver costs: per slide, per lease, in memory, and until the first tile."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.reporting import report

_PARTS = ("slides", "leases", "memory", "start")


@click.command()
@click.option(
    "--part",
    "parts",
    type=click.Choice(_PARTS),
    multiple=True,
    default=_PARTS,
    help="What to measure; default: all of it.",
)
@click.option(
    "--slides",
    type=click.IntRange(min=1),
    multiple=True,
    default=(2_500, 5_000, 10_000, 20_000),
    show_default=True,
    help="For the part slides: slides of three cells.",
)
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    multiple=True,
    default=(2, 8, 24),
    show_default=True,
    help="For the part leases: Ray actors.",
)
@click.option("--leases", default=2_000, show_default=True, help="For the part leases.")
@click.option(
    "--tiles",
    type=click.IntRange(min=1),
    multiple=True,
    default=(10_000, 100_000, 500_000),
    show_default=True,
    help="For the part memory: of one slide, and of slides of 1,000 each.",
)
@click.option("--rounds", default=3, show_default=True, help="For the part start.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, exists=True),
    help="Where slides and results are written meanwhile; default: the temporary one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def driver(
    parts: tuple[str, ...],
    slides: tuple[int, ...],
    replicas: tuple[int, ...],
    leases: int,
    tiles: tuple[int, ...],
    rounds: int,
    folder: Path | None,
    as_json: bool,
) -> None:
    """What one driver costs: per slide, per lease, in memory, and until the first tile.

    slides: planning, and finishing with replicas that answer at once, so that the driver's cost
    is left; then the same command again, when all is done. leases: what the dispatcher and Ray
    cost for each. memory: of driver and replica over ever more tiles, with a real but tiny
    network. start: from `cvm-batch submit` to the first classified tile of the demo.
    """
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        if "slides" in parts:
            from benchmarks.driver_slides import slide_figures

            figures |= slide_figures(Path(name, "slides"), slides)
        if "leases" in parts:
            from benchmarks.driver_leases import lease_figures

            figures |= lease_figures(Path(name, "leases"), replicas, leases)
        if "memory" in parts:
            from benchmarks.driver_memory import memory_figures

            figures |= memory_figures(Path(name, "memory"), tiles)
        if "start" in parts:
            from benchmarks.driver_start import start_figures

            figures |= start_figures(Path(name, "start"), rounds)
    report(figures, as_json)
