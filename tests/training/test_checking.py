"""What `train` finds out of a bundle before anybody serves it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from cvm_batch.cli.train import train as command
from cvm_batch.errors import AgreementError, SentinelError
from cvm_batch.model.architecture import Architecture
from cvm_batch.model.bundle import Bundle, BundleSpec, write_bundle
from cvm_batch.model.precision import Precision
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.model.registry import MODELS_VARIABLE, history
from cvm_batch.training import publish as publish_module
from cvm_batch.training import recipes as recipes_module
from cvm_batch.training.checking import Fp16, check_served
from cvm_batch.training.recipe import Recipe
from tests.conftest import coloured_tiles
from tests.training.conftest import write_cells

TILES = coloured_tiles([0, 3, 6, 0], side=40)


@pytest.fixture
def network(tiny_architecture: Architecture) -> torch.nn.Module:
    torch.manual_seed(0)
    return tiny_architecture.build(3).eval()


def written(path: Path, architecture: Architecture, network: torch.nn.Module) -> Bundle:
    spec = BundleSpec(
        name=path.name,
        architecture=architecture,
        class_names=("a", "b", "c"),
        preprocessing=Preprocessing(input_px=32),
        precision=Precision.FP32,
    )
    return write_bundle(path, spec, network, TILES, card="# A card\n")


def test_a_sound_bundle_agrees_and_another_networks_is_found_out(
    tmp_path: Path, tiny_architecture: Architecture, network: torch.nn.Module
) -> None:
    bundle = written(tmp_path / "a", tiny_architecture, network)
    found = check_served(bundle, network, TILES)
    assert found.fault is None
    assert found.agreement is not None
    assert (found.agreement.tiles, found.agreement.same) == (8, 8)
    assert str(found).startswith("in fp16, 8 of 8 tiles keep their class")
    # As if rounding had turned every class into the next.
    with torch.no_grad():
        last = [weight for weight in network.parameters() if weight.shape[0] == 3]
        for weight in last:
            weight.copy_(weight.roll(1, dims=0))
    turned = check_served(bundle, network, TILES)
    assert turned.fault is not None
    assert "must keep their class" in turned.fault
    assert "--precision fp32" in str(turned)


def test_sentinels_that_are_not_reproduced_end_the_training(
    tmp_path: Path,
    tiny_architecture: Architecture,
    network: torch.nn.Module,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = written(tmp_path / "a", tiny_architecture, network)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.3)
    monkeypatch.setattr(Bundle, "network", lambda self: network)
    with pytest.raises(SentinelError):
        check_served(bundle, network, TILES)


def test_a_bundle_that_fp16_does_not_hold_is_written_and_not_registered(
    tmp_path: Path, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_cells(tmp_path / "data", frames=5)
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "models"))
    monkeypatch.setattr(recipes_module, "RECIPES", {"tiny": tiny_recipe})
    fault = Fp16(fault="Module mlp.0 reaches 70,000 in fp32.")
    monkeypatch.setattr(publish_module, "check_served", lambda *given: fault)
    arguments = ["--data", str(data), "--recipe", "tiny", "--out", str(tmp_path / "mine")]
    arguments += ["--epochs", "1", "--no-report", "--promote", "nightly"]
    with pytest.raises(AgreementError, match=r"not registered as nightly\. Module mlp\.0 reaches"):
        CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert (tmp_path / "mine").is_dir()
    assert not history("nightly")
