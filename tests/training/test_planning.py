"""A training goes on with the cells that it began with, on the same sides, or not at all."""

from __future__ import annotations

import csv
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cvm_batch.errors import DataSetError
from cvm_batch.training.comparison import run, trials
from cvm_batch.training.datasets import load_cells
from cvm_batch.training.planning import plan_digest
from cvm_batch.training.recipe import Recipe
from cvm_batch.training.recipes import find_recipe
from cvm_batch.training.run import Job, train_bundle
from cvm_batch.training.splits import SplitKind
from tests.training.conftest import write_table


@pytest.fixture
def own(data: Path, tmp_path: Path) -> Path:
    """A copy of the data set that may be changed."""
    return Path(shutil.copytree(data, tmp_path / "own"))


def rows(root: Path) -> list[list[object]]:
    with (root / "cells.csv").open(newline="") as file:
        return [list(row) for row in csv.reader(file)][1:]


def give_frames_anew(root: Path) -> None:
    """As after a correction: each cell of an even frame is of the next one."""
    changed = rows(root)
    for at, row in enumerate(changed):
        row[3] = f"frame{(at // 12 + at % 2) % 10}"
    write_table(root, changed)


def turn_rows_round(root: Path) -> None:
    write_table(root, rows(root)[::-1])


@pytest.mark.parametrize(
    ("kind", "change", "same"),
    [
        (SplitKind.GROUPED, give_frames_anew, False),
        (SplitKind.PAPER, turn_rows_round, False),
        (SplitKind.GROUPED, lambda root: None, True),
    ],
)
def test_another_split_of_the_same_cells_is_another_training(
    own: Path, tiny_recipe: Recipe, kind: SplitKind, change: object, same: bool
) -> None:
    recipe = replace(tiny_recipe, split=kind)
    before = load_cells(own)
    planned = plan_digest(before, recipe.split_of(before))
    assert callable(change)
    change(own)
    after = load_cells(own)
    assert after.digest == before.digest
    assert (plan_digest(after, recipe.split_of(after)) == planned) is same


class _CutError(Exception):
    pass


def test_a_corrected_frame_column_begins_a_training_anew(
    own: Path, tmp_path: Path, tiny_recipe: Recipe
) -> None:
    out = tmp_path / "out" / "tiny"

    def cut(*job: object) -> None:
        raise _CutError

    for change in (lambda root: None, lambda root: None, give_frames_anew):
        change(own)
        with pytest.raises(_CutError):
            train_bundle((own,), tiny_recipe, out, trainer=cut, report=False)  # type: ignore[arg-type]
    assert len(list((tmp_path / "out" / "tiny.training").iterdir())) == 2


def test_a_worker_with_other_data_refuses(own: Path, tmp_path: Path, tiny_recipe: Recipe) -> None:
    cells = load_cells(own)
    planned = plan_digest(cells, tiny_recipe.split_of(cells))
    job = Job(data=(own,), recipe=tiny_recipe, folder=tmp_path, planned=planned)
    sent = pickle.dumps(job)
    read, split = pickle.loads(sent).read()
    assert plan_digest(read, split) == planned
    give_frames_anew(own)
    with pytest.raises(DataSetError, match="holds other cells here than when"):
        pickle.loads(sent).read()


def test_a_trial_on_other_data_fails_and_another_split_is_another_trial(
    own: Path, tmp_path: Path
) -> None:
    recipe = replace(find_recipe("smoke"), split=SplitKind.GROUPED)
    (trial,) = trials(["test_resnet"], [0], recipe, [own], tmp_path)
    give_frames_anew(own)
    assert "holds other cells here than when" in run(trial)["error"]
    (again,) = trials(["test_resnet"], [0], recipe, [own], tmp_path)
    assert again.path != trial.path
