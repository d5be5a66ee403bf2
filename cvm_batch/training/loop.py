"""The training loop: one process, one device.

Shapes: n images, c classes, s input side in pixels.

A training is deterministic by seed on one CPU machine with one number of threads. On a
GPU, cuDNN's choice of kernels may move the last digits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from cvm_batch.errors import DataSetError, RunAbortedError
from cvm_batch.model.engine import default_device
from cvm_batch.model.network import CvmCervix
from cvm_batch.model.precision import cpu_prefers_bf16
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.training.augment import augment
from cvm_batch.training.data import LabelledCells, read_tile
from cvm_batch.training.metrics import Metrics, measure
from cvm_batch.training.recipe import ClassWeighting, Recipe, Schedule
from cvm_batch.training.splits import Split

_EVALUATION_BATCH = 128
_Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch came to."""

    number: int
    """From 1."""
    epochs: int
    loss: float
    """Mean over the epoch's batches, as weighted and smoothed."""
    images_per_second: float
    """In training, without the validation after it."""
    validation: Metrics
    best: bool
    """True where no earlier epoch had a higher macro F1 on the validation images."""

    def __str__(self) -> str:
        return (
            f"epoch {self.number}/{self.epochs}: loss {self.loss:.4f}, "
            f"validation macro F1 {self.validation.macro_f1:.4f}, "
            f"accuracy {self.validation.accuracy:.4f}, "
            f"{self.images_per_second:.0f} images/s{', best so far' if self.best else ''}"
        )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The network of the best epoch."""

    network: CvmCervix
    """In fp32 on the CPU, in evaluation mode."""
    best: Epoch
    device: str
    precision: str
    """Of the arithmetic in training: ``bf16`` under autocast, or ``fp32``."""


def train(
    recipe: Recipe,
    cells: LabelledCells,
    split: Split,
    *,
    device: torch.device | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Trained:
    """Train on ``split.train`` and keep the epoch that is best on ``split.validation``.

    Raises DataSetError for images that do not decode or a class without training images,
    RunAbortedError where the loss is no number.
    """
    device = device or default_device()
    best: tuple[Epoch, CvmCervix] | None = None
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        loop = _Loop(recipe, cells, split, device)
        for epoch in loop.epochs():
            if epoch.best:
                best = epoch, deepcopy(loop.kept)
            on_epoch(epoch)
    assert best is not None
    epoch, network = best
    return Trained(
        network=network.cpu().to(memory_format=torch.contiguous_format).eval(),
        best=epoch,
        device=str(device),
        precision="bf16" if loop.autocasts else "fp32",
    )


def load_images(
    cells: LabelledCells,
    positions: NDArray[np.int64],
    preprocessing: Preprocessing,
    device: torch.device,
) -> Tensor:
    """Images uint8 [n, 3, s, s] of the cells at ``positions``, resized as the engine does.

    They stay in memory, 27 kB each at 96 px. Raises DataSetError.
    """
    return preprocessing.resize([read_tile(cells.paths[i]) for i in positions], device)


@torch.inference_mode()
def predict(network: CvmCervix, images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Class positions int64 [n] of resized images uint8 [n, 3, s, s]."""
    return torch.cat(
        [
            network(preprocessing.normalise(batch, torch.float32)).argmax(dim=1)
            for batch in torch.split(images, _EVALUATION_BATCH)
        ]
    )


