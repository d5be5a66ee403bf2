"""The shipped bundle for blood cells: what it says of itself, and whether it holds here."""

from __future__ import annotations

import torch

from cvm_batch.model.backends.starting import start_engine
from cvm_batch.model.bundle import CARD_FILE
from cvm_batch.model.network import parameter_count
from cvm_batch.model.precision import Precision
from cvm_batch.model.registry import find_bundle
from cvm_batch.training.recipes import RECIPES

NAME = "cvm-cervix-mini-pbc8"


def test_it_is_what_its_name_and_card_say() -> None:
    bundle = find_bundle(NAME)
    assert bundle.spec.class_names == (
        "basophil",
        "eosinophil",
        "erythroblast",
        "ig",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    )
    assert parameter_count(bundle.network()) <= 4_000_000
    card = (bundle.path / CARD_FILE).read_text()
    test = bundle.spec.provenance["metrics"]["test"]
    assert test["accuracy"] >= 0.97
    assert f"Accuracy {100 * test['accuracy']:.1f} %" in card
    assert "Acevedo" in card
    assert "CC BY 4.0" in card


def test_its_recipe_is_that_of_its_name_in_a_second_round() -> None:
    provenance = find_bundle(NAME).spec.provenance
    said, recipe = dict(provenance["recipe"]), RECIPES[NAME].to_json()
    changed = {key for key in said if said[key] != recipe[key]}
    assert changed <= {"epochs", "learning_rate", "shares", "preprocessing", "architecture"}
    assert (said["epochs"], said["learning_rate"]) == (10, 6e-4)
    assert set(provenance["training"]["first_weights"]) == {"whole"}


def test_this_machine_reproduces_it() -> None:
    engine = start_engine(find_bundle(NAME), device=torch.device("cpu"), precision=Precision.FP32)
    assert engine.sentinel_difference <= Precision.FP32.tolerance
