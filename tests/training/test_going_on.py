"""One training at a time in a folder, which goes on wherever it was interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cvm_batch.errors import BundleError, UsageError
from cvm_batch.model.bundle import load_bundle
from cvm_batch.training import run as run_module
from cvm_batch.training.claim import COMMAND, LOOP, claimed
from cvm_batch.training.loop import Trained
from cvm_batch.training.publish import Published
from cvm_batch.training.recipe import Recipe
from cvm_batch.training.run import Job, train_bundle, train_here
from tests.training.conftest import write_cells


class _PowerError(Exception):
    """It went."""


def goes(*anything: object) -> None:
    raise _PowerError


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cells(tmp_path_factory.mktemp("small"), frames=5)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, small: Path, tiny_recipe: Recipe) -> Path:
    """A training that was cut off when its bundle had been written. Do not change it."""
    root, threads = tmp_path_factory.mktemp("once"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run_module, "_write_figures", goes)
        with pytest.raises(_PowerError):
            train_bundle((small,), replace(tiny_recipe, epochs=1), root / "tiny", report=False)
    torch.set_num_threads(threads)
    return root


@pytest.fixture
def out(tmp_path: Path, once: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(once, tmp_path / "copy")) / "tiny"


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    return replace(tiny_recipe, epochs=1)


def test_a_training_goes_on_after_its_bundle_was_written(
    out: Path, small: Path, recipe: Recipe
) -> None:
    digest = load_bundle(out).digest
    (folder,) = out.with_name("tiny.training").iterdir()
    assert not (folder / "evaluation.json").exists()
    with pytest.raises(_PowerError):  # as in promoting
        train_bundle((small,), recipe, out, report=False, then=goes)
    figures = json.loads((folder / "evaluation.json").read_text())
    promoted: list[Published] = []
    train_bundle((small,), recipe, out, report=False, then=promoted.append)
    assert [one.bundle.digest for one in promoted] == [digest] == [figures["bundle"]["digest"]]
    assert promoted[0].test.to_json() == figures["test"]
    # All is done: a bundle is not trained over.
    with pytest.raises(BundleError, match="exists already"):
        train_bundle((small,), recipe, out, report=False)


def test_a_bundle_of_another_training_is_not_gone_on_with(
    out: Path, small: Path, recipe: Recipe
) -> None:
    with pytest.raises(BundleError, match="exists already"):
        train_bundle((small,), replace(recipe, seed=9), out, report=False)


def test_two_trainings_to_one_folder_do_not_take_each_others_bundle(
    out: Path, tmp_path: Path, small: Path, recipe: Recipe
) -> None:
    other = tmp_path / "other" / "bundle"

    def beside(job: Job, *rest: Any) -> Trained:
        trained = train_here(job, *rest)
        shutil.copytree(out, other)  # the other one ends first
        return trained

    with pytest.raises(BundleError, match=r"Another training has written .* meanwhile"):
        train_bundle((small,), replace(recipe, seed=9), other, report=False, trainer=beside)
    assert load_bundle(other).digest == load_bundle(out).digest
    shutil.rmtree(other)
    train_bundle((small,), replace(recipe, seed=9), other, report=False)
    assert load_bundle(other).digest != load_bundle(out).digest


@pytest.mark.parametrize("what", [COMMAND, LOOP])
def test_a_second_training_in_the_folder_is_refused(
    out: Path, small: Path, recipe: Recipe, what: str
) -> None:
    """Also where only the job of a killed command is left, which holds LOOP."""
    (folder,) = out.with_name("tiny.training").iterdir()
    with claimed(folder, what), pytest.raises(UsageError, match="Another process trains in"):
        train_bundle((small,), recipe, out, report=False)
    assert not (folder / "evaluation.json").exists()


_JOB = """
import sys, time
from pathlib import Path
from cvm_batch.parent import end_with_parent
from cvm_batch.training.claim import LOOP, claimed

end_with_parent()
folder = Path(sys.argv[1])
with claimed(folder, LOOP):
    (folder / "pid").write_text(str(__import__("os").getpid()))
    (folder / "pid").rename(folder / "started")
    time.sleep(120)
"""
_COMMAND = """
import sys
from pathlib import Path
from cvm_batch.training import elsewhere

elsewhere.job_file = Path
elsewhere.run_job(sys.argv[1], Path(sys.argv[2]), gpus=False, address=None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_ends_with_the_command_that_started_it(tmp_path: Path, number: int) -> None:
    job, folder = tmp_path / "job.py", tmp_path / "training"
    job.write_text(_JOB)
    folder.mkdir()
    command = subprocess.Popen([sys.executable, "-c", _COMMAND, str(job), str(folder)])
    try:
        while not (folder / "started").is_file():
            assert command.poll() is None
            time.sleep(0.05)
        child = psutil.Process(int((folder / "started").read_text()))
        with pytest.raises(UsageError, match="Another process trains"), claimed(folder, LOOP):
            pass
        os.kill(command.pid, number)
        child.wait(20)
    finally:
        command.kill()
        command.wait()
    with claimed(folder, LOOP):
        pass
