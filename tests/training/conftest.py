"""A small labelled set in CRIC's layout, its classes told apart by colour."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from cvm_batch.model.architecture import Architecture
from cvm_batch.model.precision import Precision
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.training.recipe import ClassWeighting, Recipe, Schedule
from tests.conftest import coloured_tiles

#: Not in the paper's order, which loading must find.
CLASS_NAMES = ("NILM", "HSIL", "ASC-H")
COLUMNS = ("file", "label", "cell_id", "frame", "nucleus_x", "nucleus_y", "width", "height")


def write_cells(root: Path, *, frames: int = 10, cells_per_frame: int = 12) -> Path:
    """Write a set of ``frames`` frames; each has cells of every class."""
    rows = []
    for cell in range(frames * cells_per_frame):
        label = cell % len(CLASS_NAMES)
        file = f"{CLASS_NAMES[label]}/{cell:04}.jpg"
        side = 40 if cell % 7 else 36
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        tile = coloured_tiles([3 * label], side=side, seed=cell)[0]
        Image.fromarray(tile).save(root / file, quality=95)
        frame = f"frame{cell // cells_per_frame}"
        rows.append([file, CLASS_NAMES[label], f"{cell:04}", frame, 10, 20, side, side])
    write_table(root, rows)
    return root


def write_table(root: Path, rows: list[list[object]], columns: tuple[str, ...] = COLUMNS) -> None:
    with (root / "cells.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 cells of 3 classes on 10 frames. Do not change it."""
    return write_cells(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def tiny_recipe(tiny_architecture: Architecture) -> Recipe:
    return Recipe(
        name="tiny",
        architecture=tiny_architecture,
        preprocessing=Preprocessing(input_px=32),
        epochs=2,
        batch_size=8,
        learning_rate=2e-3,
        warmup=0.1,
        schedule=Schedule.COSINE,
        class_weighting=ClassWeighting.INVERSE_SQRT,
        label_smoothing=0.05,
        ema_decay=0.9,
        clip_norm=1.0,
        stored=Precision.FP16,
    )
