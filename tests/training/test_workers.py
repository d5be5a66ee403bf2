"""Several workers against one that accumulates their parts, by real torch.distributed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from cvm_batch.errors import UsageError
from cvm_batch.training.datasets import load_cells
from cvm_batch.training.loop import Epoch, train
from cvm_batch.training.recipe import Augmentation, Recipe
from cvm_batch.training.splits import grouped_split
from cvm_batch.training.stepping import Stepper
from cvm_batch.training.workers import ALONE, Workers

CPU = torch.device("cpu")


def losses(recipe: Recipe, data: Path, workers: Workers = ALONE) -> list[float]:
    """Of every epoch, which has three steps."""
    cells = load_cells(data)
    split = grouped_split(cells.labels, cells.groups, seed=0)
    found: list[Epoch] = []
    train(recipe, cells, split, device=CPU, on_epoch=found.append, workers=workers)
    return [epoch.loss for epoch in found]


def _worker(rank: int, recipe: Recipe, data: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    try:
        found = losses(recipe, data, Workers(rank=rank, count=2))
        (folder / f"{rank}.json").write_text(json.dumps(found))
    finally:
        distributed.destroy_process_group()


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    return replace(
        tiny_recipe,
        epochs=7,
        batch_size=24,
        augmentation=Augmentation(shift_px=2, jitter=0.1),
        learning_rate=5e-4,
        mixed_precision=False,
    )


def test_two_step_as_one_that_accumulates_two_halves(
    recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """72 images in batches of 24: 21 steps. In fp32, where a sum's order is all that differs."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    multiprocessing.spawn(_worker, args=(recipe, data, tmp_path), nprocs=2)
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one == other
    alone = losses(replace(recipe, accumulate=2), data)
    assert one == pytest.approx(alone, abs=1e-3)
    # Batch normalisation saw halves, which whole batches do not give.
    whole = losses(recipe, data)
    assert max(abs(a - b) for a, b in zip(one, whole, strict=True)) > 1e-3


def test_a_share_is_a_part_and_all_shares_are_the_batch() -> None:
    batch = torch.arange(12)
    shares = [Workers(rank=rank, count=3).share(batch) for rank in range(3)]
    assert torch.equal(torch.cat(shares), batch)
    assert torch.equal(ALONE.share(batch), batch)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "count", "advice"),
    [(8, 1, 3, "multiple of 3, as --set batch_size=6"), (8, 4, 3, "batch_size=12")],
)
def test_batches_that_do_not_come_out_even_are_refused(
    recipe: Recipe, data: Path, batch_size: int, accumulate: int, count: int, advice: str
) -> None:
    uneven = replace(recipe, batch_size=batch_size, accumulate=accumulate)
    with pytest.raises(UsageError, match=advice):
        losses(uneven, data, Workers(rank=0, count=count))
    Workers(count=count).check(replace(uneven, batch_size=count * accumulate * 2))


def test_every_part_of_an_uneven_batch_is_learnt_from(recipe: Recipe) -> None:
    """`chunk` makes three parts of nine images where four are asked for."""
    network = recipe.architecture.build(2)
    # Alike, so that batch normalisation sees the same in every part.
    images = torch.full((9, 3, 32, 32), 90, dtype=torch.uint8)
    labels = torch.zeros(9, dtype=torch.int64)
    whole, parts = (
        Stepper(network, replace(recipe, batch_size=8, accumulate=times), torch.ones(2), CPU)
        .step(images, labels, 0.0)
        .item()
        for times in (1, 4)
    )
    assert parts == pytest.approx(whole, rel=0.1)
