"""The card says of each training what was so."""

from __future__ import annotations

import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cvm_batch.model.architecture import SingleNetwork
from cvm_batch.model.bundle import CARD_FILE, WEIGHTS_FILE, load_bundle
from cvm_batch.model.precision import exact_fp32
from cvm_batch.training.pretrained import Pretrained
from cvm_batch.training.recipe import Recipe
from cvm_batch.training.run import train_bundle
from cvm_batch.training.splits import SplitKind
from tests.training.conftest import write_cells


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 cells; every one of NILM is the same image in another format under another name."""
    root = write_cells(tmp_path_factory.mktemp("small"), frames=5)
    (root / "cells.csv").unlink()
    first = np.array(Image.open(root / "NILM" / "0000.jpg"))
    shutil.rmtree(root / "NILM")
    (root / "NILM").mkdir()
    for number in range(20):
        Image.fromarray(first).save(root / "NILM" / f"{number}.{'png' if number % 2 else 'bmp'}")
    return root


def words(out: Path) -> str:
    return " ".join((out / CARD_FILE).read_text().split())


def test_pretrained_weights_images_on_both_sides_and_the_network_are_told(
    tmp_path: Path, small: Path, tiny_recipe: Recipe
) -> None:
    recipe = replace(
        tiny_recipe,
        epochs=1,
        split=SplitKind.PAPER,
        architecture=SingleNetwork(name="test_resnet"),
        tile_um=25.0,
    )
    first, second = tmp_path / "first", tmp_path / "second"
    train_bundle((small,), recipe, first, report=False)
    assert "From random weights with recipe `tiny`" in words(first)
    # The four test cells of NILM are one image, which is in training too.
    assert "and 4 of them are pixel by pixel the same as a cell that was" in words(first)
    assert "of which no cell" not in words(first)
    assert "test_resnet, for single-cell images" in words(first)
    assert "CVM-Cervix (a CNN" not in words(first)

    weights = first / WEIGHTS_FILE
    train_bundle((small,), recipe, second, pretrained=Pretrained(whole=weights), report=False)
    digest = sha256(weights.read_bytes()).hexdigest()
    provenance = load_bundle(second).spec.provenance
    assert provenance["training"]["first_weights"] == {"whole": digest}
    assert provenance["split"]["test_cells_seen"] == 4
    assert "From random weights" not in words(second)
    assert f"(SHA-256: `whole` {digest[:12]})" in words(second)

    assert load_bundle(second).spec.tile_um == 25.0
    assert "The scale of the training images is 25.0 µm a tile." in words(second)


def test_fp32_is_fp32_within_and_as_before_after() -> None:
    torch.backends.cudnn.allow_tf32 = True
    with exact_fp32():
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
