"""The training loop: the same in one process and in each worker of many.

Shapes: n images, c classes, s input side in pixels.

A training is deterministic by seed on one CPU machine with one number of threads, also
where it was interrupted and resumed. On a GPU, cuDNN's choice of kernels may move the last
digits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cvm_batch.errors import DataSetError, RunAbortedError
from cvm_batch.model.engine import default_device
from cvm_batch.model.precision import exact_fp32
from cvm_batch.training.augment import ATTITUDES, augment, in_attitudes
from cvm_batch.training.checkpoints import Checkpoints
from cvm_batch.training.datasets import LabelledCells
from cvm_batch.training.images import load_images
from cvm_batch.training.metrics import measure
from cvm_batch.training.recipe import ClassWeighting, Recipe, Schedule
from cvm_batch.training.splits import Split
from cvm_batch.training.stepping import RunningAverage, Stepper, probabilities
from cvm_batch.training.workers import ALONE, Workers


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch came to."""

    number: int
    """From 1."""
    epochs: int
    loss: float
    """Mean over the epoch's batches, as weighted and smoothed."""
    learning_rate: float
    """At the epoch's end."""
    images_per_second: float
    """In training, without the validation after it."""
    seconds: float
    """Training and validation."""
    validation_loss: float
    """Cross-entropy, neither weighted nor smoothed."""
    validation_accuracy: float
    validation_macro_f1: float
    best: bool
    """True where no earlier epoch had a higher macro F1 on the validation images."""

    def __str__(self) -> str:
        return (
            f"epoch {self.number}/{self.epochs}: loss {self.loss:.4f}, "
            f"validation macro F1 {self.validation_macro_f1:.4f}, "
            f"accuracy {self.validation_accuracy:.4f}, "
            f"{self.images_per_second:.0f} images/s{', best so far' if self.best else ''}"
        )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The network of the best epoch."""

    network: nn.Module
    """In fp32 on the CPU, in evaluation mode."""
    best: Epoch
    epochs: tuple[Epoch, ...]
    device: str
    """For people: the kind of device, and how many workers."""
    precision: str
    """Of the arithmetic in training: ``bf16`` under autocast, or ``fp32``."""


def train(
    recipe: Recipe,
    cells: LabelledCells,
    split: Split,
    *,
    device: torch.device | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    checkpoints: Checkpoints | None = None,
    workers: Workers = ALONE,
    pretrained: Callable[[nn.Module], None] = lambda network: None,
) -> Trained:
    """Train on ``split.train`` and keep the epoch that is best on ``split.validation``.

    Goes on from the last of ``checkpoints`` and leaves one after each epoch. ``on_epoch``
    hears of every epoch, also of those before an interruption. ``pretrained`` may change the
    first weights. Raises DataSetError for images that do not decode or a class without
    training images, UsageError for batches that do not come out even, RunAbortedError where
    the loss is no number.
    """
    workers.check(recipe)
    device = device or default_device()
    exactly = nullcontext() if recipe.mixed_precision else exact_fp32()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), exactly:
        torch.manual_seed(recipe.seed)
        loop = _Loop(recipe, cells, split, device, workers, pretrained)
        epochs = loop.resume(checkpoints) if checkpoints else []
        for epoch in epochs:
            on_epoch(epoch)
        for epoch in loop.epochs(len(epochs)):
            epochs.append(epoch)
            if checkpoints and workers.rank == 0:
                checkpoints.save(loop.state(epochs), epoch.number)
            on_epoch(epoch)
        network = loop.best_network()
    return Trained(
        network=network,
        best=[epoch for epoch in epochs if epoch.best][-1],
        epochs=tuple(epochs),
        device=f"{device.type}{f' x {workers.count}' if workers.count > 1 else ''}",
        precision="bf16" if loop.autocasts else "fp32",
    )


class _Loop:
    """The network in training, with all that changes from step to step."""

    def __init__(
        self,
        recipe: Recipe,
        cells: LabelledCells,
        split: Split,
        device: torch.device,
        workers: Workers,
        pretrained: Callable[[nn.Module], None],
    ) -> None:
        self._recipe = recipe
        self._cells = cells
        self._split = split
        self._device = device
        self._workers = workers
        class_weights = _class_weights(recipe, cells, split)
        self._labels = torch.from_numpy(cells.labels[split.train]).to(device)
        self._images, self._validation_images = (
            load_images(cells, side, recipe.preprocessing, device)
            for side in (split.train, split.validation)
        )
        network = recipe.architecture.build(len(cells.class_names))
        pretrained(network)
        self._network = network.to(device).to(memory_format=torch.channels_last)
        self._average = (
            None if recipe.ema_decay is None else RunningAverage(network, recipe.ema_decay)
        )
        self._stepper = Stepper(
            self._network, recipe, class_weights, device, run=workers.wrapped(network, device)
        )
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self._best: dict[str, Tensor] = {}
        self._highest = -math.inf

    @property
    def autocasts(self) -> bool:
        return self._stepper.autocasts

    def best_network(self) -> nn.Module:
        network = self._recipe.architecture.build(len(self._cells.class_names))
        network.load_state_dict(self._best)
        return network.to(memory_format=torch.contiguous_format).eval()

    def state(self, epochs: list[Epoch]) -> dict[str, Any]:
        """All that a training needs to go on as if nothing had happened."""
        return {
            "network": self._network.state_dict(),
            "average": self._average.state_dict() if self._average else None,
            "optimizer": self._stepper.optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "dropout": torch.get_rng_state(),
            "best": self._best,
            "epochs": [asdict(epoch) for epoch in epochs],
        }

    def resume(self, checkpoints: Checkpoints) -> list[Epoch]:
        """Take up the last sound checkpoint; return the epochs that lie behind it."""
        state = checkpoints.load(self._device)
        if state is None:
            return []
        self._network.load_state_dict(state["network"])
        if self._average:
            self._average.load_state_dict(state["average"])
        self._stepper.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["dropout"].cpu())
        self._best = {name: tensor.cpu() for name, tensor in state["best"].items()}
        epochs = [Epoch(**fields) for fields in state["epochs"]]
        self._highest = max(epoch.validation_macro_f1 for epoch in epochs)
        return epochs

    def epochs(self, done: int) -> Iterator[Epoch]:
        """The epochs after the first ``done``, each judged when it is over."""
        for number in range(done + 1, self._recipe.epochs + 1):
            started = time.perf_counter()
            loss, images, rate = self._run_epoch(number)
            trained = time.perf_counter()
            for network in (self._network, self._kept()):
                self._workers.average_statistics(network)
            validation_loss, validation = self._validate()
            best = validation.macro_f1 > self._highest
            if best:
                self._highest = validation.macro_f1
                kept = self._kept().state_dict()
                self._best = {name: tensor.to("cpu", copy=True) for name, tensor in kept.items()}
            yield Epoch(
                number=number,
                epochs=self._recipe.epochs,
                loss=loss,
                learning_rate=rate,
                images_per_second=images / (trained - started),
                seconds=time.perf_counter() - started,
                validation_loss=validation_loss,
                validation_accuracy=validation.accuracy,
                validation_macro_f1=validation.macro_f1,
                best=best,
            )

    def _run_epoch(self, number: int) -> tuple[float, int, float]:
        """Go through the training images once; return the mean loss of the batches, the
        number of images, the last learning rate."""
        self._network.train()
        order, attitudes = self._order()
        batches = torch.split(torch.arange(len(order)), self._recipe.batch_size)
        steps = self._recipe.epochs * len(batches)
        total = torch.zeros((), device=self._device)
        rate = 0.0
        for at, batch in enumerate(batches, (number - 1) * len(batches)):
            rate = self._recipe.learning_rate * rate_factor(self._recipe, at / steps)
            total += self._take_step(order[batch], attitudes[batch], rate)
        total = self._workers.mean(total)
        # Looked at once an epoch: looking at every step would hold a GPU up.
        if not (loss := float(total) / len(batches)) < math.inf:
            raise RunAbortedError(
                f"The loss of recipe {self._recipe.name} is {loss} in epoch {number}: "
                "training went astray. Take a lower learning rate, or clip the gradient."
            )
        return loss, len(order), rate

    def _order(self) -> tuple[Tensor, Tensor]:
        """Positions of the epoch's images, in order and in whole batches, and the attitude of
        each."""
        count = len(self._images)
        fold = ATTITUDES if self._recipe.augmentation.fourfold else 1
        if self._recipe.balanced_sampling:
            labels = self._labels.cpu()
            chances = 1 / torch.bincount(labels).double()[labels]
            drawn = torch.multinomial(
                chances, fold * count, replacement=True, generator=self._generator
            )
            order = drawn + count * torch.randint(fold, drawn.shape, generator=self._generator)
        else:
            order = torch.randperm(fold * count, generator=self._generator)
        # The last batch is filled up from the first: batch normalisation takes no batch of
        # one, and a graph none of another size.
        batches = -(-len(order) // self._recipe.batch_size)
        order = order[torch.arange(batches * self._recipe.batch_size) % len(order)]
        return order % count, order // count

    def _take_step(self, positions: Tensor, attitudes: Tensor, rate: float) -> Tensor:
        """One step on a batch, of which this worker takes its share; returns its loss."""
        recipe = self._recipe
        images = self._images[positions.to(self._images.device)].to(self._device)
        if recipe.augmentation.fourfold:
            images = in_attitudes(images, attitudes)
        # Augmented as a whole, so that the share of a worker does not depend on their number.
        images = augment(images, recipe.augmentation, self._generator)
        labels = self._labels[positions.to(self._device)]
        loss = self._stepper.step(self._workers.share(images), self._workers.share(labels), rate)
        if self._average:
            self._average.update()
        return loss

    def _validate(self) -> tuple[float, Any]:
        kept = self._kept().eval()
        with self._stepper.autocast():
            found = probabilities(kept, self._validation_images, self._recipe.preprocessing)
        labels = self._cells.labels[self._split.validation]
        right = found[torch.arange(len(labels)), torch.from_numpy(labels)].clamp_min(1e-12)
        metrics = measure(labels, found.argmax(dim=1).numpy(), self._cells.class_names)
        return float(-right.log().mean()), metrics

    def _kept(self) -> nn.Module:
        """The network that is judged and kept: the average, where there is one."""
        return self._average.network if self._average else self._network


def rate_factor(recipe: Recipe, done: float) -> float:
    """The learning rate, as a share of its highest, when ``done`` of the steps are taken."""
    if done < recipe.warmup:
        return min(1.0, max(done, 1e-3) / recipe.warmup)
    if recipe.schedule is Schedule.CONSTANT:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - recipe.warmup) / (1 - recipe.warmup)))


def _class_weights(recipe: Recipe, cells: LabelledCells, split: Split) -> Tensor:
    """Weights float32 [c], whose mean over the training images is 1. Raises DataSetError."""
    counts = np.bincount(cells.labels[split.train], minlength=len(cells.class_names))
    if absent := [cells.class_names[place] for place in np.flatnonzero(counts == 0)]:
        raise DataSetError(
            f"No training image of {', '.join(absent)} in {cells.where}: the few groups with "
            "these classes went to validation and test. Give more, or another split seed."
        )
    power = {
        ClassWeighting.NONE: 0.0,
        ClassWeighting.INVERSE_SQRT: -0.5,
        ClassWeighting.INVERSE: -1.0,
    }[recipe.class_weighting]
    weights: NDArray[np.float64] = counts.astype(np.float64) ** power
    return torch.from_numpy(weights * counts.sum() / (weights * counts).sum()).float()
