from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cvm_batch.errors import UsageError
from cvm_batch.model.network import CvmCervix, parameter_count
from cvm_batch.model.precision import Precision
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.training.recipe import Augmentation, Recipe
from cvm_batch.training.recipes import RECIPES, find_recipe


def test_recipes_go_by_their_names() -> None:
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    assert find_recipe("cvm-cervix-mini-cric6") is RECIPES["cvm-cervix-mini-cric6"]


def test_an_unknown_recipe_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'mini'.*cvm-cervix-mini-cric6"):
        find_recipe("mini")


def test_the_mini_recipe_fits_its_network() -> None:
    recipe = RECIPES["cvm-cervix-mini-cric6"]
    assert recipe.preprocessing.input_px == 96
    assert parameter_count(CvmCervix(recipe.architecture, 6)) <= 4_000_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"warmup": 1.0}, "warmup"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"shares": (0.5, 0.2, 0.2)}, "add up to 1"),
        ({"shares": (1.0, 0.0, 0.0)}, "above zero"),
        ({"stored": Precision.BF16}, "fp32 or fp16"),
        ({"preprocessing": Preprocessing(input_px=224)}, "network takes 32 px"),
    ],
)
def test_contradictions_are_refused(
    tiny_recipe: Recipe, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(tiny_recipe, **change)


@pytest.mark.parametrize("change", [{"shift_px": -1}, {"jitter": 1.0}])
def test_senseless_augmentation_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="shift_px"):
        Augmentation(**change)


def test_json_holds_every_field(tiny_recipe: Recipe) -> None:
    value = json.loads(json.dumps(tiny_recipe.to_json()))
    assert value["epochs"] == 2
    assert value["schedule"] == "cosine"
    assert value["augmentation"]["quarter_turns"] is True
    assert value["architecture"] == tiny_recipe.architecture.to_json()
    assert set(value) == set(Recipe.__dataclass_fields__)
