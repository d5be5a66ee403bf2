"""Training steps on labelled cells, beside the loop that everybody writes first."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.reporting import report
from benchmarks.subject import device_name
from cvm_batch.cpus import usable_cpus
from cvm_batch.model.engine import default_device
from cvm_batch.training.augment import augment
from cvm_batch.training.datasets import LabelledCells, load_cells
from cvm_batch.training.images import load_images
from cvm_batch.training.recipe import Recipe
from cvm_batch.training.recipes import find_recipe, overridden
from cvm_batch.training.stepping import Stepper


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Labelled cells.")
@click.option("--recipe", "name", default="cvm-cervix-mini-cric6", show_default=True)
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE")
@click.option("--steps", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def training(
    data: Path, name: str, settings: tuple[str, ...], steps: int, rounds: int, as_json: bool
) -> None:
    """Images a second in training, ours and a plain eager fp32 NCHW DataLoader loop's, by turns.

    The same network, batch, flips and files; the peer decodes them in a worker for each CPU, as
    PyTorch's tutorials have it. Medians of the rounds.
    """
    device = default_device()
    torch.set_num_threads(usable_cpus())
    recipe = overridden(find_recipe(name), settings)
    cells = load_cells(data).regrouped(recipe.classes)
    loops = {"cvm-batch": _ours(recipe, cells, device), "plain loop": _plain(recipe, cells, device)}
    speeds: dict[str, list[float]] = {label: [] for label in loops}
    for loop in loops.values():
        for _ in range(4):  # workers start, kernels are chosen, graphs captured
            next(loop)
    for _ in range(rounds):
        for label, loop in loops.items():
            _wait(device)
            started = time.perf_counter()
            for _ in range(steps):
                next(loop)
            _wait(device)
            seconds = time.perf_counter() - started
            speeds[label].append(steps * recipe.batch_size / seconds)
    ratios = [ours / plain for ours, plain in zip(*speeds.values(), strict=True)]
    figures: dict[str, Any] = {
        "device": device_name(device),
        "recipe": recipe.name,
        "network": str(recipe.architecture),
        "batch": recipe.batch_size,
        "input_px": recipe.preprocessing.input_px,
        **{f"{label}, images/s": median(found) for label, found in speeds.items()},
        "ratio": median(ratios),
        "ratio, least and most": f"{min(ratios):.2f} to {max(ratios):.2f}",
    }
    report(figures, as_json)


def _ours(recipe: Recipe, cells: LabelledCells, device: torch.device) -> Iterator[Tensor]:
    network = recipe.architecture.build(len(cells.class_names)).to(device)
    network = network.to(memory_format=torch.channels_last).train()
    stepper = Stepper(network, recipe, torch.ones(len(cells.class_names)), device)
    labels = torch.from_numpy(cells.labels)
    images = load_images(cells, labels.argsort().numpy(), recipe.preprocessing, device)
    labels = labels.sort().values.to(device)
    generator = torch.Generator().manual_seed(0)
    while True:
        chosen = torch.randint(len(cells), (recipe.batch_size,), generator=generator).to(device)
        batch = augment(images[chosen], recipe.augmentation, generator)
        yield stepper.step(batch, labels[chosen], recipe.learning_rate)


@dataclass
class _Files(Dataset[tuple[Tensor, int]]):
    recipe: Recipe
    cells: LabelledCells

    def __post_init__(self) -> None:
        side = self.recipe.preprocessing.input_px
        self._transform = v2.Compose(
            [
                v2.ToImage(),
                v2.Resize((side, side), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(self.recipe.preprocessing.mean, self.recipe.preprocessing.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        return self._transform(self.cells.read(at)), int(self.cells.labels[at])


def _plain(recipe: Recipe, cells: LabelledCells, device: torch.device) -> Iterator[Tensor]:
    network = recipe.architecture.build(len(cells.class_names)).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(
        _Files(recipe, cells),
        batch_size=recipe.batch_size,
        shuffle=True,
        num_workers=usable_cpus(),
        drop_last=True,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    while True:
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(network(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            yield loss.detach()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
