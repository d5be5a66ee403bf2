"""Networks by the words of `compare --models` and `train --network`.

cvm-cervix, resnet18, any name of timm's      the network
NAME@FIELD=VALUE                              and a field of the recipe, repeatable
cvm-cervix@hidden=560                         the fusion's width
NAME@augmentation=none                        images as they are, in every epoch
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

import torch

from cvm_batch.errors import UsageError
from cvm_batch.model.architecture import CVM_CERVIX, Architecture, Fusion, SingleNetwork
from cvm_batch.model.comparison.registry import COMPARED
from cvm_batch.training.recipe import Augmentation, Recipe
from cvm_batch.training.recipes import overridden

OURS = "cvm-cervix"
_NO_AUGMENTATION = Augmentation(horizontal_flip=False, vertical_flip=False, quarter_turns=False)
#: Holds the place while a recipe's fields are set: it agrees with every size of the input.
_ANY_SIZE = SingleNetwork(name="resnet18")


def with_network(words: str, recipe: Recipe, settings: Sequence[str] = ()) -> Recipe:
    """``recipe`` with another network, and otherwise as it is but for ``settings`` (as
    `overridden` takes them) and for what follows an @.

    The network is made for the input's size that comes of all this. Raises UsageError.
    """
    name, *changes = words.split("@")
    hidden = [change for change in changes if change.startswith("hidden=")]
    changed = replace(recipe, name=words, architecture=_ANY_SIZE)
    if "augmentation=none" in changes:
        changed = replace(changed, augmentation=_NO_AUGMENTATION)
    own = [change for change in changes if change not in (*hidden, "augmentation=none")]
    changed = overridden(changed, [*settings, *own])
    architecture = _architecture(name, changed.preprocessing.input_px, recipe.architecture)
    for change in hidden:
        width = change.partition("=")[2]
        if not isinstance(architecture, Fusion) or not width.isdigit() or not int(width):
            raise UsageError(f"{words!r}: write {OURS}@hidden=560, say; others have no such width.")
        architecture = replace(architecture, hidden=int(width))
    return replace(changed, architecture=architecture)


def check_builds(recipe: Recipe) -> None:
    """Build the network and show it an image. Raises UsageError where it does not take it."""
    side = recipe.preprocessing.input_px
    try:
        network = recipe.architecture.build(2).eval()
        with torch.inference_mode():
            network(torch.zeros(1, 3, side, side))
    except UsageError:
        raise
    # Whatever a network's own code raises over an argument or a size.
    except Exception as error:
        raise UsageError(
            f"{recipe.architecture} does not take images of {side} px ({error}). Take another "
            "network, or another size with --set preprocessing.input_px=224, say."
        ) from error


def _architecture(name: str, side: int, recipes: Architecture) -> Architecture:
    """The network of that name for images of ``side`` px; the recipe's own where it is ours."""
    if name == OURS:
        # The small one may be compared too.
        ours = recipes if isinstance(recipes, Fusion) else CVM_CERVIX
        if ours.input_px == side:
            return ours
        return replace(ours, vt=replace(ours.vt, args={**ours.vt.args, "img_size": side}))
    _check_name(name)
    network = SingleNetwork(name=name)
    fixed = network.input_px
    return network if fixed in (None, side) else replace(network, args={"img_size": side})


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
        raise UsageError(
            f"{name!r} is no plain name of a network, of letters, digits, _ and dots. What timm "
            "would fetch by hf-hub: or from a path has code and weights of others: name the "
            "network as timm lists it, and give its weights with `train --pretrained`. "
            f"`compare --list` prints {OURS} and those of Table 3."
        )
    if name in COMPARED:
        return
    import timm

    if not timm.is_model(name):
        known = [*COMPARED, OURS, *timm.list_models()]
        near = get_close_matches(name, known, n=3)
        raise UsageError(
            f"There is no network {name!r} among those of Table 3 (`compare --list`) nor in timm "
            f"{timm.__version__}." + (f" Near it: {', '.join(near)}." if near else "")
        )
