"""Real Ray Train on this machine: two workers, and a worker that is killed."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from cvm_batch.errors import DataSetError, RunAbortedError
from cvm_batch.training.datasets import load_cells
from cvm_batch.training.elsewhere import REFUSAL_FILE, OnRay
from cvm_batch.training.loop import Epoch, Trained, train
from cvm_batch.training.planning import plan_digest
from cvm_batch.training.recipe import Recipe
from cvm_batch.training.run import Job

CPU = torch.device("cpu")


def job_of(data: Path, recipe: Recipe, folder: Path) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    cells = load_cells(data)
    planned = plan_digest(cells, recipe.split_of(cells))
    return Job(data=(data,), recipe=recipe, folder=folder, planned=planned)


def on_ray(job: Job, killer: threading.Thread | None = None) -> tuple[Trained, list[int]]:
    (cells, split), seen = job.read(), list[Epoch]()
    if killer is not None:
        killer.start()
    trained = OnRay(workers=2)(job, cells, split, seen.append)
    return trained, [epoch.number for epoch in seen]


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_two_workers_learn_as_one_that_accumulates(
    tmp_path: Path, data: Path, tiny_recipe: Recipe
) -> None:
    # Of three steps each, and in fp32: bf16 rounds more than is allowed here.
    recipe = replace(tiny_recipe, epochs=7, batch_size=24, mixed_precision=False)
    job = job_of(data, recipe, tmp_path / "tiny-0123")
    trained, seen = on_ray(job)
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    assert trained.device == "cpu x 2"
    cells, split = job.read()
    alone = train(replace(recipe, accumulate=2), cells, split, device=CPU)
    for mine, theirs in zip(trained.epochs, alone.epochs, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, abs=1e-3)
    left = {path.name for path in job.folder.iterdir()}
    assert left == {".loop.lock", "checkpoints", "epochs.jsonl", "ray"}


def workers_of_this_process() -> list[psutil.Process]:
    """Ray Train's, which carry their function in their title."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in process.name() or "RayTrainWorker" in " ".join(process.cmdline())
    ]


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_a_killed_worker_costs_no_epoch_that_was_over(
    tmp_path: Path, data: Path, tiny_recipe: Recipe
) -> None:
    recipe = replace(tiny_recipe, epochs=60, batch_size=24, mixed_precision=False)
    job = job_of(data, recipe, tmp_path / "tiny-0123")
    killed: list[int] = []

    def kill() -> None:
        while not (paths := job.checkpoints.paths()) or len(paths) < 2:
            time.sleep(0.05)
        for process in workers_of_this_process()[:1]:
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)

    trained, seen = on_ray(job, threading.Thread(target=kill))
    assert killed
    assert seen == list(range(1, 61))
    cells, split = job.read()
    alone = train(replace(recipe, accumulate=2), cells, split, device=CPU)
    assert [epoch.loss for epoch in trained.epochs] == pytest.approx(
        [epoch.loss for epoch in alone.epochs], abs=5e-3
    )


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_a_killed_job_goes_on_where_it_was(tmp_path: Path, data: Path, tiny_recipe: Recipe) -> None:
    recipe = replace(tiny_recipe, epochs=60, batch_size=24)
    job = job_of(data, recipe, tmp_path / "tiny-0123")

    def kill() -> None:
        while len(job.checkpoints.paths()) < 2:
            time.sleep(0.05)
        for process in psutil.Process().children():
            if "train.py" in " ".join(process.cmdline()):
                process.kill()

    with pytest.raises(RunAbortedError, match="goes on from the last checkpoint"):
        on_ray(job, threading.Thread(target=kill))
    before = job.checkpoints.load(CPU)
    assert before is not None
    trained, seen = on_ray(job)
    assert seen == list(range(1, 61))
    # What lay before the kill was taken up, not computed again.
    assert [e.seconds for e in trained.epochs[: len(before["epochs"])]] == [
        epoch["seconds"] for epoch in before["epochs"]
    ]


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_what_would_only_happen_again_is_tried_once(
    tmp_path: Path,
    data: Path,
    tiny_recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    job = job_of(
        data, replace(tiny_recipe, batch_size=24, learning_rate=1e30), tmp_path / "tiny-0123"
    )
    with pytest.raises(RunAbortedError, match="training went astray") as raised:
        on_ray(job)
    assert "exit code" not in str(raised.value)
    # Ray starts the workers a second time, and they end at once.
    told = capfd.readouterr()
    assert (told.out + told.err).count("Attempting to start training worker group") == 2
    assert not [path.name for path in job.folder.iterdir() if REFUSAL_FILE in path.name]


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_a_refused_training_may_be_given_again(
    tmp_path: Path, data: Path, tiny_recipe: Recipe
) -> None:
    job = job_of(data, replace(tiny_recipe, batch_size=24), tmp_path / "tiny-0123")
    (job.folder / REFUSAL_FILE).write_bytes(pickle.dumps(DataSetError("of an earlier try")))
    trained, _ = on_ray(job)
    assert trained.epochs
    assert not (job.folder / REFUSAL_FILE).exists()
