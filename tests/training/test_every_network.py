"""Every network of Table 3 takes steps by the loop that trains CVM-Cervix, and gets better."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cvm_batch.training.datasets import load_cells
from cvm_batch.training.loop import train
from cvm_batch.training.recipe import Augmentation, Recipe, Schedule
from cvm_batch.training.splits import Split
from tests.model.comparison.smallest import ALL, smallest


@pytest.mark.parametrize("name", ALL)
def test_the_loss_falls_in_a_few_steps(name: str, data: Path, tiny_recipe: Recipe) -> None:
    architecture, side = smallest(name)
    recipe = replace(
        tiny_recipe,
        architecture=architecture,
        preprocessing=replace(tiny_recipe.preprocessing, input_px=side),
        augmentation=Augmentation(horizontal_flip=False, vertical_flip=False, quarter_turns=False),
        schedule=Schedule.CONSTANT,
        warmup=0.0,
        ema_decay=None,
        learning_rate=5e-4,
        epochs=3,  # of two steps
        batch_size=8,
    )
    train_on, choose_on, held_back = np.split(np.arange(22), [16, 19])
    split = Split(seed=0, train=train_on, validation=choose_on, test=held_back)
    trained = train(recipe, load_cells(data), split, device=torch.device("cpu"))
    losses = [epoch.loss for epoch in trained.epochs]
    assert min(losses[1:]) < losses[0]
