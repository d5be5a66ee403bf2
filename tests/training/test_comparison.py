"""The comparison of models: trials, what is left of them, and the table."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from cvm_batch.cli.compare import compare as command
from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import UsageError
from cvm_batch.jobfiles import job_file
from cvm_batch.model.architecture import Fusion, SingleNetwork
from cvm_batch.training.comparison import ALL, Trial, run, trials
from cvm_batch.training.folds import joined
from cvm_batch.training.paper import TABLE_3
from cvm_batch.training.recipes import find_recipe, overridden
from cvm_batch.training.study import cpus_for_each, study


def test_the_names_are_those_of_table_3() -> None:
    assert set(ALL) == set(TABLE_3)
    assert len(ALL) == 23
    assert TABLE_3["densenet169"] == (0.892, 0.889, 0.887, 0.8899)
    listed = CliRunner().invoke(command, ["--list"], catch_exceptions=False).output.split()
    assert tuple(listed) == ALL


def test_recipes_are_alike_but_for_the_network(data: Path, tmp_path: Path) -> None:
    recipe = overridden(find_recipe("cvm-cervix-mini-cric6"), ["epochs=3"])
    names = ["deit_tiny_patch16_224", "resnet18", "cvm-cervix", "cvm-cervix@hidden=99"]
    planned = trials([*names, "resnet18@augmentation.jitter=0.5"], [0, 1], recipe, [data], tmp_path)
    assert [trial.recipe.seed for trial in planned] == [0, 1] * 5
    by_model = {trial.model: trial.recipe for trial in planned}
    deit = by_model["deit_tiny_patch16_224"].architecture
    assert isinstance(deit, SingleNetwork)
    assert deit.args == {"img_size": 96}
    assert by_model["cvm-cervix"].architecture == recipe.architecture
    wide = by_model["cvm-cervix@hidden=99"].architecture
    assert isinstance(wide, Fusion)
    assert wide.hidden == 99
    assert by_model["resnet18@augmentation.jitter=0.5"].augmentation.jitter == 0.5
    for trial in planned:
        assert trial.recipe.epochs == 3
        assert trial.recipe.split_seed == recipe.split_seed
    assert len({trial.path for trial in planned}) == 10
    with pytest.raises(UsageError, match="see --seeds"):
        trials(["resnet18@seed=3"], [0], recipe, [data], tmp_path)


def test_a_study_shows_what_failed_and_goes_on(data: Path, tmp_path: Path) -> None:
    """inception_v3 takes no images of 32 px; the second time it alone is tried again."""
    out = tmp_path / "study"
    names = "test_resnet,inception_v3,cvm-cervix"
    arguments = ["--data", str(data), "--models", names, "--recipe", "smoke", "--out", str(out)]
    first = CliRunner().invoke(command, [*arguments, "--epochs", "1"], catch_exceptions=False)
    assert first.exit_code == 3
    assert "3 trials, 0 of them done before" in first.output
    assert "inception_v3 failed: " in first.output
    files = {path.name: path.stat().st_mtime_ns for path in (out / "trials").iterdir()}
    again = CliRunner().invoke(command, [*arguments, "--epochs", "1"], catch_exceptions=False)
    assert "3 trials, 2 of them done before" in again.output
    changed = [
        path.name
        for path in (out / "trials").iterdir()
        if path.stat().st_mtime_ns != files.get(path.name)
    ]
    assert [name.partition("-seed")[0] for name in changed] == ["inception_v3"]

    table = table_of(out)
    assert list(table) == names.split(",")
    assert table["inception_v3"]["failed"] == "1"
    assert table["inception_v3"]["accuracy"] == ""
    assert table["inception_v3"]["paper_accuracy"] == "0.8496"
    ours, other = table["cvm-cervix"], table["test_resnet"]
    assert ours["timed_on"] == f"{usable_cpus()} CPU threads"
    assert 0 <= float(ours["accuracy_low"]) <= float(ours["accuracy"])
    assert ours["mcnemar_p"] == ""
    assert 0 < float(other["mcnemar_p"]) <= 1
    difference = float(other["accuracy"]) - float(ours["accuracy"])
    assert float(other["accuracy_difference"]) == pytest.approx(difference, abs=2e-4)
    low, high = (float(other[f"f1_difference_{end}"]) for end in ("low", "high"))
    assert low <= float(other["f1_difference"]) <= high
    assert int(ours["parameters"]) > int(other["parameters"]) > 1000
    markdown = (out / "table.md").read_text()
    assert "1 epochs of batches of 16" in markdown
    assert "| CVM-Cervix |" in markdown
    assert "failed: " in markdown
    page = (out / "index.html").read_text()
    assert not re.search(r"(src|href)=", re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))


def planned_here(data: Path, folder: Path, *models: str) -> list[Trial]:
    recipe = overridden(find_recipe("smoke"), ["epochs=1"])
    return trials(models, [0], recipe, [data], folder)


def table_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AssertionError(), "AssertionError"),
        (KeyError("stem"), "KeyError: 'stem'"),
        (MemoryError("no more\nsecond line"), "MemoryError: no more"),
    ],
)
def test_whatever_breaks_a_trial_is_told_in_its_file(
    error: Exception, said: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("cvm_batch.training.comparison.train", breaks)
    planned = planned_here(data, tmp_path, "cvm-cervix")
    assert study(planned, tmp_path) == 1
    assert planned[0].found() == {"model": "cvm-cervix", "seed": 0, "epochs": 1, "error": said}
    assert table_of(tmp_path)["cvm-cervix"]["error"] == said


def test_a_trial_that_left_no_file_is_a_row(data: Path, tmp_path: Path) -> None:
    """Its job was killed with it, say."""
    planned = planned_here(data, tmp_path, "cvm-cervix", "resnet18")
    assert study(planned, tmp_path, runner=lambda missing, say: None) == 2
    table = table_of(tmp_path)
    assert list(table) == ["cvm-cervix", "resnet18"]
    assert table["resnet18"]["error"] == "left no result"


def test_a_trial_that_died_on_the_cluster_leaves_why(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = compare_job()
    died = job.ray.exceptions.WorkerCrashedError()

    def get(_: object) -> None:
        raise died

    monkeypatch.setattr(job.ray, "get", get)
    one, other = planned_here(data, tmp_path, "cvm-cervix", "resnet18")
    other.path.parent.mkdir()
    other.path.write_text('{"test": {}}')
    assert job._ended(one, object())["error"].startswith("WorkerCrashedError: The worker died")
    assert one.found() == job._ended(one, object())
    # It came to its end, and died afterwards.
    assert job._ended(other, object()) == other.found() == {"test": {}}


@pytest.mark.parametrize(
    ("cpus", "at_once", "each"),
    [
        ([8], 4, 2),
        ([2], 8, 1),
        ([6, 6], 3, 3),  # four each of twelve, and a node would have room for one
        ([4, 4], 1, 4),  # all eight are on no node
        ([4, 16], 1, 16),
        ([0, 4], 2, 2),  # a head that takes no work
        ([], 2, 1),
    ],
)
def test_no_trial_asks_for_more_than_a_node_has(cpus: list[int], at_once: int, each: int) -> None:
    assert cpus_for_each([{"CPU": count} for count in cpus], at_once) == each


def test_trials_on_gpus_share_the_cpus_beside_them() -> None:
    nodes: list[dict[str, float]] = [{"CPU": 64}, {"CPU": 16, "GPU": 2}]
    assert cpus_for_each(nodes, 2, gpus=True) == 8
    assert cpus_for_each(nodes, 9, gpus=True) == 8  # seven of them wait for a GPU
    assert cpus_for_each([{"CPU": 64}], 2, gpus=True) == 1  # whatever the GPU's node will have


def test_a_trial_keeps_to_its_threads(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    seen = []

    def breaks(*_: object, **__: object) -> None:
        seen.append(torch.get_num_threads())
        raise ValueError

    monkeypatch.setattr("cvm_batch.training.comparison.train", breaks)
    (trial,) = planned_here(data, tmp_path, "cvm-cervix")
    run(trial, threads=before + 1)
    torch.set_num_threads(before)
    assert seen == [before + 1]


def test_gpus_that_are_not_there_are_refused() -> None:
    job = compare_job()
    with pytest.raises(click.ClickException, match="leave --gpus out"):
        job._check_gpus([{"CPU": 4}], True, None)
    job._check_gpus([{"CPU": 4}], True, "10.0.0.1:6379")
    job._check_gpus([{"CPU": 4}, {"GPU": 1}], True, None)


def compare_job() -> Any:
    """jobs/compare.py as a module."""
    spec = spec_from_file_location("compare_job", job_file("compare.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_trials_of_another_recipe_are_other_files(data: Path, tmp_path: Path) -> None:
    recipe = find_recipe("smoke")
    (one,) = trials(["cvm-cervix"], [0], recipe, [data], tmp_path)
    (other,) = trials(["cvm-cervix"], [0], replace(recipe, epochs=9), [data], tmp_path)
    assert one.path != other.path
    assert isinstance(one, Trial)
    assert one.found() is None


def test_a_model_changed_in_many_ways_has_a_file(data: Path, tmp_path: Path) -> None:
    """As an ablation does: its name alone has more bytes than a file's may have."""
    fields = ("rotate=true", "zoom=0.15", "shift_px=2", "jitter=0.1", "vertical_flip=false")
    words = "@".join(["cvm-cervix", *(f"augmentation.{field}" for field in fields)])
    words += "@augmentation.quarter_turns=false@label_smoothing=0.01@weight_decay=0.01"
    words += "@schedule=constant@warmup=0@ema_decay=none"
    one, other = planned_here(data, tmp_path, words, f"{words}@clip_norm=1")
    for trial in (one, other):
        trial.path.parent.mkdir(exist_ok=True)
        trial.path.write_text("{}")
    assert len({path.name for path in one.path.parent.iterdir()}) == 2


