"""A bundle against labelled cells that it need not have been trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import DataSetError
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.engine import default_device
from cvm_batch.training.datasets import LabelledCells, load_cells
from cvm_batch.training.evaluation import Evaluation, evaluate
from cvm_batch.training.images import load_images


@dataclass(frozen=True)
class Judged:
    cells: LabelledCells
    """Under the bundle's classes."""
    positions: NDArray[np.int64]
    evaluation: Evaluation
    trained_on: bool
    """Whether these are the cells that the bundle was trained on, so that its figures on them say
    nothing of others."""


def judge(bundle: Bundle, data: Sequence[Path], *, flips: bool = False) -> Judged:
    """Classify every cell of the labelled sets in ``data``, in fp32.

    The sets' classes are the bundle's, or those that its recipe maps to them. Raises
    DataSetError where they are neither.
    """
    torch.set_num_threads(usable_cpus())
    names = bundle.spec.class_names
    classes = bundle.spec.provenance.get("recipe", {}).get("classes") or {}
    # A folder of one class alone is as good a question as any.
    cells = load_cells(*data, least_classes=1)
    known = set(names) | {member for members in classes.values() for member in members}
    if unknown := [name for name in cells.class_names if name not in known]:
        raise DataSetError(
            f"{cells.where} has classes that {bundle.spec.name} does not know: "
            f"{', '.join(unknown)}. It knows {', '.join(sorted(known))}. Rename the folders, or "
            "leave these out."
        )
    new_of = {old: new for new, members in classes.items() for old in members}
    labels = np.array(
        [
            names.index(new_of.get(cells.class_names[label], cells.class_names[label]))
            for label in cells.labels
        ],
        dtype=np.int64,
    )
    positions = np.arange(len(cells))
    device = default_device()
    images = load_images(cells, positions, bundle.spec.preprocessing, device)
    evaluation = evaluate(
        bundle.network().to(device),
        images,
        bundle.spec.preprocessing,
        labels=labels,
        class_names=names,
        groups=cells.groups,
        flips=flips,
    )
    return Judged(cells, positions, evaluation, trained_on=_trained_on(bundle, cells, classes))


def _trained_on(bundle: Bundle, cells: LabelledCells, classes: Mapping[str, Sequence[str]]) -> bool:
    try:
        digest = cells.regrouped(classes).digest
    except DataSetError:  # it lacks one of the classes, so it is another set
        return False
    return bool(digest == bundle.spec.provenance.get("data", {}).get("digest"))
