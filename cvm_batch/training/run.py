"""One training from end to end: data, split, loop, bundle, report.

    OUT/                                  the bundle
    OUT.training/<recipe>-<fingerprint>/  what led to it
      split.csv                           every cell and its side
      data.txt                            what was found in the data, and skipped
      checkpoints/                        the last two, gone once the bundle is there
      evaluation.json, report.html        figures, for programs and for people
      tensorboard/                        curves, where TensorBoard is installed
    OUT.training/first-weights/           what was downloaded to begin with

The fingerprint is of the recipe, the data and their split, so that a changed one begins anew
and the same one goes on where it was interrupted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch

from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import BundleError, UsageError
from cvm_batch.model.bundle import load_bundle
from cvm_batch.training.checkpoints import Checkpoints
from cvm_batch.training.claim import COMMAND, LOOP, claimed
from cvm_batch.training.curves import Curves
from cvm_batch.training.datasets import LabelledCells, load_cells
from cvm_batch.training.loop import Epoch, Trained, train
from cvm_batch.training.planning import check_as_planned, plan_digest
from cvm_batch.training.pretrained import AT_RANDOM, Pretrained
from cvm_batch.training.publish import Published, publish
from cvm_batch.training.recipe import Recipe
from cvm_batch.training.splits import Split, write_split


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a training needs, on whichever process or node it runs. Pickles."""

    data: tuple[Path, ...]
    """Folders of labelled cells that are taken together."""
    recipe: Recipe
    folder: Path
    """Of this training alone; every worker must see it."""
    planned: str
    """`plan_digest` of the data and their split, as the driver has read them."""
    pretrained: Pretrained = field(default_factory=Pretrained)

    @property
    def fingerprint(self) -> str:
        return self.folder.name.rpartition("-")[2]

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints")

    def read(self) -> tuple[LabelledCells, Split]:
        """The data, read on this node, and their split.

        Raises DataSetError, also where they are not what was planned.
        """
        cells = load_cells(*self.data).regrouped(self.recipe.classes)
        split = self.recipe.split_of(cells)
        check_as_planned(cells, split, self.planned)
        return cells, split


class Trainer(Protocol):
    """Runs a job's loop somewhere; `train_here` and `jobs.train.on_ray`."""

    def __call__(
        self, job: Job, cells: LabelledCells, split: Split, on_epoch: Callable[[Epoch], None]
    ) -> Trained: ...


def train_here(
    job: Job, cells: LabelledCells, split: Split, on_epoch: Callable[[Epoch], None]
) -> Trained:
    """In this process, on the first GPU or the CPUs that it may use."""
    # torch counts the machine's processors, not those that a container may use.
    torch.set_num_threads(usable_cpus())
    with claimed(job.folder, LOOP):
        return train(
            job.recipe,
            cells,
            split,
            on_epoch=on_epoch,
            checkpoints=job.checkpoints,
            pretrained=job.pretrained.load,
        )


def train_bundle(
    data: tuple[Path, ...],
    recipe: Recipe,
    out: Path,
    *,
    pretrained: Pretrained = AT_RANDOM,
    trainer: Trainer = train_here,
    report: bool = True,
    then: Callable[[Published], None] = lambda published: None,
    say: Callable[[str], None] = lambda line: None,
) -> Published:
    """Train ``recipe`` on the labelled sets in ``data``; write the bundle to ``out``.

    The same call goes on where an earlier one was interrupted, also after the bundle was
    written: ``then`` belongs to the training, and is what else is to be done with the bundle.
    ``say`` gets lines of progress. Raises DataSetError, BundleError, RunAbortedError, and
    UsageError where another process trains the same.
    """
    written_by = _prepare_out(out)
    cells = load_cells(*data).regrouped(recipe.classes)
    _check_groups(recipe, cells.class_names)
    for line in cells.report():
        say(line)
    split = recipe.split_of(cells)
    pretrained = pretrained.as_files(recipe.architecture, _training(out) / "first-weights")
    first_weights = pretrained.digests()
    job = _job(data, recipe, out, plan_digest(cells, split), pretrained, first_weights)
    if written_by is not None and not (written_by == job.fingerprint and job.checkpoints.paths()):
        raise _exists(out)
    sides = ", ".join(f"{len(positions)} {side}" for side, positions in split.sides().items())
    say(f"split {split.kind}, seed {split.seed}: {sides}; training in {job.folder}")
    with ExitStack() as stack:
        stack.enter_context(claimed(job.folder, COMMAND))
        _describe(job, cells, split)
        curves = stack.enter_context(Curves(job.folder / "tensorboard"))

        def on_epoch(epoch: Epoch) -> None:
            curves.add(epoch)
            say(str(epoch))

        trained = trainer(job, cells, split, on_epoch)
        published = publish(
            out,
            trained,
            recipe,
            cells,
            split,
            fingerprint=job.fingerprint,
            first_weights=first_weights,
        )
        _write_figures(job, trained, published)
        if report:
            _write_report(job, trained, published, cells, split)
            say(f"figures, curves and galleries: {job.folder / 'report.html'}")
        say(f"epoch {trained.best.number} kept; on the test cells, which it never saw:")
        for line in published.test.metrics.lines():
            say(line)
        say(str(published.fp16))
        then(published)
        # Last: as long as they are there, the same command goes on.
        shutil.rmtree(job.checkpoints.folder, ignore_errors=True)
    return published


