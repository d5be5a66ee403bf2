"""Every network of Table 3 as a bundle: written, exported to fp16, serving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cvm_batch.model.backends.classifier import folded
from cvm_batch.model.backends.starting import start_engine
from cvm_batch.model.bundle import BundleSpec, load_bundle, reference_probabilities, write_bundle
from cvm_batch.model.classes import CVM_CERVIX_CLASSES
from cvm_batch.model.comparison.registry import COMPARED
from cvm_batch.model.export import Export
from cvm_batch.model.precision import Precision
from cvm_batch.model.preprocessing import Preprocessing
from tests.conftest import CLASSES
from tests.model.comparison.smallest import images, settled, shipped_cells, smallest, stirred

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", COMPARED)
def test_a_bundle_is_written_exported_and_serves(name: str, tmp_path: Path) -> None:
    architecture, side = smallest(name)
    torch.manual_seed(0)
    network = settled(architecture.build(CLASSES), side)
    spec = BundleSpec(
        name=name,
        architecture=architecture,
        class_names=CVM_CERVIX_CLASSES,
        preprocessing=Preprocessing(input_px=side),
    )
    write_bundle(tmp_path / "full", spec, network, np.stack(shipped_cells(0, 8)), card="# full\n")
    bundle = load_bundle(tmp_path / "full")
    assert bundle.spec == spec
    half = Export(bundle, tmp_path / "half", device=CPU).write()
    assert half.weights_bytes < 0.6 * bundle.weights_bytes

    engine = start_engine(half, device=CPU, precision=Precision.FP32)
    assert 0 <= engine.sentinel_difference <= 1e-4
    cells = shipped_cells(7, 15)
    found = engine.probabilities(cells)
    engine.close()
    full, stored = (
        reference_probabilities(each, spec.preprocessing, cells)
        for each in (network, half.network())
    )
    np.testing.assert_allclose(found, stored, atol=1e-4)
    np.testing.assert_allclose(found, full, atol=Precision.FP16.tolerance)
    assert np.ptp(found, axis=0).max() > 0.01, "cells that differ get probabilities that differ"


@pytest.mark.parametrize("name", COMPARED)
@torch.inference_mode()
def test_folding_changes_nothing(name: str) -> None:
    architecture, side = smallest(name)
    torch.manual_seed(0)
    network = settled(stirred(architecture.build(CLASSES)), side).double()
    cells = images(shipped_cells(7, 15), side).double()
    # In fp64, since through a hundred layers of random weights fp32 drifts by itself.
    torch.testing.assert_close(folded(network)(cells), network(cells), rtol=1e-6, atol=1e-6)
