"""How fast tiles get from archives to committed counts, with a model that costs nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks import ray_data
from benchmarks.feeding import Turn, bare_loop, real_run, zarr_loop
from benchmarks.reporting import made_tiles
from benchmarks.subject import bundle_to_measure, device_name, versions
from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.opening import PLAIN
from cvm_batch.archives.packing.pack import NotPacked, pack_slides
from cvm_batch.archives.tables.slides import ListedSlide
from cvm_batch.cpus import usable_cpus
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.engine import default_device

_CHUNK = 256
#: Tiles that differ; further slides are the same files under other names, which saves the disk.
_DISTINCT = 20_000

YARDSTICK = "bare loop, 1 thread"
THREADED = f"bare loop, {usable_cpus()} threads"
PEER = "Ray Data"
WRITING = f"{PEER}, writing rows"
Contestants = Mapping[str, Callable[[], Turn]]


@click.command()
@click.option("--model", help="A bundle, for its classes; default: one of the full size.")
@click.option("--tiles", default=100_000, show_default=True, help="Cells in all slides together.")
@click.option(
    "--slide-cells",
    "sizes",
    type=click.IntRange(min=1),
    multiple=True,
    default=(100, 10_000),
    show_default=True,
    help="Cells in a slide; several are measured one after the other.",
)
@click.option(
    "--format", "kind", type=click.Choice(["packed", "zstd"]), default="packed", show_default=True
)
@click.option("--cells", type=click.Path(path_type=Path), help="Folder of real crops.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--only", multiple=True, help="Contestants whose name holds this; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def feed(
    model: str | None,
    tiles: int,
    sizes: tuple[int, ...],
    kind: str,
    cells: Path | None,
    rounds: int,
    only: tuple[str, ...],
    as_json: bool,
) -> None:
    """Archives on disk -> committed counts, the model a checksum; beside bare loops and Ray Data.

    Contestants take turns. Time counts from where all processes are ready.
    """
    figures: dict[str, Any] = {
        "device": device_name(default_device()),
        "cpus": usable_cpus(),
        "format": kind,
        "versions": versions("ray", "zarr", "numcodecs", "numpy", "pyarrow"),
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = bundle_to_measure(model, folder)
        pixels = made_tiles(min(tiles, _DISTINCT), cells)
        for size in sizes:
            slides = folder / f"slides-of-{size}"
            write_slides(slides, pixels, size, tiles, kind)
            rows += _contest(slides, size, _taking_part(slides, bundle, only), rounds)
            shutil.rmtree(slides)
    figures["contestants"] = rows
    click.echo(json.dumps(figures, indent=2) if as_json else _table(rows))


def _taking_part(slides: Path, bundle: Bundle, only: Sequence[str]) -> Contestants:
    paths = sorted(slides.iterdir())
    cpus = usable_cpus()
    everyone = {
        "zarr's own reading, 1 thread": partial(zarr_loop, paths),
        YARDSTICK: partial(bare_loop, paths, 1),
        THREADED: partial(bare_loop, paths, cpus),
        "cvm-batch, in process": partial(real_run, slides, bundle, None),
        f"cvm-batch, 1 replica of {cpus} CPUs": partial(real_run, slides, bundle, 1),
        f"cvm-batch, {cpus} replicas of 1 CPU": partial(real_run, slides, bundle, cpus),
        PEER: partial(_ray_data, paths, len(bundle.spec.class_names)),
        WRITING: partial(_ray_data, paths, len(bundle.spec.class_names), writing=True),
    }
    chosen = {
        name: turn
        for name, turn in everyone.items()
        if not only or any(word in name for word in only)
    }
    if not chosen:
        raise click.BadParameter(f"known are: {'; '.join(everyone)}", param_hint="--only")
    return chosen


def _ray_data(slides: Sequence[Path], classes: int, *, writing: bool = False) -> Turn:
    """In a Ray of its own, and with its memory touched before: first use of that is slow."""
    import ray

    began = time.perf_counter()
    ray_data.start_ray()
    started = time.perf_counter()
    try:
        ray_data.count_tiles(slides, classes)
        warm = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=slides[0].parent.parent) as out:
            results = Path(out) if writing else None
            counts, seconds = ray_data.count_tiles(slides, classes, results)
        ended = time.perf_counter()
    finally:
        ray.shutdown()
    return Turn(counts.total(), seconds, started - began + ended - warm)


def _contest(
    slides: Path, size: int, contestants: Contestants, rounds: int
) -> list[dict[str, Any]]:
    turns: dict[str, list[Turn]] = {name: [] for name in contestants}
    tiles = size * len(list(slides.iterdir()))
    for number in range(rounds):
        for name, turn in contestants.items():
            click.echo(f"slides of {size}, round {number + 1} of {rounds}: {name}", err=True)
            turns[name].append(turn())
            if turns[name][-1].tiles != tiles:
                raise click.ClickException(
                    f"{name} counted {turns[name][-1].tiles} tiles, of {tiles}"
                )
    return [
        {
            "slide_cells": size,
            "slides": tiles // size,
            "contestant": name,
            "tiles_per_second": median(_speeds(taken)),
            "tiles_per_second_by_round": _speeds(taken),
            "ratio_to_bare_loop": _ratio(taken, turns.get(YARDSTICK)),
            "ratio_to_bare_threads": _ratio(
                taken, turns.get(f"bare loop, {usable_cpus()} threads")
            ),
            "ratio_to_ray_data": _ratio(taken, turns.get(PEER)),
            "ratio_to_ray_data_writing": _ratio(taken, turns.get(WRITING)),
            "seconds_whole": median(turn.seconds_whole for turn in taken),
        }
        for name, taken in turns.items()
    ]


def _speeds(turns: Sequence[Turn]) -> list[float]:
    return [turn.tiles / turn.seconds for turn in turns]


def _ratio(turns: Sequence[Turn], others: Sequence[Turn] | None) -> float | None:
    """The median over rounds: what disturbs a round disturbs both."""
    if others is None:
        return None
    return median(own / other for own, other in zip(_speeds(turns), _speeds(others), strict=True))


# Archives


def write_slides(folder: Path, pixels: NDArray[np.uint8], size: int, tiles: int, kind: str) -> None:
    """``tiles`` // ``size`` slides of ``size`` tiles each, as zarr in chunks of 256 tiles."""
    count, distinct = tiles // size, max(1, len(pixels) // size)
    if not count:
        raise click.BadParameter(f"{tiles} tiles are no slide of {size}", param_hint="--tiles")
    sources = folder.with_name(f"{folder.name}-sources")
    first = sources if kind == "packed" else folder
    for number in range(min(count, distinct)):
        part = pixels[number * size :][:size]
        _write_zarr(first / _name(number), part, compress=kind != "packed")
    if kind == "packed":
        _pack(sources, folder)
        shutil.rmtree(sources)
    for number in range(distinct, count):
        shutil.copytree(
            folder / _name(number % distinct), folder / _name(number), copy_function=os.link
        )


