"""Memory of the driver and its replica, over ever more tiles."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from benchmarks.processes import alone, peak_mib
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import Settings
from cvm_batch.screening.summary import Progress

_TILE_PX = 16
_CHUNK = 256
_TILES_OF_MANY = 1_000


@dataclass(frozen=True)
class _Case:
    folder: Path
    bundle: Path
    slides: Sequence[int]
    """Tiles of each."""


def memory_figures(folder: Path, sizes: Sequence[int]) -> dict[str, Any]:
    """Of a run over so many tiles each, in one slide and in many."""
    bundle = alone(_write_bundle, folder)
    figures: dict[str, Any] = {}
    for size in sizes:
        rest = [size % _TILES_OF_MANY] if size % _TILES_OF_MANY else []
        for kind, slides in (
            ("one slide", [size]),
            ("many slides", [_TILES_OF_MANY] * (size // _TILES_OF_MANY) + rest),
        ):
            case = _Case(folder / f"{kind} {size}", bundle, slides)
            _write_slides(case)
            found = alone(_run, case)
            figures |= {f"{size} tiles, {kind}: {name}": value for name, value in found.items()}
    return figures


def _write_bundle(folder: Path) -> Path:
    """The smallest network of the kind, with random weights: what is measured is around it."""
    from benchmarks.subject import smallest_bundle

    return smallest_bundle(folder).path


def _write_slides(case: _Case) -> None:
    shape = (_CHUNK, _TILE_PX, _TILE_PX, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for number, tiles in enumerate(case.slides):
        path = case.folder / "slides" / f"slide-{number:04d}.zarr"
        group = zarr.open_group(path, mode="w")
        array = group.create_array("tiles", shape=(tiles, *shape[1:]), chunks=shape, dtype="uint8")
        for start in range(0, tiles, _CHUNK):
            array[start : start + _CHUNK] = pixels[: tiles - start]


class _Watch:
    """Looks at the processes as often as the run tells where it stands."""

    def __init__(self) -> None:
        self.replica_mib = 0.0

    def __call__(self, progress: Progress) -> None:
        with suppress(OSError):  # it ended meanwhile
            self.replica_mib = max([self.replica_mib, *map(peak_mib, _replicas())])


def _run(case: _Case) -> dict[str, float]:
    watch = _Watch()
    settings = Settings(
        inputs=(str(case.folder / "slides"),), model=str(case.bundle), out=case.folder / "results"
    )
    summary = run(settings, report=watch)
    if summary.cells != sum(case.slides) or summary.tiles_per_second is None:
        raise AssertionError(f"not all was classified: {summary}")
    return {
        "driver_peak_mib": peak_mib(),
        "replica_peak_mib": watch.replica_mib,
        "tiles_per_second": summary.tiles_per_second,
    }


def _replicas() -> list[int]:
    """Numbers of the processes of this run's actors: others may run Ray here as well."""
    parents: dict[int, int] = {}
    actors = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The name comes first and may hold anything; then state and parent.
            _, _, after = (folder / "stat").read_text().rpartition(")")
            parents[int(folder.name)] = int(after.split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::ReplicaActor"):
                actors.append(int(folder.name))
    return [actor for actor in actors if os.getpid() in _ancestors(actor, parents)]


def _ancestors(process: int, parents: Mapping[int, int]) -> Iterator[int]:
    while process in parents:
        process = parents[process]
        yield process