def _check_groups(recipe: Recipe, class_names: Sequence[str]) -> None:
    """Raises UsageError where a group names a class that the data do not have."""
    for group, members in recipe.groups.items():
        if unknown := [name for name in members if name not in class_names]:
            raise UsageError(
                f"The group {group!r} names {', '.join(unknown)}, but the classes are "
                f"{', '.join(class_names)}. Correct --set groups.{group}=..."
            )


def _job(
    data: tuple[Path, ...],
    recipe: Recipe,
    out: Path,
    planned: str,
    pretrained: Pretrained,
    weights: Mapping[str, str],
) -> Job:
    parts = [recipe.fingerprint, planned, *(f"{part} {sha}" for part, sha in weights.items())]
    fingerprint = sha256(" ".join(parts).encode()).hexdigest()[:12]
    folder = _training(out) / f"{recipe.name}-{fingerprint}"
    return Job(
        data=tuple(path.absolute() for path in data),
        recipe=recipe,
        folder=folder.absolute(),
        planned=planned,
        pretrained=pretrained,
    )


def _training(out: Path) -> Path:
    """The folder beside the bundle for all that its trainings leave."""
    return out.with_name(f"{out.name}.training")


def _describe(job: Job, cells: LabelledCells, split: Split) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    names = [image.name for image in cells.images]
    write_split(
        job.folder / "split.csv", split, names, cells.class_names, cells.labels, cells.groups
    )
    (job.folder / "data.txt").write_text("\n".join(cells.report()) + "\n")
    (job.folder / "recipe.json").write_text(json.dumps(job.recipe.to_json(), indent=2) + "\n")


def _write_figures(job: Job, trained: Trained, published: Published) -> None:
    figures: dict[str, Any] = {
        "recipe": job.recipe.to_json(),
        "bundle": {
            "name": published.bundle.spec.name,
            "digest": published.bundle.digest,
            "weights_bytes": published.bundle.weights_bytes,
        },
        "device": trained.device,
        "precision": trained.precision,
        "best_epoch": trained.best.number,
        "epochs": [asdict(epoch) for epoch in trained.epochs],
        "fp16": published.fp16.to_json(published.bundle.spec.class_names),
        "validation": published.validation.to_json(),
        "test": published.test.to_json(),
        # Not of the sides, which go into the bundle: its digest is not to tell how fast it was.
        "test_images_per_second": published.test.images_per_second,
    }
    (job.folder / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")


def _write_report(
    job: Job, trained: Trained, published: Published, cells: LabelledCells, split: Split
) -> None:
    from cvm_batch.training.report import write_report

    write_report(
        job.folder / "report.html",
        published.bundle,
        {
            side: (evaluation, split.sides()[side])
            for side, evaluation in (
                ("test", published.test),
                ("validation", published.validation),
            )
        },
        cells,
        epochs=trained.epochs,
    )


def _prepare_out(out: Path) -> str | None:
    """The fingerprint of the training that wrote what is there; None where nothing is.

    Raises BundleError for anything else that is there: found out now, and not when the
    training that was to fill it is over.
    """
    if out.exists():
        return _written_by(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(
            f"{out.parent} cannot be made ({error.strerror}). Name a folder that you may write to."
        ) from error
    return None


def _written_by(out: Path) -> str:
    try:
        training = load_bundle(out).spec.provenance.get("training", {})
    except BundleError as error:
        raise _exists(out) from error
    if not (found := training.get("fingerprint")):
        raise _exists(out)
    return str(found)


def _exists(out: Path) -> BundleError:
    return BundleError(f"{out} exists already. Name another folder, or remove it first.")
