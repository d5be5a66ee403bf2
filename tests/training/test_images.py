"""Where a training's images are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.training import images as images_module
from cvm_batch.training.datasets import load_cells
from cvm_batch.training.images import load_images
from cvm_batch.training.loop import train
from cvm_batch.training.recipe import Recipe

GPU = torch.device("cuda", 0)
GB = 10**9


@pytest.mark.parametrize(("size", "home"), [(5 * GB, "cuda"), (5 * GB + 1, "cpu")])
def test_images_take_half_of_the_free_memory_at_most(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, size: int, home: str
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GB, 80 * GB))
    assert images_module._home(size, GPU).type == home
    assert ("stay in the machine's memory" in caplog.text) is (home == "cpu")
    assert images_module._home(10**18, torch.device("cpu")).type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_on_images_that_it_does_not_hold(
    data: Path, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = load_cells(data)
    split = tiny_recipe.split_of(cells)
    held = train(tiny_recipe, cells, split, device=GPU)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 1))
    images = load_images(cells, np.arange(4), Preprocessing(input_px=32), GPU)
    assert images.device.type == "cpu"
    elsewhere = train(tiny_recipe, cells, split, device=GPU)
    assert elsewhere.best.loss == pytest.approx(held.best.loss, abs=1e-2)
