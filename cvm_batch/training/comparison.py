"""The study of Table 3: one trial for each model and seed, each a file that is there or not.

    OUT/trials/<model>-seed<k>-<fingerprint>.json    figures, or why it failed

So an interrupted study goes on, and trials may run anywhere that sees OUT.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import traceback
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import UsageError
from cvm_batch.model.comparison.registry import COMPARED
from cvm_batch.model.engine import default_device
from cvm_batch.model.network import parameter_count, tile_gflop
from cvm_batch.training.datasets import LabelledCells, load_cells
from cvm_batch.training.evaluation import evaluate_cells
from cvm_batch.training.images import load_images
from cvm_batch.training.loop import train
from cvm_batch.training.networks import OURS, with_network
from cvm_batch.training.paired import Answers
from cvm_batch.training.planning import check_as_planned, plan_digest
from cvm_batch.training.recipe import Recipe
from cvm_batch.training.splits import Split, grouped_folds
from cvm_batch.training.stepping import probabilities

#: What `--models all` means, in the order of Table 3.
ALL = (*COMPARED, OURS)
_TIMED_IMAGES = 64
#: A file's name has room for 255 bytes, and a model changed in many ways has a long one.
_MOST_OF_A_NAME = 150


class Fold(NamedTuple):
    """One of a cross-validation's, counted from 0."""

    number: int
    of: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One model trained once. Pickles."""

    model: str
    """The words of `networks`: ``resnet18``, ``cvm-cervix@hidden=560``."""
    recipe: Recipe
    data: tuple[Path, ...]
    data_digest: str
    """Of the cells and their split: `plan_digest`."""
    folder: Path
    fold: Fold | None = None
    """Of a cross-validation; None: the recipe's own split."""

    @property
    def path(self) -> Path:
        name = self.model.replace("/", "_")
        if len(name) > _MOST_OF_A_NAME:
            digest = hashlib.sha256(name.encode()).hexdigest()[:8]
            name = f"{name[:_MOST_OF_A_NAME]}-{digest}"
        identity = f"{self.recipe.fingerprint}-{self.data_digest[:8]}"
        fold = f"-fold{self.fold.number}of{self.fold.of}" if self.fold else ""
        return self.folder / "trials" / f"{name}-seed{self.recipe.seed}{fold}-{identity}.json"

    def split_of(self, cells: LabelledCells) -> Split:
        """Raises DataSetError."""
        return _split_of(self.recipe, cells, self.fold)

    @property
    def named(self) -> dict[str, Any]:
        """What its file says of it, whatever it came to."""
        recipe = self.recipe
        of = {"model": self.model, "seed": recipe.seed, "epochs": recipe.epochs}
        return of | ({"fold": self.fold} if self.fold else {})

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
    settings: Sequence[str] = (),
    *,
    folds: int | None = None,
) -> list[Trial]:
    """All of a study, by model and then by seed; ``settings`` change the recipe for all.

    With ``folds``, each is trained so many times, and every cell is a test cell once. Raises
    UsageError, DataSetError.
    """
    recipes = {model: with_network(model, recipe, settings) for model in models}
    if seeded := [model for model in models if "@seed=" in model]:
        raise UsageError(f"{seeded[0]!r}: a study has the same seeds for all models; see --seeds.")
    if folds and any(recipe.splits_otherwise(changed) for changed in recipes.values()):
        raise UsageError("--folds is a split of its own: leave split and shares as they are.")
    loaded = load_cells(*data)
    return [
        Trial(
            model=model,
            recipe=replace(changed, seed=seed),
            data=tuple(path.absolute() for path in data),
            data_digest=digest,
            folder=folder.absolute(),
            fold=fold,
        )
        for model, changed in recipes.items()
        for cells in (loaded.regrouped(changed.classes),)
        for fold in ([Fold(number, folds) for number in range(folds)] if folds else [None])
        for digest in (plan_digest(cells, _split_of(changed, cells, fold)),)
        for seed in seeds
    ]


def _split_of(recipe: Recipe, cells: LabelledCells, fold: Fold | None) -> Split:
    if fold is None:
        return recipe.split_of(cells)
    folds = grouped_folds(cells.labels, cells.groups, folds=fold.of, seed=recipe.split_seed)
    return folds[fold.number]


def run(
    trial: Trial,
    *,
    threads: int | None = None,
    beside: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train and judge one model; write what came out, also where it failed, and return it.

    ``threads`` are this trial's share of the CPUs, by default all that the process may use;
    ``beside`` is how many other trials may run at the same time, for whoever reads its speed.
    """
    threads = usable_cpus() if threads is None else threads
    torch.set_num_threads(threads)
    try:
        value = _measured(trial, say) | {"timed_on": _timed_on(threads, beside)}
    # A network that does not take the input, memory that does not suffice, a layer's own bug:
    # the study goes on, and its table says so.
    except Exception as error:
        traceback.print_exc()
        return failed(trial, error)
    return _leave(trial, value)


def failed(trial: Trial, error: Exception) -> dict[str, Any]:
    """Write that the trial failed and why, and return it; what came to its end stays."""
    found = trial.found()
    if found is not None and "error" not in found:
        return found
    first = next(iter(str(error).splitlines()), "")
    return _leave(trial, {"error": ": ".join(filter(None, (type(error).__name__, first)))})


def _leave(trial: Trial, value: dict[str, Any]) -> dict[str, Any]:
    value = trial.named | value
    trial.path.parent.mkdir(parents=True, exist_ok=True)
    # Another process may be at the same trial.
    building = trial.path.with_suffix(f".{os.getpid()}.tmp")
    building.write_text(json.dumps(value))
    building.replace(trial.path)
    return value


def _measured(trial: Trial, say: Callable[[str], None]) -> dict[str, Any]:
    recipe = trial.recipe
    cells = load_cells(*trial.data).regrouped(recipe.classes)
    split = trial.split_of(cells)
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
        "answers": Answers(
            names=tuple(cells.images[position].name for position in split.test),
            groups=judged.groups,
            labels=judged.labels,
            predicted=judged.predicted,
        ).to_json(),
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


def _timed_on(threads: int, beside: int) -> str:
    device = default_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} CPU threads"
    return f"{name}, beside {beside} other trials" if beside else name
