from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cvm_batch.errors import DataSetError, RunAbortedError
from cvm_batch.model.bundle import reference_probabilities
from cvm_batch.training.datasets import LabelledCells, load_cells
from cvm_batch.training.images import load_images
from cvm_batch.training.loop import Epoch, Trained, rate_factor, train
from cvm_batch.training.recipe import ClassWeighting, Recipe, Schedule
from cvm_batch.training.splits import Split, grouped_split

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: a second thread costs more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cells(data: Path) -> LabelledCells:
    return load_cells(data)


@pytest.fixture(scope="module")
def split(cells: LabelledCells) -> Split:
    return grouped_split(cells.labels, cells.groups, seed=0)


def weights(trained: Trained) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained.network.parameters()])


def test_a_tiny_network_learns_colours(
    tiny_recipe: Recipe, cells: LabelledCells, split: Split
) -> None:
    epochs: list[Epoch] = []
    trained = train(
        replace(tiny_recipe, epochs=6), cells, split, device=CPU, on_epoch=epochs.append
    )
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4, 5, 6]
    assert epochs[-1].loss < epochs[0].loss
    assert trained.best.validation_macro_f1 > 0.9
    assert trained.best.validation_macro_f1 == max(e.validation_macro_f1 for e in epochs)
    assert not trained.network.training

    of_size = [at for at in range(len(cells)) if cells.read(at).shape[0] == 40]
    tiles, labels = np.stack([cells.read(at) for at in of_size]), cells.labels[of_size]
    probabilities = reference_probabilities(trained.network, tiny_recipe.preprocessing, tiles)
    assert (probabilities.argmax(axis=1) == labels).mean() > 0.9


def test_deterministic_by_seed(tiny_recipe: Recipe, cells: LabelledCells, split: Split) -> None:
    recipe = replace(tiny_recipe, epochs=1)
    one, again = (train(recipe, cells, split, device=CPU) for _ in range(2))
    other = train(replace(recipe, seed=1), cells, split, device=CPU)
    assert torch.equal(weights(one), weights(again))
    assert not torch.equal(weights(one), weights(other))


def test_the_callers_random_numbers_are_left_alone(
    tiny_recipe: Recipe, cells: LabelledCells, split: Split
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(replace(tiny_recipe, epochs=1), cells, split, device=CPU)
    assert torch.equal(torch.rand(3), expected)


def test_a_plain_recipe_keeps_the_last_weights(
    tiny_recipe: Recipe, cells: LabelledCells, split: Split
) -> None:
    plain = replace(
        tiny_recipe,
        epochs=1,
        ema_decay=None,
        clip_norm=None,
        class_weighting=ClassWeighting.NONE,
        schedule=Schedule.CONSTANT,
    )
    assert train(plain, cells, split, device=CPU).best.number == 1


def test_images_are_those_that_the_engine_sees(tiny_recipe: Recipe, cells: LabelledCells) -> None:
    positions = np.array([7, 3])
    images = load_images(cells, positions, tiny_recipe.preprocessing, CPU)
    for image, position in zip(images, positions, strict=True):
        tile = cells.read(int(position))
        assert torch.equal(image, tiny_recipe.preprocessing.resize(tile[None], CPU)[0])


def test_a_class_without_training_cells_is_refused(
    tiny_recipe: Recipe, cells: LabelledCells, split: Split
) -> None:
    without = replace(split, train=split.train[cells.labels[split.train] != 1])
    with pytest.raises(DataSetError, match="No training image of HSIL"):
        train(tiny_recipe, cells, without, device=CPU)


def test_a_loss_that_is_no_number_ends_the_training(
    tiny_recipe: Recipe, cells: LabelledCells, split: Split
) -> None:
    wild = replace(tiny_recipe, epochs=1, learning_rate=1e30, clip_norm=None)
    with pytest.raises(RunAbortedError, match="training went astray"):
        train(wild, cells, split, device=CPU)


def test_the_rate_warms_up_and_falls_to_zero(tiny_recipe: Recipe) -> None:
    recipe = replace(tiny_recipe, warmup=0.2)
    assert 0 < rate_factor(recipe, 0.0) < 0.01
    assert rate_factor(recipe, 0.1) == pytest.approx(0.5)
    assert rate_factor(recipe, 0.2) == pytest.approx(1.0)
    assert rate_factor(recipe, 0.6) == pytest.approx(0.5)
    assert rate_factor(recipe, 1.0) == pytest.approx(0.0)
    constant = replace(recipe, schedule=Schedule.CONSTANT)
    assert rate_factor(constant, 0.9) == 1.0


def test_an_epoch_is_one_line(tiny_recipe: Recipe, cells: LabelledCells, split: Split) -> None:
    epoch = train(replace(tiny_recipe, epochs=1), cells, split, device=CPU).best
    line = str(epoch)
    assert line.startswith("epoch 1/1: loss ")
    assert line.endswith("images/s, best so far")
    assert "\n" not in line
