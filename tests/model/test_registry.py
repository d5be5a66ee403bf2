from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cvm_batch.errors import BundleNotFoundError
from cvm_batch.model import registry
from cvm_batch.model.backends.starting import start_engine
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision
from cvm_batch.model.registry import MODELS_VARIABLE, find_bundle, known_bundles


@pytest.fixture
def own_folder(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle) -> Path:
    folder = tiny_bundle.path.parent
    monkeypatch.setenv(MODELS_VARIABLE, str(folder))
    return folder


def test_by_path(tiny_bundle: Bundle) -> None:
    assert find_bundle(str(tiny_bundle.path)) == tiny_bundle


def test_by_name_in_ones_own_folder(own_folder: Path, tiny_bundle: Bundle) -> None:
    assert known_bundles()["tiny"] == own_folder / "tiny"
    assert find_bundle("tiny") == tiny_bundle


def test_shipped_bundles_are_sound() -> None:
    for name in known_bundles():
        bundle = find_bundle(name)
        assert bundle.spec.name == name
        engine = start_engine(bundle, device=torch.device("cpu"), precision=Precision.FP32)
        assert engine.sentinel_difference <= engine.precision.tolerance


def test_ones_own_wins_over_a_shipped_one_of_that_name(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped = tmp_path / "tiny" / "bundle.json"
    shipped.parent.mkdir()
    shipped.write_text("{}")
    monkeypatch.setattr(registry, "_SHIPPED", tmp_path)
    assert known_bundles() == {"tiny": own_folder / "tiny"}


def test_a_path_wins_over_a_name(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_bundle: Bundle
) -> None:
    (tmp_path / "tiny").symlink_to(tiny_bundle.path)
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path)
    assert find_bundle("tiny").digest == tiny_bundle.digest


def test_an_unknown_name_says_what_there_is(own_folder: Path) -> None:
    with pytest.raises(BundleNotFoundError) as caught:
        find_bundle("no-such-model")
    message = str(caught.value)
    assert "'no-such-model'" in message
    assert "tiny" in message
    assert MODELS_VARIABLE in message


def test_a_models_folder_that_is_missing_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "missing"))
    assert set(known_bundles()) == {path.name for path in registry._SHIPPED.glob("*")}
