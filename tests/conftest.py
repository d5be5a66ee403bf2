"""Fixtures for all tests: a home of their own, and a bundle small enough to write at once.

The tiny bundle is no toy output: it tells 11 colours apart, one per class, so that a test
can make tiles whose class it knows (`coloured_tiles`).
"""

from __future__ import annotations

import colorsys
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cvm_batch.model.architecture import Backbone, Fusion
from cvm_batch.model.bundle import Bundle, BundleSpec, write_bundle
from cvm_batch.model.classes import CERVICAL_GROUPS, CVM_CERVIX_CLASSES, PRIMARY_GROUP
from cvm_batch.model.network import CvmCervix
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.model.registry import MODELS_VARIABLE

if TYPE_CHECKING:
    from tests.results.nights import Night

# Before anything starts Ray or imports huggingface_hub: no test reports usage or downloads.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop(MODELS_VARIABLE, None)

# Shells start what runs in the background with Ctrl-C ignored, and tests send it to processes
# that they start, which would ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CLASSES = len(CVM_CERVIX_CLASSES)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder of the test session's own, also for the processes that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(path))
        yield path


@pytest.fixture(scope="session")
def tiny_architecture() -> Fusion:
    """0.4 M parameters, for input of 32 px."""
    return Fusion(
        cnn=Backbone(name="test_resnet"),
        vt=Backbone(
            name="deit_tiny_patch16_224",
            args={"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2},
        ),
        hidden=64,
    )


@pytest.fixture(scope="session")
def tiny_spec(tiny_architecture: Fusion) -> BundleSpec:
    return BundleSpec(
        name="tiny",
        architecture=tiny_architecture,
        class_names=CVM_CERVIX_CLASSES,
        groups=CERVICAL_GROUPS,
        primary_group=PRIMARY_GROUP,
        preprocessing=Preprocessing(input_px=32),
        provenance={"recipe": "tests/conftest.py"},
    )


@pytest.fixture(scope="session")
def tiny_network(tiny_architecture: Fusion, tiny_spec: BundleSpec) -> CvmCervix:
    """Random features and a head fitted to colours. Copy it before changing it."""
    torch.manual_seed(0)
    network = CvmCervix(tiny_architecture, CLASSES).eval()
    classes = np.arange(12 * CLASSES) % CLASSES
    device = torch.device("cpu")
    with torch.inference_mode():
        images = tiny_spec.preprocessing.resize(coloured_tiles(classes, side=32), device)
        features = network.features(tiny_spec.preprocessing.normalise(images, torch.float32))
        _fit_last_layer(network.mlp, features, torch.from_numpy(classes))
    return network


@pytest.fixture(scope="session")
def tiny_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_spec: BundleSpec, tiny_network: CvmCervix
) -> Bundle:
    """fp32, the 11 classes and their groups, input 32 px. Copy its folder before damaging it."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    sentinels = coloured_tiles(range(CLASSES), seed=1)
    return write_bundle(path, tiny_spec, tiny_network, sentinels, card="# tiny\n")


@pytest.fixture(scope="session")
def night(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Night:
    """Results of two runs, with a slide of every kind. Copy the folder before changing it."""
    from tests.results.nights import make_night

    return make_night(tmp_path_factory.mktemp("night"), tiny_bundle)


def coloured_tiles(
    classes: Sequence[int] | NDArray[np.integer], *, side: int = 40, seed: int = 0
) -> NDArray[np.uint8]:
    """Noisy tiles uint8 [n, side, side, 3] that the tiny bundle puts in ``classes``."""
    colours = [colorsys.hsv_to_rgb(class_ / CLASSES, 0.6, 0.8) for class_ in classes]
    base = 255 * np.array(colours).reshape(-1, 1, 1, 3)
    noise = np.random.default_rng(seed).integers(-20, 21, (len(colours), side, side, 3))
    return np.clip(base + noise, 0, 255).astype(np.uint8)


def _fit_last_layer(
    mlp: torch.nn.Sequential, features: torch.Tensor, classes: torch.Tensor
) -> None:
    """Ridge regression in closed form: less than a second where training takes many."""
    hidden = mlp[:-1](features).double()
    design = torch.cat([hidden, torch.ones(len(hidden), 1, dtype=torch.float64)], dim=1)
    wanted = 8 * torch.nn.functional.one_hot(classes, CLASSES).double()
    ridge = 1e-4 * hidden.var() * len(hidden) * torch.eye(design.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(design.T @ design + ridge, design.T @ wanted).float()
    last = mlp[-1]
    assert isinstance(last, torch.nn.Linear)
    last.weight.copy_(solution[:-1].T)
    last.bias.copy_(solution[-1])
