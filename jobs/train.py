"""A training on the workers of a Ray cluster, by Ray Train.

    python jobs/train.py JOB --workers 4 [--gpus] [--address HOST:PORT]

JOB is the file that `cvm-batch train --workers` leaves in the training's folder. Every worker
must see that folder and the data under the same paths. Each runs the same loop with its share
of every batch (`cvm_batch/training/loop.py`); the first one writes checkpoints, `epochs.jsonl`,
and the network at the end. A worker or node that dies costs the epoch that was under way: Ray
starts all of them again, and they take up the last sound checkpoint. What would only happen again,
as an image that does not decode, ends the training.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import click

# Ray gives a group of workers 30 s to start: on a busy node, importing PyTorch takes longer.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "180")

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer, get_device

from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import CvmBatchError, RunAbortedError
from cvm_batch.parent import end_with_parent
from cvm_batch.training.claim import LOOP, claimed
from cvm_batch.training.elsewhere import EPOCHS_FILE, REFUSAL_FILE, TRAINED_FILE
from cvm_batch.training.loop import Epoch, train
from cvm_batch.training.run import Job
from cvm_batch.training.workers import Workers

#: Times that the workers are started again after one of them died.
_MOST_FAILURES = 5


def _work(config: dict[str, Any]) -> None:
    """What each worker does."""
    refusal: Path = config["refusal"]
    # Left before Ray started the workers anew, which it does whatever they raise. One looks for
    # all, since a shared folder need not show the same everywhere.
    if broadcast_from_rank_zero(refusal.exists()):
        return
    try:
        _train_share(config["job"])
    except CvmBatchError as error:
        if not isinstance(error.__cause__, OSError):  # a store's errors may pass
            _leave(refusal, error)
        raise  # or the others would wait for this one


def _leave(refusal: Path, error: CvmBatchError) -> None:
    building = refusal.with_suffix(f".{uuid4().hex}.tmp")
    building.write_bytes(pickle.dumps(error))
    building.replace(refusal)


def _train_share(job: Job) -> None:
    context = ray.train.get_context()
    workers = Workers(rank=context.get_world_rank(), count=context.get_world_size())
    cells, split = job.read()
    epochs_file = job.folder / EPOCHS_FILE
    if workers.rank == 0:
        epochs_file.unlink(missing_ok=True)

    def on_epoch(epoch: Epoch) -> None:
        if workers.rank == 0:
            with epochs_file.open("a") as file:
                file.write(json.dumps(asdict(epoch)) + "\n")
        ray.train.report(asdict(epoch))

    trained = train(
        job.recipe,
        cells,
        split,
        device=get_device(),
        on_epoch=on_epoch,
        checkpoints=job.checkpoints,
        workers=workers,
        pretrained=job.pretrained.load,
    )
    if workers.rank == 0:
        building = job.folder / f".{TRAINED_FILE}.tmp"
        torch.save(trained, building)
        building.replace(job.folder / TRAINED_FILE)


@click.command()
@click.argument("job", type=click.Path(path_type=Path, exists=True))
@click.option("--workers", type=click.IntRange(min=1), required=True)
@click.option("--gpus", is_flag=True, help="One GPU for each worker.")
@click.option("--address", help="Of a Ray cluster; by default one is started here.")
def main(job: Path, workers: int, gpus: bool, address: str | None) -> None:
    """Train JOB on a Ray cluster."""
    end_with_parent()
    described: Job = pickle.loads(job.read_bytes())  # noqa: S301 - written by the same command
    with claimed(described.folder, LOOP):
        _train(described, workers, gpus, address)


def _train(described: Job, workers: int, gpus: bool, address: str | None) -> None:
    # Here Ray would count the machine's CPUs, and not those that this process may use.
    count = {} if address else {"num_cpus": usable_cpus()}
    # With its dashboard, whose API Ray Train asks for the state of its controller.
    ray.init(address=address or "local", log_to_driver=True, **count)
    _check_room(workers, gpus, address)
    # Of this start alone: what an earlier one left says nothing.
    refusal = described.folder / f".{uuid4().hex}.{REFUSAL_FILE}"
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": described, "refusal": refusal},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=RunConfig(
            # The folder's name carries the fingerprint, so that nothing else is resumed.
            name=described.folder.name,
            storage_path=str(described.folder / "ray"),
            failure_config=FailureConfig(max_failures=_MOST_FAILURES),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        if not refusal.exists():
            raise RunAbortedError(f"The workers failed for good: {error}") from error
    if refusal.exists():
        refused: CvmBatchError = pickle.loads(refusal.read_bytes())  # noqa: S301 - our worker's
        refusal.replace(described.folder / REFUSAL_FILE)  # for whoever started this job
        raise refused


def _check_room(workers: int, gpus: bool, address: str | None) -> None:
    """Raises ClickException where workers would be waited for that never start."""
    kind = "GPU" if gpus else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if there >= workers:
        return
    if address is None:
        raise click.ClickException(
            f"{workers} workers need a {kind} each, and Ray finds {there} here: ask for fewer"
            + (", or leave --gpus out." if gpus else ".")
        )
    # It may be one that grows by itself.
    click.echo(f"The cluster has {there} of {workers} {kind}s so far; the workers wait for them.")


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except CvmBatchError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
