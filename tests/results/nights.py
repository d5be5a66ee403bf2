"""Results of real runs, over slides whose names are as bad as names can be.

`make_night`: two runs into one folder, with something of everything that a reader must tell apart.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvm_batch.model.bundle import Bundle
from cvm_batch.model.classes import CVM_CERVIX_CLASSES
from cvm_batch.model.precision import Precision
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings
from cvm_batch.screening.summary import RunSummary
from tests.archives import making
from tests.conftest import coloured_tiles
from tests.screening.test_run import flip_byte_in_member

#: Names that do harm where they are pasted as they are: to HTML, a spreadsheet, a terminal, a
#: command, a pattern, a format.
HOSTILE = (
    "<script>alert('x')</script>.zarr.zip".replace("/", "\N{DIVISION SLASH}"),
    "=cmd|'calc'!A0.zarr.zip",
    "\x1b[31mred\nnext line.zarr.zip",
    "\N{RIGHT-TO-LEFT OVERRIDE}gpj.zarr.zip",
    f'"quoted", {"long " * 45}.zarr.zip',
    "-rf.zarr.zip",
    "%s {0} ${HOME} \\d+ .*.zarr.zip",
)
#: Of a slide that `write_slide` writes, which go through all classes in turn.
CELLS = 24


def write_slide(
    folder: Path, name: str, seed: int = 0, tiles: NDArray[np.uint8] | None = None
) -> Path:
    """A slide whose cells have places and names."""
    if tiles is None:
        tiles = coloured_tiles([n % len(CVM_CERVIX_CLASSES) for n in range(CELLS)], seed=seed)
    n = len(tiles)
    xy = np.random.default_rng(seed).uniform(1000, 40_000, (n, 2))
    ids = [f"=cell <{index}>" for index in range(n)]
    return making.write_zarr(folder / name, tiles, xy=xy, cell_id=ids)


def write_hostile_slides(folder: Path) -> Path:
    for seed, name in enumerate(HOSTILE):
        write_slide(folder, name, seed)
    return folder


def settings_for(slides: Path, bundle: Bundle, out: Path, **more: Any) -> Settings:
    return Settings(
        inputs=(str(slides),),
        model=str(bundle.path),
        out=out,
        executor=ExecutorKind.LOCAL,
        **{"precision": Precision.FP32} | more,
    )


def screened(slides: Path, bundle: Bundle, out: Path, **more: Any) -> RunSummary:
    return run(settings_for(slides, bundle, out, **more))


@dataclass(frozen=True)
class Night:
    results: Path
    settings: Settings
    first_run: str
    second_run: str


def tiles_of(suspicious: str | None, count: int = 30, *, seed: int = 0) -> NDArray[np.uint8]:
    """Twenty tiles of the class ``suspicious``, if any, then NILM."""
    names = [suspicious or "NILM"] * 20 + ["NILM"] * (count - 20)
    return coloured_tiles([CVM_CERVIX_CLASSES.index(name) for name in names], seed=seed)


def make_night(folder: Path, bundle: Bundle) -> Night:
    """Slides by what becomes of them: complete, newer, failed, incomplete, hostile."""
    slides = folder / "slides"
    making.write_zip(slides / "hsil.zip", tiles_of("HSIL"))
    making.write_zip(slides / "changed.zip", tiles_of(None))
    making.write_folder(slides / "normal", tiles_of(None))
    making.write_zip(slides / "failed.zip", tiles_of("SCC"))
    flip_byte_in_member(slides / "failed.zip")
    for name, suspicious in (("holed", "SCC"), ("holed-normal", None)):
        making.write_folder(slides / name, tiles_of(suspicious))
        sorted((slides / name).iterdir())[-1].write_bytes(b"no image")
    for seed, name in enumerate(HOSTILE):
        write_slide(slides, name, seed, tiles_of(None, 20, seed=seed))
    settings = settings_for(slides, bundle, folder / "results")
    first = run(settings)
    making.write_zip(slides / "changed.zip", tiles_of("ASC-US", 25))
    second = run(settings)
    night = Night(settings.out, settings, first.run_id, second.run_id)
    _leave_behind_a_superseded_attempt(night)
    return night


def _leave_behind_a_superseded_attempt(night: Night) -> None:
    """What a killed run leaves: files of an attempt that no row names."""
    for kind in ("cells", "tops"):
        (folder,) = (night.results / kind).glob(f"*/{night.second_run}")
        for path in sorted(folder.iterdir()):
            shutil.copy(path, path.with_name(path.name.replace("lease-0", "lease-9")))


def content(root: Path) -> dict[str, bytes]:
    """Every file of a results folder by its path, but the claims'."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.relative_to(root).as_posix().startswith((".", "lock"))
    }
