"""Any network by its name: in a recipe, and trained to a bundle that serves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from cvm_batch.cli.evaluate import evaluate
from cvm_batch.cli.export import export
from cvm_batch.cli.train import train
from cvm_batch.errors import UsageError
from cvm_batch.model.architecture import Fusion, SingleNetwork
from cvm_batch.model.bundle import load_bundle
from cvm_batch.results.reading import Results
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings
from cvm_batch.training.networks import check_builds, with_network
from cvm_batch.training.recipe import Augmentation
from cvm_batch.training.recipes import find_recipe
from tests.archives import making
from tests.conftest import coloured_tiles

OWN = find_recipe("cvm-cervix-pbc8")
NOTHING = Augmentation(horizontal_flip=False, vertical_flip=False, quarter_turns=False)


def test_the_network_follows_the_inputs_size() -> None:
    """The recipe's own takes 224 px alone; that is no contradiction where it is exchanged."""
    resnet = with_network("resnet18", OWN, ["preprocessing.input_px=96"])
    assert resnet.architecture == SingleNetwork(name="resnet18")
    assert resnet.preprocessing.input_px == 96
    deit = with_network("deit_tiny_patch16_224@preprocessing.input_px=96", OWN)
    assert deit.architecture == SingleNetwork(name="deit_tiny_patch16_224", args={"img_size": 96})
    ours = with_network("cvm-cervix", OWN, ["preprocessing.input_px=96", "epochs=3"])
    assert isinstance(ours.architecture, Fusion)
    assert (ours.architecture.input_px, ours.epochs) == (96, 3)


def test_without_augmentation_is_one_change() -> None:
    assert OWN.augmentation.rotate
    plain = with_network("resnet18@augmentation=none", OWN)
    assert plain.augmentation == NOTHING
    both = with_network("cvm-cervix@augmentation=none@hidden=99", OWN)
    assert both.augmentation == NOTHING
    assert isinstance(both.architecture, Fusion)
    assert both.architecture.hidden == 99
    but = with_network("resnet18@augmentation=none@augmentation.jitter=0.1", OWN)
    assert but.augmentation.jitter == 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("hf-hub:timm/resnet18.a1_in1k", "no plain name.*--pretrained"),
        ("../weights", "no plain name"),
        ("resnet-18", "no plain name"),
        ("", "no plain name"),
        ("resnet_18", "no network 'resnet_18'.*Near it: resnet18"),
        ("cvm_cervix", "Near it: cvm-cervix"),
        ("resnet18@hidden=9", "no such width"),
        ("cvm-cervix@hidden=0", "no such width"),
        ("resnet18@colour=9", "sets no field"),
        ("resnet18@augmentation=some", "sets no field"),
    ],
)
def test_what_names_no_network_is_refused_with_advice(words: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_network(words, OWN)


def test_a_size_that_a_network_does_not_take_is_found_before_training() -> None:
    recipe = with_network("inception_v3", OWN, ["preprocessing.input_px=32"])
    with pytest.raises(UsageError, match=r"inception_v3 does not take images of 32 px \("):
        check_builds(recipe)


def call(command: object, *arguments: str | Path) -> str:
    threads = torch.get_num_threads()
    result = CliRunner().invoke(
        command,  # type: ignore[arg-type]
        [str(argument) for argument in arguments],
        catch_exceptions=False,
    )
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("name", ["test_resnet", "cvm-cervix@hidden=24"])
def test_a_network_becomes_a_bundle_that_serves(name: str, data: Path, tmp_path: Path) -> None:
    """One of timm outside the comparison, and an ablation."""
    fp32, fp16 = tmp_path / "fp32", tmp_path / "fp16"
    arguments = ("--data", data, "--recipe", "smoke", "--network", name, "--epochs", "1")
    call(train, *arguments, "--set", "stored=fp32", "--out", fp32, "--no-report")
    bundle = load_bundle(fp32)
    assert str(bundle.spec.architecture).startswith(name.partition("@")[0]) or "hidden" in name
    recipe = bundle.spec.provenance["recipe"]
    assert recipe["name"] == f"smoke-{name}"
    assert recipe["epochs"] == 1

    call(export, fp32, fp16)
    judged = json.loads(call(evaluate, "--model", fp16, "--data", data, "--json"))
    assert judged["cells"] == 120
    assert judged["digest"] == load_bundle(fp16).digest

    making.write_zip(tmp_path / "slides" / "a.zip", coloured_tiles([0, 3, 6] * 4))
    out = tmp_path / "results"
    inputs = (str(tmp_path / "slides"),)
    run(Settings(inputs=inputs, model=str(fp16), out=out, executor=ExecutorKind.LOCAL))
    with Results(out) as results:
        (row,) = results.query("SELECT status, cells_classified FROM slides").to_pylist()
    assert row == {"status": "complete", "cells_classified": 12}
