"""Damaged: the network's answer for one cell, NaN.

Expected: ``failed``, ``non_finite_output``, exit code 3; the other slides do not suffer.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from cvm_batch.errors import Reason
from cvm_batch.model.backends.choosing import Backend, openvino_installed
from cvm_batch.model.bundle import BundleSpec, write_bundle
from cvm_batch.model.network import CvmCervix
from cvm_batch.results.schemas import Status
from tests.archives.making import write_folder
from tests.conftest import CLASSES, coloured_tiles
from tests.faults.night import Expected, Night, slide_of

EXPECTED = Expected(Status.FAILED, Reason.NON_FINITE_OUTPUT)
BACKENDS = [Backend.EAGER, *([Backend.OPENVINO] if openvino_installed() else [])]
#: No class has this colour.
BLACK = np.zeros((1, 40, 40, 3), np.uint8)


@pytest.fixture
def night(tmp_path: Path, tiny_spec: BundleSpec, tiny_network: CvmCervix) -> Night:
    """Its network overflows on black cells: one hidden unit sees them, and is amplified."""
    network = deepcopy(tiny_network)
    colours = coloured_tiles(np.arange(5 * CLASSES) % CLASSES)
    with torch.no_grad():
        black, others = (_features(network, tiny_spec, tiles) for tiles in (BLACK, colours))
        direction = black[0] - others.mean(dim=0)
        middle = ((others @ direction).max() + (black @ direction)[0]) / 2
        first, last = network.mlp[0], network.mlp[-1]
        assert isinstance(first, torch.nn.Linear)
        assert isinstance(last, torch.nn.Linear)
        first.weight[0] = 1e20 * direction
        first.bias[0] = -1e20 * middle
        last.weight[:, 0] = 1e25
    bundle = write_bundle(tmp_path / "bundle", tiny_spec, network, colours[:CLASSES], card="# x\n")
    return Night(tmp_path, bundle)


def _features(network: CvmCervix, spec: BundleSpec, tiles: np.ndarray) -> torch.Tensor:
    images = spec.preprocessing.resize(tiles, torch.device("cpu"))
    return network.features(spec.preprocessing.normalise(images, torch.float32))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_cell_overflows(night: Night, backend: Backend) -> None:
    cells = slide_of()
    tiles = np.concatenate([cells.tiles[:7], BLACK, cells.tiles[8:]])
    write_folder(night.slides / "slide", tiles)
    row = night.submit(backend=backend).assert_ends("slide", EXPECTED)
    assert "tile 7" in row["detail"]
    assert row["backend"] == backend


def test_a_lasting_failure_is_kept(night: Night) -> None:
    write_folder(night.slides / "slide", BLACK)
    first = night.submit().rows["slide"]
    again = night.submit()
    assert again.rows["slide"]["run_id"] == first["run_id"]
    again.assert_ends("slide", EXPECTED)
