"""From data to a bundle, and the command that does it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cvm_batch.cli.train import train as command
from cvm_batch.errors import BundleError, UsageError
from cvm_batch.model.backends.starting import start_engine
from cvm_batch.model.bundle import CARD_FILE, load_bundle
from cvm_batch.model.precision import Precision
from cvm_batch.training import recipes as recipes_module
from cvm_batch.training.card import percent
from cvm_batch.training.datasets import load_cells
from cvm_batch.training.publish import choose_sentinels
from cvm_batch.training.recipe import Recipe
from cvm_batch.training.run import train_bundle
from tests.training.conftest import write_cells

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def out(
    tmp_path_factory: pytest.TempPathFactory, data: Path, tiny_recipe: Recipe
) -> Iterator[Path]:
    """A bundle trained for two epochs."""
    threads = torch.get_num_threads()
    path = tmp_path_factory.mktemp("trained") / "deep" / "tiny"
    train_bundle((data,), tiny_recipe, path, report=False)
    yield path
    torch.set_num_threads(threads)


def test_the_bundle_loads_and_reproduces_its_sentinels(out: Path) -> None:
    bundle = load_bundle(out)
    assert bundle.spec.class_names == ("ASC-H", "HSIL", "NILM")
    assert bundle.spec.groups["hsil_plus"] == ("HSIL",)
    assert bundle.spec.primary_group == "asc_us_plus"
    assert bundle.spec.precision is Precision.FP16
    engine = start_engine(bundle, device=CPU, precision=Precision.FP32)
    assert engine.sentinel_difference <= 1e-5


def test_provenance_says_all_that_went_in(out: Path, data: Path, tiny_recipe: Recipe) -> None:
    provenance = load_bundle(out).spec.provenance
    assert provenance["recipe"] == json.loads(json.dumps(tiny_recipe.to_json()))
    assert provenance["data"] == {
        "digest": load_cells(data).digest,
        "source": None,
        "cells": 120,
        "groups": 10,
        "grouped_by": "frame",
    }
    assert provenance["split"]["kind"] == "grouped"
    assert provenance["split"]["sides"]["test"] == {
        "cells": 24,
        "groups": 2,
        "per_class": {name: {"cells": 8, "groups": 2} for name in ("ASC-H", "HSIL", "NILM")},
    }
    assert set(provenance["versions"]) == {"cvm_batch", "torch", "timm"}
    assert set(provenance["metrics"]) == {"validation", "test"}
    assert provenance["training"]["best_epoch"] in (1, 2)
    assert provenance["training"]["first_weights"] == {}


def test_the_card_says_what_it_is_not_for_and_gives_the_figures(out: Path) -> None:
    card = (out / CARD_FILE).read_text()
    assert "Not a medical device, and not for diagnosis" in card
    assert "Source and licence were not recorded" in card
    assert "CRIC" not in card
    for name, row in load_bundle(out).spec.provenance["metrics"]["test"]["per_class"].items():
        shares = (percent(row[key]) for key in ("precision", "recall", "f1"))
        assert f"| {name} | {' | '.join(shares)} | {row['support']} |" in card


def test_an_existing_folder_is_refused_before_training(
    tmp_path: Path, data: Path, tiny_recipe: Recipe
) -> None:
    said: list[str] = []
    with pytest.raises(BundleError, match="exists already"):
        train_bundle((data,), tiny_recipe, tmp_path, say=said.append)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot be made"):
        train_bundle((data,), tiny_recipe, tmp_path / "file" / "bundle", say=said.append)
    assert not said


def test_sentinels_take_turns_and_are_of_one_size(data: Path) -> None:
    cells = load_cells(data)
    tiles = choose_sentinels(cells, np.arange(60), 7)
    assert tiles.shape == (7, 40, 40, 3)
    # Each class has a colour of its own: take the class of a tile from its mean.
    means = tiles.mean(axis=(1, 2))
    alike = np.abs(means[:, None] - means[None]).max(axis=2) < 10
    assert alike[0].tolist() == [True, False, False, True, False, False, True]


def test_sentinels_where_each_cell_has_a_size_of_its_own(tmp_path: Path) -> None:
    """As in Herlev and SIPaKMeD: one or two tiles would have to judge every device."""
    for number in range(12):
        tile = Image.new("RGB", (30 + number, 40), (20 * number, 0, 0))
        folder = tmp_path / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        tile.save(folder / f"{number}.png")
    tiles = choose_sentinels(load_cells(tmp_path), np.arange(12), 8)
    assert len(tiles) == 8
    assert len({tile.tobytes() for tile in tiles}) == 8


def test_a_group_of_classes_that_are_not_there_is_refused_before_training(
    data: Path, tmp_path: Path, tiny_recipe: Recipe
) -> None:
    recipe = replace(tiny_recipe, groups={"abnormal": ("HSIL", "Odd")})
    with pytest.raises(UsageError, match=r"names .*Odd, but the classes are"):
        train_bundle((data,), recipe, tmp_path / "bundle")


def test_fewer_sentinels_where_there_are_not_enough_cells(data: Path) -> None:
    assert len(choose_sentinels(load_cells(data), np.array([1, 2, 3]), 16)) == 3


def test_the_command_trains_and_says_so(
    tmp_path: Path, data: Path, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes_module, "RECIPES", {"tiny": tiny_recipe})
    arguments = ["--data", str(data), "--recipe", "tiny", "--out", str(tmp_path / "mine")]
    result = CliRunner().invoke(
        command, [*arguments, "--epochs", "1", "--seed", "3"], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "split grouped, seed 0: 72 train, 24 validation, 24 test" in result.output
    assert "epoch 1/1: loss" in result.output
    assert f"Bundle mine written to {tmp_path / 'mine'}" in result.output
    recipe = load_bundle(tmp_path / "mine").spec.provenance["recipe"]
    assert (recipe["epochs"], recipe["seed"]) == (1, 3)


def test_the_command_knows_its_recipes(tmp_path: Path) -> None:
    arguments = ["--data", str(tmp_path), "--recipe", "no-such", "--out", str(tmp_path / "b")]
    with pytest.raises(UsageError, match="cvm-cervix-mini-cric6"):
        CliRunner().invoke(command, arguments, catch_exceptions=False)


def test_one_seed_gives_one_bundle(tmp_path: Path, tiny_recipe: Recipe) -> None:
    data = write_cells(tmp_path / "data", frames=5)
    digests = {
        train_bundle((data,), tiny_recipe, tmp_path / folder / "tiny", report=False).bundle.digest
        for folder in ("one", "two")
    }
    assert len(digests) == 1
