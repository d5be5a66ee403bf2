"""The same cells, kept in every format, give the same counts and the same rows of cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cvm_batch.errors import ExitCode
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings
from tests.archives.making import (
    Cells,
    image_names,
    table_of,
    write_folder,
    write_table,
    write_tar,
    write_zarr,
    write_zip,
)
from tests.archives.wsi_making import write_tiff
from tests.conftest import coloured_tiles

COUNT = 60
SIDE = 40
#: Cells lie on a grid of so many columns in the whole slide, each in a field of its own.
COLUMNS = 10


def the_cells() -> Cells:
    """Classes of very different numbers; on a grid, so that a whole slide can hold them."""
    classes = np.random.default_rng(5).choice(11, COUNT, p=np.arange(1, 12) / 66)
    tiles = coloured_tiles(classes, side=SIDE, seed=3)
    rows, columns = np.divmod(np.arange(COUNT), COLUMNS)
    xy = np.stack([columns, rows], axis=1) * SIDE + SIDE / 2
    return Cells(tiles, xy, [f"cell-{number}" for number in range(COUNT)])


def write_whole_slide(path: Path, slide: Cells) -> None:
    grid = np.asarray(slide.tiles).reshape(-1, COLUMNS, SIDE, SIDE, 3)
    pixels = grid.transpose(0, 2, 1, 3, 4).reshape(-1, COLUMNS * SIDE, 3)
    write_tiff(path, pixels)
    columns = {name: values for name, values in table_of(slide, ()).items() if name != "file"}
    side = [SIDE] * len(slide)
    write_table(path.with_name(f"{path.stem}.cells.csv"), columns | {"width": side, "height": side})


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Path:
    """Of a night over one slide in each format."""
    folder, slide = tmp_path_factory.mktemp("formats"), the_cells()
    slides = folder / "slides"
    arrays: dict[str, Any] = {"xy": slide.xy, "cell_id": slide.cell_id, "chunk": 16}
    tiles = np.asarray(slide.tiles)
    write_zarr(slides / "v2.zarr", tiles, zarr_format=2, **arrays)
    write_zarr(slides / "v3.zarr", tiles, zarr_format=3, **arrays)
    write_zarr(slides / "packed.zarr.zip", tiles, **arrays)
    write_whole_slide(slides / "whole.tif", slide)
    columns = table_of(slide, image_names(COUNT))
    write_folder(slides / "folder", slide.tiles)
    write_zip(slides / "zip.zip", slide.tiles)
    write_tar(slides / "tar.tar", slide)
    for stem in ("folder", "zip", "tar"):
        write_table(slides / f"{stem}.cells.csv", columns)
    settings = Settings(
        inputs=(str(slides),),
        model=str(tiny_bundle.path),
        out=folder / "results",
        precision=Precision.FP32,
        executor=ExecutorKind.LOCAL,
    )
    assert run(settings).exit_code is ExitCode.COMPLETE
    return folder / "results"


def test_the_same_counts(results: Path) -> None:
    rows = pq.read_table(results / "slides", partitioning=None).to_pylist(maps_as_pydicts="strict")
    assert len(rows) == 7
    first = rows[0]["class_counts"]
    assert sum(first.values()) == COUNT
    assert sum(count > 0 for count in first.values()) > 5
    for row in rows:
        assert row["class_counts"] == first, row["slide_id"]
        assert row["abnormal_count"] == rows[0]["abnormal_count"]
        assert row["slide_score"] == pytest.approx(rows[0]["slide_score"], abs=1e-6)


def test_the_same_cells(results: Path) -> None:
    """By name, since a whole slide's cells are in the order in which it stores its pixels."""
    table = pq.read_table(results / "cells", partitioning=None)
    by_slide: dict[str, dict[str, tuple[Any, ...]]] = {}
    for row in table.to_pylist():
        cell = (row["class"], row["x"], row["y"], round(row["confidence"], 4))
        by_slide.setdefault(row["slide_id"], {})[row["cell_id"]] = cell
    assert len(by_slide) == 7
    first = by_slide["folder"]
    assert len(first) == COUNT
    for slide_id, found in by_slide.items():
        assert found == first, slide_id
