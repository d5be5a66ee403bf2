"""The named recipes: the paper's, and our own beside them.

What the paper leaves open is decided in docs/decisions/0023: weight decay and a constant
rate, normalisation, the hidden width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

from cvm_batch.errors import UsageError
from cvm_batch.model.architecture import CVM_CERVIX, CVM_CERVIX_MINI, Backbone, Fusion
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.training.recipe import Augmentation, ClassWeighting, Recipe, Schedule
from cvm_batch.training.splits import SplitKind

#: Herlev's seven folders as the paper's two classes (section 4.7.3).
HERLEV_CLASSES: Mapping[str, tuple[str, ...]] = {
    "Abnormal": (
        "carcinoma_in_situ",
        "light_dysplastic",
        "moderate_dysplastic",
        "severe_dysplastic",
    ),
    "Normal": ("normal_columnar", "normal_intermediate", "normal_superficiel"),
}
_HERLEV_GROUPS = {"abnormal": ("Abnormal",)}

_NO_TURNS = Augmentation(vertical_flip=False, quarter_turns=False)
#: Section 4.2: AdamW at 2e-4, batches of 16, 100 epochs, a horizontal flip.
_PAPER = Recipe(
    name="paper",
    architecture=CVM_CERVIX,
    epochs=100,
    batch_size=16,
    learning_rate=2e-4,
    augmentation=_NO_TURNS,
    split=SplitKind.PAPER,
)
_PAPER_FOURFOLD = replace(_PAPER, name="paper-4x", augmentation=replace(_NO_TURNS, fourfold=True))

#: What public images of a few thousand cells bear without pretrained weights.
_OWN = Recipe(
    name="own",
    architecture=CVM_CERVIX,
    epochs=60,
    batch_size=64,
    learning_rate=5e-4,
    weight_decay=0.05,
    warmup=0.1,
    schedule=Schedule.COSINE,
    clip_norm=1.0,
    augmentation=Augmentation(rotate=True, zoom=0.15, shift_px=8, jitter=0.15),
    label_smoothing=0.05,
    ema_decay=0.998,
)
_MINI = replace(
    _OWN,
    architecture=CVM_CERVIX_MINI,
    preprocessing=Preprocessing(input_px=96),
    learning_rate=1e-3,
    augmentation=Augmentation(rotate=True, zoom=0.15, shift_px=6, jitter=0.15),
)

_ALL = (
    replace(_PAPER, name="paper-combined11"),
    replace(_PAPER_FOURFOLD, name="paper-combined11-4x"),
    replace(_PAPER_FOURFOLD, name="paper-herlev2", classes=HERLEV_CLASSES, groups=_HERLEV_GROUPS),
    replace(_PAPER, name="paper-pbc8"),
    replace(_PAPER, name="paper-cric6", split=SplitKind.GROUPED),
    replace(_OWN, name="cvm-cervix-combined11"),
    replace(
        _OWN,
        name="cvm-cervix-cric6",
        class_weighting=ClassWeighting.INVERSE_SQRT,
        epochs=40,
    ),
    replace(
        _OWN,
        name="cvm-cervix-herlev2",
        classes=HERLEV_CLASSES,
        groups=_HERLEV_GROUPS,
        split=SplitKind.PAPER,
        balanced_sampling=True,
        epochs=200,
    ),
    replace(_OWN, name="cvm-cervix-pbc8", split=SplitKind.PAPER),
    # Six classes of CRIC, for 100 px crops, in half an hour on two CPU cores.
    Recipe(
        name="cvm-cervix-mini-cric6",
        architecture=CVM_CERVIX_MINI,
        preprocessing=Preprocessing(input_px=96),
        epochs=30,
        batch_size=32,
        learning_rate=6e-4,
        weight_decay=0.05,
        warmup=0.1,
        schedule=Schedule.COSINE,
        clip_norm=1.0,
        augmentation=Augmentation(shift_px=6, jitter=0.15),
        class_weighting=ClassWeighting.INVERSE_SQRT,
        label_smoothing=0.05,
        ema_decay=0.995,
    ),
    # In three quarters of an hour on two CPU cores.
    replace(_MINI, name="cvm-cervix-mini-pbc8", split=SplitKind.PAPER, epochs=12, batch_size=32),
    # To try the machinery on a laptop in a minute; its figures say nothing.
    Recipe(
        name="smoke",
        architecture=Fusion(
            cnn=Backbone(name="test_resnet"),
            vt=Backbone(
                name="deit_tiny_patch16_224",
                args={
                    "img_size": 32,
                    "patch_size": 16,
                    "embed_dim": 32,
                    "depth": 1,
                    "num_heads": 2,
                },
            ),
            hidden=64,
        ),
        preprocessing=Preprocessing(input_px=32),
        epochs=2,
        batch_size=16,
        learning_rate=2e-3,
        split=SplitKind.PAPER,
    ),
    replace(
        _MINI,
        name="cvm-cervix-mini-herlev2",
        classes=HERLEV_CLASSES,
        groups=_HERLEV_GROUPS,
        split=SplitKind.PAPER,
        balanced_sampling=True,
        epochs=150,
    ),
)

RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _ALL}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises UsageError."""
    if name not in RECIPES:
        raise UsageError(f"No recipe called {name!r}. Known: {', '.join(sorted(RECIPES))}.")
    return RECIPES[name]


