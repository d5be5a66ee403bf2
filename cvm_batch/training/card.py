"""The model card: what a bundle is, what it does, and what it is not for."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cvm_batch.model.architecture import Fusion
from cvm_batch.model.bundle import BundleSpec
from cvm_batch.training.datasets.labelled import BY_FILE
from cvm_batch.training.metrics import Metrics
from cvm_batch.training.splits import SplitKind

_CARD = """\
# {spec.name}

{purpose}

## What it is

{network}, for single-cell images stretched to {spec.preprocessing.input_px} x
{spec.preprocessing.input_px} px. Classes, in the order of its outputs: {classes}. Weights are
stored in {spec.precision}. The scale of the training images is {scale}.

{groups}

## Figures on held-back cells

Measured on {side[cells]} test cells from {side[groups]} groups (a group is one
{data[grouped_by]}), {apart}, with the weights as stored, run in fp32.

Accuracy {accuracy} %; macro precision {macro_precision} %, recall {macro_recall} %,
F1 {macro_f1} %. Accuracy is flattered by the commonest class: read the classes one by one.

{figures}

Cells by their true class (rows) and what they were taken for (columns):

{confusion}

{abnormal}

## Data

{source}

SHA-256 over names, contents and labels: `{data[digest]}`.

Cells (and groups) on each side of the split, which is {split_by}, with seed {split[seed]}:

{sides}

## How it was trained

{first_weights} with recipe `{recipe[name]}`: {recipe[epochs]} epochs of batches of
{recipe[batch_size]}, AdamW with learning rate {recipe[learning_rate]}
({recipe[schedule]}) and weight decay {recipe[weight_decay]}, class weighting
{recipe[class_weighting]}{balanced}, augmentation {augmentation}, label smoothing
{recipe[label_smoothing]}, seed {recipe[seed]}; {average}. Of all epochs, number
{training[best_epoch]} had the highest macro F1 on the validation cells, and is this one;
that figure, {validation_f1} %, is flattered by the
choice. cvm-batch {versions[cvm_batch]}, torch {versions[torch]}, timm {versions[timm]}, in
{training[precision]} on {training[device]}. `bundle.json` holds the whole recipe and all
validation figures.

## Limits

- Where a class has few test cells, from two or three groups, its figures are rough: of ten
  cells, each is worth ten points. Another split gives other figures.
- It knows the stain, focus and smears of its training data only. Other laboratories,
  scanners, magnifications and preparations were not tried.
- It has no class for what is not among its classes, and what is no cell at all: everything
  becomes one of them.