class _Loop:
    """The network in training, with all that changes from step to step."""

    def __init__(
        self, recipe: Recipe, cells: LabelledCells, split: Split, device: torch.device
    ) -> None:
        self._recipe = recipe
        self._cells = cells
        self._split = split
        self._device = device
        self._class_weights = _class_weights(recipe, cells, split).to(device)
        self._labels = torch.from_numpy(cells.labels[split.train])
        self._images, self._validation_images = (
            load_images(cells, side, recipe.preprocessing, device)
            for side in (split.train, split.validation)
        )
        self.autocasts = device.type == "cuda" or cpu_prefers_bf16()
        network = CvmCervix(recipe.architecture, len(cells.class_names)).to(device)
        self._network = network.to(memory_format=torch.channels_last)
        self._averaged = _averaged(self._network, recipe.ema_decay)
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self._step = 0

    @property
    def kept(self) -> CvmCervix:
        """The network that is judged and kept: the average, where there is one."""
        network = self._averaged.module if self._averaged else self._network
        assert isinstance(network, CvmCervix)
        return network

    def epochs(self) -> Iterator[Epoch]:
        """Train on as many epochs as the recipe says, each judged when it is over."""
        highest = -math.inf
        for number in range(1, self._recipe.epochs + 1):
            started = time.perf_counter()
            loss = self._run_epoch()
            seconds = time.perf_counter() - started
            validation = self._validate()
            yield Epoch(
                number=number,
                epochs=self._recipe.epochs,
                loss=loss,
                images_per_second=len(self._images) / seconds,
                validation=validation,
                best=validation.macro_f1 > highest,
            )
            highest = max(highest, validation.macro_f1)

    def _run_epoch(self) -> float:
        """See each image once, in a new order; return the mean loss of the batches."""
        self._network.train()
        order = torch.randperm(len(self._images), generator=self._generator)
        batches = torch.split(order, self._recipe.batch_size)
        steps = self._recipe.epochs * len(batches)
        total = torch.zeros((), device=self._device)
        for batch in batches:
            total += self._take_step(
                self._images[batch], self._labels[batch].to(self._device), self._step / steps
            )
            self._step += 1
        # Looked at once an epoch: looking at every step would hold a GPU up.
        if not (loss := float(total) / len(batches)) < math.inf:
            raise RunAbortedError(
                f"The loss of recipe {self._recipe.name} is {loss} after {self._step} steps: "
                "training went astray. Take a lower learning rate, or clip the gradient."
            )
        return loss

    def _validate(self) -> Metrics:
        kept = self.kept.eval()
        with self._autocast():
            predicted = predict(kept, self._validation_images, self._recipe.preprocessing)
        labels = self._cells.labels[self._split.validation]
        return measure(labels, predicted.cpu().numpy(), self._cells.class_names)

    def _take_step(self, images: Tensor, labels: Tensor, done: float) -> Tensor:
        """One step on a batch, when ``done`` of all steps are taken; returns its loss."""
        recipe = self._recipe
        images = augment(images, recipe.augmentation, self._generator)
        inputs = recipe.preprocessing.normalise(images, torch.float32)
        with self._autocast():
            logits = self._network(inputs.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(
            logits.float(), labels, self._class_weights, label_smoothing=recipe.label_smoothing
        )
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate_factor(recipe, done)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._network.parameters(), recipe.clip_norm)
        self._optimizer.step()
        if self._averaged:
            self._averaged.update_parameters(self._network)
        return loss.detach()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.autocasts)


def rate_factor(recipe: Recipe, done: float) -> float:
    """The learning rate, as a share of its highest, when ``done`` of the steps are taken."""
    if done < recipe.warmup:
        return min(1.0, max(done, 1e-3) / recipe.warmup)
    if recipe.schedule is Schedule.CONSTANT:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - recipe.warmup) / (1 - recipe.warmup)))


def _averaged(network: CvmCervix, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None

    def update(averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        # Early on the average is kept short, or it would drag the first weights along.
        keep = min(decay, (1 + int(count)) / (10 + int(count)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - keep)
        else:
            torch._foreach_copy_(averaged, current)

    # Buffers too: the statistics of batch normalisation must fit the averaged weights.
    return AveragedModel(network, multi_avg_fn=torch.no_grad()(update), use_buffers=True)


def _class_weights(recipe: Recipe, cells: LabelledCells, split: Split) -> Tensor:
    """Weights float32 [c], whose mean over the training images is 1. Raises DataSetError."""
    counts = np.bincount(cells.labels[split.train], minlength=len(cells.class_names))
    if absent := [cells.class_names[place] for place in np.flatnonzero(counts == 0)]:
        raise DataSetError(
            f"No training image of {', '.join(absent)} in {cells.root}: the few groups with "
            "these classes went to validation and test. Give more, or another split seed."
        )
    power = {
        ClassWeighting.NONE: 0.0,
        ClassWeighting.INVERSE_SQRT: -0.5,
        ClassWeighting.INVERSE: -1.0,
    }[recipe.class_weighting]
    weights = counts.astype(np.float64) ** power
    return torch.from_numpy(weights * counts.sum() / (weights * counts).sum()).float()