def overridden(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """``recipe`` with fields changed by ``FIELD=VALUE`` lines, as ``epochs=3``,
    ``augmentation.jitter=0.2``, ``preprocessing.input_px=96``, ``groups.abnormal=HSIL,SCC`` (a
    group of classes, the first one given the primary) or ``classes.Abnormal=HSIL,SCC`` (a class
    of the bundle, and which of the data's it takes in); nothing behind the = takes one out.

    Raises UsageError for an unknown field, a value of the wrong kind, or a contradiction.
    """
    parts: dict[str, Any] = {"": recipe}
    changes: dict[str, dict[str, Any]] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        owner, _, name = path.strip().rpartition(".")
        if equals and owner in _MAPPINGS and name:
            members = tuple(member.strip() for member in text.split(",") if member.strip())
            changes.setdefault("", {}).setdefault(owner, {})[name] = members
            continue
        if not equals or owner not in ("", *_NESTED) or name not in _plain_fields(recipe, owner):
            raise UsageError(
                f"{setting!r} sets no field of a recipe. Write FIELD=VALUE, with one of: "
                + ", ".join(_every_field(recipe))
            )
        parts.setdefault(owner, getattr(recipe, owner) if owner else recipe)
        kind = _plain_fields(recipe, owner)[name]
        changes.setdefault(owner, {})[name] = _value(setting, kind, text.strip())
    plain = changes.setdefault("", {})
    for mapping in _MAPPINGS & plain.keys():
        # What is given comes first, in the order given: the first group is the primary one.
        merged = {**plain[mapping], **getattr(recipe, mapping), **plain[mapping]}
        plain[mapping] = {name: members for name, members in merged.items() if members}
    try:
        nested = {
            owner: replace(parts[owner], **given) for owner, given in changes.items() if owner
        }
        return replace(recipe, **plain, **nested)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"This recipe contradicts itself: {error}.") from error


_NESTED = ("augmentation", "preprocessing")
#: Names, each with the classes that it takes in.
_MAPPINGS = {"groups", "classes"}


def _plain_fields(recipe: Recipe, owner: str) -> dict[str, Any]:
    """Fields that one value on a command line can set, and their types."""
    holder = getattr(recipe, owner) if owner else recipe
    hints = get_type_hints(type(holder))
    return {
        item.name: hints[item.name]
        for item in fields(holder)
        if item.name != "name" and _kinds(hints[item.name]) <= _PLAIN
    }


_PLAIN = {"bool", "int", "float", "str", "enum", "NoneType"}


def _kinds(hint: Any) -> set[str]:
    return {
        "enum" if isinstance(kind, type) and issubclass(kind, Enum) else str(kind.__name__)
        for kind in (get_args(hint) or (hint,))
    }


def _every_field(recipe: Recipe) -> list[str]:
    return [
        f"{owner}.{name}" if owner else name
        for owner in ("", *_NESTED)
        for name in _plain_fields(recipe, owner)
    ] + [f"{mapping}.NAME" for mapping in sorted(_MAPPINGS)]


def _value(setting: str, hint: Any, text: str) -> Any:
    if get_origin(hint) is tuple:
        kinds, parts = get_args(hint), text.strip("()[]").split(",")
        if len(parts) != len(kinds):
            raise UsageError(
                f"{setting!r}: {text!r} is not {len(kinds)} values. Write them with commas, as "
                f"{setting.partition('=')[0].strip()}={','.join(['0.5'] * len(kinds))}."
            )
        return tuple(
            _value(setting, kind, part.strip()) for kind, part in zip(kinds, parts, strict=True)
        )
    kinds = get_args(hint) or (hint,)
    if text.lower() == "none" and type(None) in kinds:
        return None
    (kind,) = (kind for kind in kinds if kind is not type(None))
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError, OverflowError) as error:
        wants = f"one of {', '.join(kind)}" if issubclass(kind, Enum) else f"a {kind.__name__}"
        raise UsageError(f"{setting!r}: {text!r} is not {wants}.") from error
