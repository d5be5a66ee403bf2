"""A training's loop in other processes: this one starts `jobs/train.py` and watches its files.

Only jobs/ and the Ray executor import Ray, and a job is found by its place
(docs/decisions/0002).
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from cvm_batch.errors import CvmBatchError, RunAbortedError
from cvm_batch.jobfiles import job_file
from cvm_batch.parent import environment_of_child
from cvm_batch.training.datasets import LabelledCells
from cvm_batch.training.loop import Epoch, Trained
from cvm_batch.training.run import Job
from cvm_batch.training.splits import Split
from cvm_batch.training.workers import Workers

EPOCHS_FILE = "epochs.jsonl"
TRAINED_FILE = "trained.pt"
#: An error of a worker that further tries would only meet again.
REFUSAL_FILE = "refusal.pickle"
_JOB_FILE = "job.pickle"
_WATCH_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class OnRay:
    """Trains on the workers of a Ray cluster; a `Trainer`."""

    workers: int
    gpus: bool = False
    """One for each worker."""
    address: str | None = None
    """Of the cluster; None starts one on this machine."""

    def __call__(
        self, job: Job, cells: LabelledCells, split: Split, on_epoch: Callable[[Epoch], None]
    ) -> Trained:
        """Raises UsageError where batches do not come out even, what a worker raised of our own
        errors, and RunAbortedError where the workers fail for good."""
        Workers(count=self.workers).check(job.recipe)
        for name in (TRAINED_FILE, REFUSAL_FILE):
            (job.folder / name).unlink(missing_ok=True)
        (job.folder / _JOB_FILE).write_bytes(pickle.dumps(job))
        over = threading.Event()
        watcher = threading.Thread(
            target=_watch, args=(job.folder / EPOCHS_FILE, on_epoch, over), name="epochs"
        )
        watcher.start()
        try:
            code = run_job(
                "train.py",
                job.folder / _JOB_FILE,
                "--workers",
                str(self.workers),
                gpus=self.gpus,
                address=self.address,
            )
        finally:
            over.set()
            watcher.join()
        refusal = job.folder / REFUSAL_FILE
        if refusal.is_file():
            error: CvmBatchError = pickle.loads(refusal.read_bytes())  # noqa: S301 - our own job's
            refusal.unlink()
            raise error
        if code:
            raise RunAbortedError(
                f"The training's job ended with exit code {code}; what it said is above. The "
                f"same command goes on from the last checkpoint in {job.checkpoints.folder}."
            )
        # Written by our own job a moment ago: the network is pickled as a whole.
        trained: Trained = torch.load(job.folder / TRAINED_FILE, weights_only=False)
        for name in (TRAINED_FILE, _JOB_FILE):
            (job.folder / name).unlink()
        return trained


def run_job(name: str, described: Path, *options: str, gpus: bool, address: str | None) -> int:
    """Run the job of that name on what the file ``described`` holds; return its exit code.

    It ends with this process (`end_with_parent`).
    """
    command = [sys.executable, str(job_file(name)), str(described), *options]
    command += ["--gpus"] * gpus + (["--address", address] if address else [])
    done = subprocess.run(command, check=False, env=environment_of_child())  # noqa: S603 - our own
    return done.returncode


def _watch(path: Path, on_epoch: Callable[[Epoch], None], over: threading.Event) -> None:
    """Tell of every epoch once, also where the file begins anew after a failure."""
    told = 0
    last = False
    while not last:
        last = over.wait(_WATCH_SECONDS)
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        for line in lines:
            if not line.endswith("\n"):
                break
            epoch = Epoch(**json.loads(line))
            if epoch.number > told:
                told = epoch.number
                on_epoch(epoch)