def test_a_cross_validation_is_one_row_of_all_cells(data: Path, tmp_path: Path) -> None:
    """10 frames in 3 folds: each of the 120 cells is a test cell once."""
    out = tmp_path / "study"
    arguments = ["--data", str(data), "--models", "test_resnet,cvm-cervix", "--recipe", "smoke"]
    arguments += ["--epochs", "1", "--folds", "3", "--out", str(out)]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert "test_resnet, seed 0, fold 2 of 3" in result.output
    assert "3 grouped folds" in (out / "table.md").read_text()
    trials_found = [json.loads(path.read_text()) for path in (out / "trials").iterdir()]
    for model in ("test_resnet", "cvm-cervix"):
        folds = [found for found in trials_found if found["model"] == model]
        names = [name for found in folds for name in found["answers"]["names"]]
        assert len(names) == len(set(names)) == 120
        frames = [set(found["answers"]["groups"]) for found in folds]
        assert sum(map(len, frames)) == len(set.union(*frames)) == 10
        right = sum(
            label == answer
            for found in folds
            for label, answer in zip(
                found["answers"]["labels"], found["answers"]["predicted"], strict=True
            )
        )
        row = table_of(out)[model]
        assert float(row["accuracy"]) == pytest.approx(right / 120)
        assert (row["seeds"], row["failed"]) == ("1", "0")
    assert table_of(out)["test_resnet"]["mcnemar_p"]


def test_folds_are_a_split_of_their_own(data: Path, tmp_path: Path) -> None:
    recipe = find_recipe("smoke")
    of_all, of_one = (["split=grouped"], "resnet18"), ([], "resnet18@split=grouped")
    for settings, model in (of_all, of_one):
        with pytest.raises(UsageError, match="--folds is a split of its own"):
            trials([model], [0], recipe, [data], tmp_path, settings=settings, folds=3)


def test_a_fold_that_failed_fails_its_row() -> None:
    sound = {"model": "a", "seed": 0, "fold": (0, 3)}
    (found,) = joined([sound, {**sound, "fold": (1, 3), "error": "memory"}])
    assert found["error"] == "fold 2 of 3: memory"
