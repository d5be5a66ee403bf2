"""The shipped two-class bundle: what it says of itself, and whose cells it carries."""

from __future__ import annotations

import json

from cvm_batch.model.bundle import CARD_FILE
from cvm_batch.model.network import parameter_count
from cvm_batch.model.registry import find_bundle
from cvm_batch.training.recipes import RECIPES

NAME = "cvm-cervix-mini-herlev2"


def test_it_is_what_its_name_and_card_say() -> None:
    bundle = find_bundle(NAME)
    assert bundle.spec.class_names == ("Abnormal", "Normal")
    assert bundle.spec.groups == {"abnormal": ("Abnormal",)}
    assert bundle.spec.primary_group == "abnormal"
    assert parameter_count(bundle.network()) <= 4_000_000
    assert bundle.weights_bytes <= 8 * 2**20
    recipe = json.loads(json.dumps(RECIPES[NAME].to_json()))
    said = bundle.spec.provenance["recipe"]
    # Recipes have grown fields since.
    assert said == {key: recipe[key] for key in said}
    card = (bundle.path / CARD_FILE).read_text()
    accuracy = bundle.spec.provenance["metrics"]["test"]["accuracy"]
    assert f"Accuracy {100 * accuracy:.1f} %" in card
    # Herlev's images may not be passed on.
    assert "CRIC" in bundle.spec.provenance["sentinels"]
    assert "None of its images is in this bundle" in card
