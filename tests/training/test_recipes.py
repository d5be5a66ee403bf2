from __future__ import annotations

import pytest

from cvm_batch.errors import UsageError
from cvm_batch.model.architecture import CVM_CERVIX
from cvm_batch.training.recipe import Augmentation, Schedule
from cvm_batch.training.recipes import HERLEV_CLASSES, RECIPES, find_recipe, overridden
from cvm_batch.training.splits import SplitKind


def test_the_papers_recipe_is_what_the_paper_says() -> None:
    recipe = find_recipe("paper-combined11")
    assert recipe.architecture == CVM_CERVIX
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (100, 16, 2e-4)
    assert recipe.schedule is Schedule.CONSTANT
    assert recipe.split is SplitKind.PAPER
    assert recipe.augmentation == Augmentation(vertical_flip=False, quarter_turns=False)
    assert find_recipe("paper-herlev2").augmentation.fourfold
    assert set(find_recipe("paper-herlev2").classes) == {"Abnormal", "Normal"}
    assert sum(map(len, HERLEV_CLASSES.values())) == 7


def test_fingerprints_tell_recipes_apart_and_not_their_names() -> None:
    fingerprints = {recipe.fingerprint for recipe in RECIPES.values()}
    same = find_recipe("paper-combined11").fingerprint == find_recipe("paper-pbc8").fingerprint
    assert same  # they differ in nothing but the data
    assert len(fingerprints) == len(RECIPES) - 1
    changed = overridden(find_recipe("paper-pbc8"), ["seed=1"])
    assert changed.fingerprint != find_recipe("paper-pbc8").fingerprint


def test_fields_are_set_by_name() -> None:
    recipe = overridden(
        find_recipe("cvm-cervix-pbc8"),
        [
            "epochs=3",
            "learning_rate = 1e-4",
            "schedule=constant",
            "clip_norm=none",
            "augmentation.rotate=false",
            "augmentation.jitter=0.3",
            "split=grouped",
            "shares=0.8, 0.1, 0.1",
            "preprocessing.mean=0.4,0.5,0.6",
            "tile_um=25.5",
        ],
    )
    assert (recipe.epochs, recipe.learning_rate, recipe.clip_norm) == (3, 1e-4, None)
    assert recipe.schedule is Schedule.CONSTANT
    assert recipe.split is SplitKind.GROUPED
    assert recipe.augmentation.jitter == 0.3
    assert recipe.shares == (0.8, 0.1, 0.1)
    assert recipe.preprocessing.mean == (0.4, 0.5, 0.6)
    assert recipe.tile_um == 25.5
    assert not recipe.augmentation.rotate
    assert recipe.augmentation.zoom == find_recipe("cvm-cervix-pbc8").augmentation.zoom


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs", "sets no field"),
        ("epoch=3", "sets no field.*epochs"),
        ("name=mine", "sets no field"),
        ("architecture=x", "sets no field"),
        ("epochs=three", "'three' is not a int"),
        ("schedule=linear", "not one of constant, cosine"),
        ("augmentation.rotate=maybe", "not a bool"),
        ("shares=0.6", "'0.6' is not 3 values. Write them with commas, as shares=0.5,0.5,0.5"),
        ("shares=0.6,0.2,many", "'many' is not a float"),
        ("shares=0.6,0.2,0.9", "contradicts itself: shares"),
        ("preprocessing.mean=0.5", "is not 3 values"),
        ("tile_um=-3", "contradicts itself: tile_um"),
        ("tile_um=nan", "contradicts itself: tile_um"),
        ("epochs=0", "contradicts itself: epochs"),
        ("accumulate=3", "contradicts itself: batch_size must be a multiple"),
        ("preprocessing.input_px=96", "contradicts itself: the network takes 224 px"),
        ("groups=HSIL", "sets no field.*groups.NAME"),
        ("groups.=HSIL", "sets no field"),
        ("classes.A=x,x", "contradicts itself: classes: one of the data's classes is taken twice"),
        ("augmentation.quarter_turns=true", "contradicts itself: quarter_turns come with both"),
    ],
)
def test_what_cannot_be_set_is_refused(setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        overridden(find_recipe("paper-pbc8"), [setting])


def test_groups_and_classes_are_named() -> None:
    """So a laboratory says which of its own classes count as abnormal."""
    own = overridden(
        find_recipe("cvm-cervix-pbc8"), ["groups.blasts=ig, erythroblast", "groups.rest=monocyte"]
    )
    assert own.groups == {"blasts": ("ig", "erythroblast"), "rest": ("monocyte",)}
    assert next(iter(own.groups)) == "blasts", "the first is the primary one"
    herlev = find_recipe("cvm-cervix-herlev2")
    changed = overridden(herlev, ["groups.severe=Abnormal", "groups.abnormal="])
    assert changed.groups == {"severe": ("Abnormal",)}
    fewer = overridden(herlev, ["classes.Abnormal=severe_dysplastic"])
    assert fewer.classes["Abnormal"] == ("severe_dysplastic",)
    assert fewer.classes["Normal"] == herlev.classes["Normal"]


def test_two_remedies_for_rare_classes_are_one_too_many() -> None:
    with pytest.raises(UsageError, match="take one"):
        overridden(find_recipe("cvm-cervix-cric6"), ["balanced_sampling=true"])
