"""One training from end to end: data, split, loop, bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import BundleError
from cvm_batch.training.data import load_cells
from cvm_batch.training.loop import train
from cvm_batch.training.publish import Published, publish
from cvm_batch.training.recipe import Recipe
from cvm_batch.training.splits import make_split


def train_bundle(
    data: Path, recipe: Recipe, out: Path, *, say: Callable[[str], None] = lambda line: None
) -> Published:
    """Train ``recipe`` on the labelled set in ``data``; write the bundle to ``out``.

    ``say`` gets lines of progress. Raises DataSetError, BundleError, RunAbortedError.
    """
    _prepare_out(out)
    # torch counts the machine's processors, not those that a container may use.
    torch.set_num_threads(usable_cpus())
    cells = load_cells(data).regrouped(recipe.classes)
    split = make_split(
        recipe.split, cells.labels, cells.groups, seed=recipe.split_seed, shares=recipe.shares
    )
    sides = ", ".join(f"{len(positions)} {side}" for side, positions in split.sides().items())
    say(f"{data}: {len(cells)} cells of {len(cells.class_names)} classes: {sides}")
    trained = train(recipe, cells, split, on_epoch=lambda epoch: say(str(epoch)))
    published = publish(out, trained, recipe, cells, split)
    say(f"epoch {trained.best.number} kept; on the test cells, which it never saw:")
    for line in published.test.metrics.lines():
        say(line)
    return published


def _prepare_out(out: Path) -> None:
    # Found out now, and not when the training that was to fill it is over.
    if out.exists():
        raise BundleError(f"{out} exists already. Name another folder, or remove it first.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(
            f"{out.parent} cannot be made ({error.strerror}). Name a folder that you may write to."
        ) from error