def _name(number: int) -> str:
    return f"slide-{number:06d}.zarr"


def _write_zarr(path: Path, tiles: NDArray[np.uint8], *, compress: bool) -> None:
    import zarr
    from zarr.codecs import BloscCodec

    compressor = BloscCodec(cname="zstd", typesize=1, shuffle="bitshuffle")
    group = zarr.open_group(path, mode="w")
    group.create_array(
        "tiles",
        shape=tiles.shape,
        chunks=(min(_CHUNK, len(tiles)), *tiles.shape[1:]),
        dtype="uint8",
        compressors=[compressor] if compress else None,
    )[:] = tiles
    xy = np.random.default_rng(0).uniform(0, 50_000, (len(tiles), 2))
    group.create_array("xy", shape=xy.shape, chunks=xy.shape, dtype="float64")[:] = xy


def _pack(sources: Path, folder: Path) -> None:
    """As `cvm-batch pack` does it."""
    slides = [
        ListedSlide(slide_id=path.name, address=SlideAddress(uri=str(path)))
        for path in sorted(sources.iterdir())
    ]
    with closing(pack_slides(slides, PLAIN, folder)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, NotPacked):
                raise outcome.error
    shutil.rmtree(folder / ".packed")


# The table

_COLUMNS: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("cells", lambda row: f"{row['slide_cells']:,}"),
    ("contestant", lambda row: row["contestant"]),
    ("tiles/s", lambda row: f"{row['tiles_per_second']:,.0f}"),
    ("min-max", lambda row: _range(row["tiles_per_second_by_round"])),
    ("x bare", lambda row: _times(row["ratio_to_bare_loop"])),
    ("x threads", lambda row: _times(row["ratio_to_bare_threads"])),
    ("x Ray Data", lambda row: _times(row["ratio_to_ray_data"])),
    ("x writing", lambda row: _times(row["ratio_to_ray_data_writing"])),
    ("whole, s", lambda row: f"{row['seconds_whole']:.1f}"),
)
_LEGEND = """\
cells: in a slide. tiles/s: the median of the rounds. x bare, x threads, x Ray Data, x writing:
ratio to the bare loop in one thread, in one for each CPU, to Ray Data, and to Ray Data that writes
rows as we do; the median of the rounds. whole: seconds with start-up and planning."""


def _range(speeds: Sequence[float]) -> str:
    return f"{min(speeds):,.0f}-{max(speeds):,.0f}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [[title for title, _ in _COLUMNS]]
    cells += [[show(row) for _, show in _COLUMNS] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if number == 1 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join([*lines, "", _LEGEND])
