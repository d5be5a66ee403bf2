"""Every network of Table 3 as a bundle: written, exported to fp16, serving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cvm_batch.cli.demo import SLIDES
from cvm_batch.model.architecture import Architecture
from cvm_batch.model.backends.choosing import Backend
from cvm_batch.model.backends.classifier import folded
from cvm_batch.model.backends.starting import start_engine
from cvm_batch.model.bundle import (
    Bundle,
    BundleSpec,
    load_bundle,
    reference_probabilities,
    write_bundle,
)
from cvm_batch.model.classes import CVM_CERVIX_CLASSES
from cvm_batch.model.export import Export
from cvm_batch.model.precision import Precision
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.results.reading import Results
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings
from tests.conftest import CLASSES
from tests.model.comparison.smallest import (
    ALL,
    full_size,
    images,
    settled,
    shipped_cells,
    smallest,
    stirred,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ALL)
def test_a_bundle_is_written_exported_and_serves(name: str, tmp_path: Path) -> None:
    serves_as_a_bundle(*smallest(name), tmp_path)


@pytest.mark.campaign
@pytest.mark.parametrize("name", ALL)
def test_a_bundle_of_full_size_serves(name: str, tmp_path: Path) -> None:
    serves_as_a_bundle(full_size(name), 224, tmp_path)


@pytest.mark.campaign
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ALL)
def test_the_whole_sample_is_screened(name: str, tmp_path: Path) -> None:
    """By `submit`, to rows whose counts are those of the network itself, cell by cell."""
    architecture, side = smallest(name)
    torch.manual_seed(0)
    network = settled(architecture.build(CLASSES), side)
    bundle = written(architecture, network, side, tmp_path / "full")
    half = Export(bundle, tmp_path / "half", device=CPU).write()
    settings = Settings(
        inputs=(str(SLIDES),),
        model=str(half.path),
        out=tmp_path / "results",
        precision=Precision.FP32,
        executor=ExecutorKind.LOCAL,
    )
    summary = run(settings)
    assert {slide.slide_id for slide in summary.not_complete} == {"frame-ec342d2f-damaged.zip"}
    with Results(settings.out) as results:
        found = results.query(
            "SELECT probabilities FROM cells WHERE slide_id = 'frame-379c7ce2.zip' ORDER BY index"
        )["probabilities"].to_pylist()
        assert results.query("SELECT count(*) AS n FROM cells")["n"].to_pylist() == [summary.cells]
    assert summary.cells > 150
    cells = shipped_cells(0, len(found))
    truth = reference_probabilities(half.network(), half.spec.preprocessing, cells)
    np.testing.assert_allclose(np.array(found), truth, atol=1e-3)


def serves_as_a_bundle(architecture: Architecture, side: int, folder: Path) -> None:
    torch.manual_seed(0)
    network = settled(architecture.build(CLASSES), side)
    bundle = written(architecture, network, side, folder / "full")
    assert load_bundle(folder / "full").spec == bundle.spec
    half = Export(bundle, folder / "half", device=CPU).write()
    assert half.weights_bytes < 0.6 * bundle.weights_bytes

    engine = start_engine(half, device=CPU, precision=Precision.FP32)
    assert 0 <= engine.sentinel_difference <= 1e-4
    cells = shipped_cells(7, 15)
    found = engine.probabilities(cells)
    engine.close()
    full, stored = (
        reference_probabilities(each, bundle.spec.preprocessing, cells)
        for each in (network, half.network())
    )
    np.testing.assert_allclose(found, stored, atol=1e-4)
    np.testing.assert_allclose(found, full, atol=Precision.FP16.tolerance)
    assert np.ptp(found, axis=0).max() > 0.01, "cells that differ get probabilities that differ"


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", [Backend.COMPILED, Backend.OPENVINO])
@pytest.mark.parametrize("name", ALL)
def test_every_backend_reproduces_the_sentinels(
    name: str, backend: Backend, tmp_path: Path
) -> None:
    if backend is Backend.OPENVINO:
        pytest.importorskip("openvino")
    architecture, side = smallest(name)
    torch.manual_seed(0)
    network = settled(architecture.build(CLASSES), side)
    bundle = written(architecture, network, side, tmp_path / "full")
    engine = start_engine(bundle, device=CPU, precision=Precision.FP32, backend=backend)
    assert 0 <= engine.sentinel_difference <= 1e-4
    engine.close()


@pytest.mark.parametrize("name", ALL)
@torch.inference_mode()
def test_folding_changes_nothing(name: str) -> None:
    architecture, side = smallest(name)
    torch.manual_seed(0)
    network = settled(stirred(architecture.build(CLASSES)), side).double()
    cells = images(shipped_cells(7, 15), side).double()
    # In fp64, since through a hundred layers of random weights fp32 drifts by itself.
    torch.testing.assert_close(folded(network)(cells), network(cells), rtol=1e-6, atol=1e-6)


def written(architecture: Architecture, network: nn.Module, side: int, path: Path) -> Bundle:
    spec = BundleSpec(
        name=path.name,
        architecture=architecture,
        class_names=CVM_CERVIX_CLASSES,
        preprocessing=Preprocessing(input_px=side),
    )
    sentinels = np.stack(shipped_cells(0, 8))
    return write_bundle(path, spec, network, sentinels, card="# full\n")