- It was measured on cells. What its counts say about a whole slide was not measured.
- Its probabilities are not calibrated.
"""
_DEMONSTRATION = (
    "**A demonstration. Not a medical device, and not for diagnosis:** no decision about a person "
    "may rest on it. It shows that the service works, on public images."
)
_OWN = (
    "**Not a medical device, and not for diagnosis:** no decision about a person may rest on it "
    "before it was validated where it is used."
)
_WIDTH = 90
_BALANCED = ", every class drawn as often as every other"
_TORN = "so that cells of one image may lie on both sides, which flatters the figures"


def model_card(spec: BundleSpec, test: Metrics) -> str:
    """The card of a bundle, from its provenance and the figures on its test cells."""
    provenance = spec.provenance
    data, split, recipe = (provenance[key] for key in ("data", "split", "recipe"))
    figures = test.to_json()
    card = _CARD.format(
        spec=spec,
        purpose=_DEMONSTRATION if data["source"] else _OWN,
        recipe=recipe,
        balanced=_BALANCED if recipe.get("balanced_sampling") else "",
        augmentation=_augmentation(recipe["augmentation"]),
        data=data,
        split=split,
        side=split["sides"]["test"],
        training=provenance["training"],
        versions=provenance["versions"],
        classes=", ".join(spec.class_names),
        scale="not recorded" if spec.tile_um is None else f"{spec.tile_um} µm a tile",
        groups=_groups(spec),
        figures=_figures(figures["per_class"]),
        confusion=_confusion(test),
        abnormal=_abnormal(spec, test),
        source=_source(provenance),
        split_by=how_split(provenance),
        sides=_sides(spec.class_names, split["sides"]),
        network=_network(spec),
        apart=_apart(split),
        first_weights=_first_weights(provenance["training"]["first_weights"]),
        average=_average(recipe["ema_decay"]),
        validation_f1=percent(provenance["metrics"]["validation"]["macro_f1"]),
        **{
            name: percent(figures[name])
            for name in ("accuracy", "macro_precision", "macro_recall", "macro_f1")
        },
    )
    return "\n\n".join(map(_filled, card.split("\n\n")))


def how_split(provenance: Mapping[str, Any]) -> str:
    """How the cells were divided into training, validation and test."""
    grouped_by = provenance["data"]["grouped_by"]
    if provenance["split"]["kind"] == SplitKind.PAPER:
        return f"at random class by class, as in the paper, {_TORN}"
    if grouped_by == BY_FILE:
        return f"by file, {_TORN}: of which image a cell is was not recorded"
    return f"by group (one {grouped_by}, all of it on one side)"


def percent(share: float | None) -> str:
    """A share in percent with one decimal; a dash where there is none."""
    return "-" if share is None else f"{100 * share:.1f}"


def _source(provenance: Mapping[str, Any]) -> str:
    source = provenance["data"]["source"]
    if source is None:
        return "Source and licence were not recorded: ask who trained it."
    # Where images may not be passed on, the sentinels are others'.
    others = provenance.get("sentinels")
    return f"{source} Its sentinel tiles are from {others}." if others else str(source)


def _groups(spec: BundleSpec) -> str:
    if not spec.groups:
        return "No groups of classes are defined."
    lines = [f"- `{group}`: {', '.join(members)}" for group, members in spec.groups.items()]
    return "\n".join([f"Groups of classes, `{spec.primary_group}` the primary one:", "", *lines])


def _figures(per_class: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [name, *(percent(row[key]) for key in ("precision", "recall", "f1")), row["support"]]
        for name, row in per_class.items()
    ]
    return _table(["class", "precision, %", "recall, %", "F1, %", "cells"], rows)


def _confusion(test: Metrics) -> str:
    rows = [
        [name, *counts]
        for name, counts in zip(test.class_names, test.confusion.tolist(), strict=True)
    ]
    return _table(["", *test.class_names], rows)


def _abnormal(spec: BundleSpec, test: Metrics) -> str:
    """What screening asks: whether an abnormal cell is found as abnormal of any class."""
    if spec.primary_group is None:
        return "None of its classes is in a primary group."
    found = test.merged(spec.groups[spec.primary_group]).to_json()["per_class"]["group"]
    return (
        f"As one class, `{spec.primary_group}` has precision {percent(found['precision'])} % "
        f"and recall {percent(found['recall'])} % ({found['support']} cells)."
    )


def _sides(class_names: Sequence[str], sides: Mapping[str, Any]) -> str:
    rows = [
        [name]
        + [
            f"{side['per_class'][name]['cells']} ({side['per_class'][name]['groups']})"
            for side in sides.values()
        ]
        for name in class_names
    ]
    total = [f"{side['cells']} ({side['groups']})" for side in sides.values()]
    return _table(["class", *sides], [*rows, ["all", *total]])


def _network(spec: BundleSpec) -> str:
    architecture = spec.architecture
    if isinstance(architecture, Fusion):
        return (
            f"CVM-Cervix (a CNN and a visual transformer, fused by an MLP), made of {architecture}"
        )
    return str(architecture)


def _apart(split: Mapping[str, Any]) -> str:
    """What of the test cells was met before they were classified."""
    if split["kind"] == SplitKind.GROUPED:
        return "of which no cell was in training or chose the epoch"
    seen = split["test_cells_seen"]
    return (
        "none of which was in training or chose the epoch, though cells of the same groups may "
        f"have been, and {seen or 'none'} of them {'is' if seen == 1 else 'are'} pixel by pixel "
        "the same as a cell that was"
    )


def _first_weights(digests: Mapping[str, str]) -> str:
    if not digests:
        return "From random weights"
    files = ", ".join(f"`{part}` {digest[:12]}" for part, digest in digests.items())
    rest = "" if "whole" in digests else "; the rest at random"
    return f"From weights that were trained before (SHA-256: {files}{rest})"


def _augmentation(fields: Mapping[str, Any]) -> str:
    """What is switched on, by the fields' names."""
    on = [name if value is True else f"{name} {value}" for name, value in fields.items() if value]
    return f"({', '.join(on)})" if on else "none"


def _average(decay: float | None) -> str:
    if decay is None:
        return "the last weights of an epoch are judged"
    return f"the running average of the weights (decay {decay}) is judged and kept"


def _filled(block: str) -> str:
    """A paragraph filled anew, now that its words are in it; other blocks as they are."""
    if block.startswith(("#", "|", "-")):
        return block
    return textwrap.fill(block, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    body = [list(map(str, row)) for row in rows]
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), rule, *body])
