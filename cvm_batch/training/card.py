"""The model card: what a bundle is, what it does, and what it is not for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cvm_batch.model.bundle import BundleSpec
from cvm_batch.training.metrics import Metrics

_CARD = """\
# {name}

**A demonstration. Not a medical device, and not for diagnosis:** no decision about a
person may rest on it. It shows that the service works, on public images and from a
training on one machine.

## What it is

{kind}, for single-cell images stretched to {input_px} x {input_px} px. Classes, in the
order of its outputs: {classes}. Weights are stored in {precision}. The scale of the
training images is {scale}.

{groups}

## Figures on held-back cells

Measured on {test_cells} test cells from {test_groups} groups ({grouped_by}) of which no
cell was in training or chose the epoch, with the weights as stored, run in fp32.

Accuracy {accuracy} %; macro precision {macro_precision} %, recall {macro_recall} %,
F1 {macro_f1} %. Accuracy is flattered by the commonest class: read the classes one by one.

{figures}

Cells by their true class (rows) and what they were taken for (columns):

{confusion}
{abnormal}
## Data

{source}
SHA-256 over names, contents and labels: `{digest}`.

Cells (and groups) on each side of the split, which is by group, with seed {split_seed}:

{sides}

## How it was trained

From random weights with recipe `{recipe}`: {epochs} epochs of batches of {batch_size},
AdamW with learning rate {learning_rate} ({schedule}) and weight decay {weight_decay},
class weighting {class_weighting}, label smoothing {label_smoothing}, average of the
weights {ema}, seed {seed}. Of all epochs, number {best_epoch} had the highest macro F1 on
the validation cells, and is this one. cvm-batch {cvm_batch}, torch {torch}, timm {timm},
in {arithmetic} on {device}. `bundle.json` holds the whole recipe and the validation
figures.

## Limits

- Where a class has few test cells, from two or three groups, its figures are rough: of 10
  cells, each is worth 10 points. Another split gives other figures.
- It knows the stain, focus and smears of its training data only. Other laboratories,
  scanners, magnifications and liquid-based preparations were not tried.
- It has no class for glandular cells, inflammation, organisms, or what is no cell at all:
  everything becomes one of its classes.
- It was measured on cells. What its counts say about a whole slide was not measured.
- Its probabilities are not calibrated.
"""


def model_card(spec: BundleSpec, test: Metrics) -> str:
    """The card of a bundle, from its provenance and the figures on its test cells."""
    provenance = spec.provenance
    recipe, data, split = (provenance[key] for key in ("recipe", "data", "split"))
    figures = test.to_json()
    return _CARD.format(
        name=spec.name,
        kind="CVM-Cervix (a CNN and a visual transformer, fused by an MLP)",
        input_px=spec.preprocessing.input_px,
        classes=", ".join(spec.class_names),
        precision=spec.precision,
        scale="not recorded" if spec.tile_um is None else f"{spec.tile_um} µm a tile",
        groups=_groups(spec),
        test_cells=int(test.support.sum()),
        test_groups=split["sides"]["test"]["groups"],
        grouped_by=data["grouped_by"],
        accuracy=percent(figures["accuracy"]),
        macro_precision=percent(figures["macro_precision"]),
        macro_recall=percent(figures["macro_recall"]),
        macro_f1=percent(figures["macro_f1"]),
        figures=_figures(figures["per_class"]),
        confusion=_confusion(test),
        abnormal=_abnormal(spec, test),
        source=data["source"] or "Source and licence were not recorded: ask who trained it.",
        digest=data["digest"],
        split_seed=split["seed"],
        sides=_sides(spec.class_names, split["sides"]),
        recipe=recipe["name"],
        ema="not taken" if recipe["ema_decay"] is None else f"with decay {recipe['ema_decay']}",
        best_epoch=provenance["training"]["best_epoch"],
        device=provenance["training"]["device"],
        arithmetic=provenance["training"]["precision"],
        **{
            key: recipe[key]
            for key in (
                "epochs",
                "batch_size",
                "learning_rate",
                "schedule",
                "weight_decay",
                "class_weighting",
                "label_smoothing",
                "seed",
            )
        },
        **provenance["versions"],
    )


def percent(share: float | None) -> str:
    """A share in percent with one decimal; a dash where there is none."""
    return "-" if share is None else f"{100 * share:.1f}"


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
        return ""
    found = test.merged(spec.groups[spec.primary_group]).to_json()["per_class"]["group"]
    return (
        f"\nAs one class, `{spec.primary_group}` has precision {percent(found['precision'])} % "
        f"and recall {percent(found['recall'])} % ({found['support']} cells).\n"
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


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    body = [list(map(str, row)) for row in rows]
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), rule, *body])
