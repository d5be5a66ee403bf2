"""The study of Table 3: one trial for each model and seed, each a file that is there or not.

    OUT/trials/<model>-seed<k>-<fingerprint>.json    figures, or why it failed

So an interrupted study goes on, and trials may run anywhere that sees OUT.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import CvmBatchError, UsageError
from cvm_batch.model.architecture import CVM_CERVIX, Architecture, Fusion, SingleNetwork
from cvm_batch.model.comparison.registry import COMPARED
from cvm_batch.model.engine import default_device
from cvm_batch.model.network import parameter_count, tile_gflop
from cvm_batch.training.datasets import load_cells
from cvm_batch.training.evaluation import evaluate_cells
from cvm_batch.training.images import load_images
from cvm_batch.training.loop import train
from cvm_batch.training.planning import check_as_planned, plan_digest
from cvm_batch.training.recipe import Recipe
from cvm_batch.training.recipes import overridden
from cvm_batch.training.stepping import probabilities

OURS = "cvm-cervix"
#: What `--models all` means, in the order of Table 3.
ALL = (*COMPARED, OURS)
_TIMED_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One model trained once. Pickles."""

    model: str
    """A name, and after an @ what is changed: ``cvm-cervix@hidden=560``,
    ``resnet18@augmentation.horizontal_flip=false``."""
    recipe: Recipe
    data: tuple[Path, ...]
    data_digest: str
    """Of the cells and their split: `plan_digest`."""
    folder: Path

    @property
    def path(self) -> Path:
        name = self.model.replace("/", "_")
        identity = f"{self.recipe.fingerprint}-{self.data_digest[:8]}"
        return self.folder / "trials" / f"{name}-seed{self.recipe.seed}-{identity}.json"

    def found(self) -> dict[str, Any] | None:
        """What it came to; None where it has not run to its end. Failed ones run again."""
        if not self.path.is_file():
            return None
        value: dict[str, Any] = json.loads(self.path.read_text())
        return value


def trials(
    models: Sequence[str],
    seeds: Sequence[int],
    recipe: Recipe,
    data: Sequence[Path],
    folder: Path,
) -> list[Trial]:
    """All of a study, by model and then by seed. Raises UsageError, DataSetError."""
    cells = load_cells(*data).regrouped(recipe.classes)
    return [
        Trial(
            model=model,
            recipe=replace(changed, seed=seed),
            data=tuple(path.absolute() for path in data),
            data_digest=digest,
            folder=folder.absolute(),
        )
        for model in models
        for changed in (_recipe_of(model, recipe),)
        for digest in (plan_digest(cells, changed.split_of(cells)),)
        for seed in seeds
    ]


def run(trial: Trial, *, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Train and judge one model; write what came out, also where it failed, and return it."""
    torch.set_num_threads(usable_cpus())
    try:
        value = _measured(trial, say)
    except (CvmBatchError, RuntimeError, ValueError) as error:
        # A network that does not take the input, or memory that does not suffice: the study
        # goes on, and its table says so.
        traceback.print_exc()
        value = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    value |= {"model": trial.model, "seed": trial.recipe.seed, "epochs": trial.recipe.epochs}
    trial.path.parent.mkdir(parents=True, exist_ok=True)
    # Another process may be at the same trial.
    building = trial.path.with_suffix(f".{os.getpid()}.tmp")
    building.write_text(json.dumps(value))
    building.replace(trial.path)
    return value


def _measured(trial: Trial, say: Callable[[str], None]) -> dict[str, Any]:
    recipe = trial.recipe
    cells = load_cells(*trial.data).regrouped(recipe.classes)
    split = recipe.split_of(cells)
    check_as_planned(cells, split, trial.data_digest)
    began = time.perf_counter()
    trained = train(recipe, cells, split, on_epoch=lambda epoch: say(f"{trial.model} {epoch}"))
    seconds = time.perf_counter() - began
    device = default_device()
    network = trained.network.to(device)
    images = load_images(cells, split.test, recipe.preprocessing, device)
    judged, halved = (
        evaluate_cells(one, images, recipe.preprocessing, cells, split.test)
        for one in (network, _halved(network))
    )
    classes, side = len(cells.class_names), recipe.preprocessing.input_px
    return {
        "test": judged.to_json(),
        "fp16": {"accuracy": halved.metrics.accuracy, "macro_f1": halved.metrics.macro_f1},
        "right": (judged.predicted == judged.labels).tolist(),
        "best_epoch": trained.best.number,
        "seconds": round(seconds, 1),
        "parameters": parameter_count(network),
        "gflop": tile_gflop(recipe.architecture, classes, side),
        "tiles_per_second": _speed(network, images, recipe),
        "input_px": side,
    }


def _halved(network: nn.Module) -> nn.Module:
    """The network in fp32, its weights rounded to 16 bits."""
    return deepcopy(network).half().float()


def _speed(network: nn.Module, images: torch.Tensor, recipe: Recipe) -> float:
    """Tiles a second in fp32, eager: for a comparison of models and not of engines."""
    some = images[:_TIMED_IMAGES]
    probabilities(network, some[:8], recipe.preprocessing)
    began = time.perf_counter()
    probabilities(network, some, recipe.preprocessing)
    return round(len(some) / (time.perf_counter() - began), 1)


def _recipe_of(model: str, recipe: Recipe) -> Recipe:
    name, _, change = model.partition("@")
    changed = replace(recipe, name=model, architecture=_architecture(name, recipe))
    if not change:
        return changed
    field, _, value = change.partition("=")
    if field != "hidden":
        return overridden(changed, [change])
    if not isinstance(changed.architecture, Fusion) or not value.isdigit():
        raise UsageError(f"{model!r}: write {OURS}@hidden=560, say; others have no such width.")
    return replace(changed, architecture=replace(changed.architecture, hidden=int(value)))


def _architecture(name: str, recipe: Recipe) -> Architecture:
    """The network of that name, for the recipe's input."""
    side = recipe.preprocessing.input_px
    if name == OURS:
        # The recipe's own, where that is a CVM-Cervix: the small one may be compared too.
        ours = recipe.architecture if isinstance(recipe.architecture, Fusion) else CVM_CERVIX
        if ours.input_px == side:
            return ours
        return replace(ours, vt=replace(ours.vt, args={**ours.vt.args, "img_size": side}))
    network = SingleNetwork(name=name)
    fixed = network.input_px
    return network if fixed in (None, side) else replace(network, args={"img_size": side})
