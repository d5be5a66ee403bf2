from __future__ import annotations

import numpy as np
import pytest
import torch

from cvm_batch.errors import SentinelError
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.engine import InferenceEngine, TorchEngine, default_device, verify_sentinels
from cvm_batch.model.precision import Precision
from tests.conftest import CLASSES, coloured_tiles

CPU = torch.device("cpu")
EVERY_CLASS = np.arange(2 * CLASSES) % CLASSES


@pytest.fixture(scope="module")
def engine(tiny_bundle: Bundle) -> TorchEngine:
    return fp32_engine(tiny_bundle)


def fp32_engine(bundle: Bundle, batch_size: int | None = None) -> TorchEngine:
    return TorchEngine(bundle, device=CPU, precision=Precision.FP32, batch_size=batch_size)


def last_layer(engine: TorchEngine) -> torch.nn.Linear:
    layer = engine._network.mlp[-1]
    assert isinstance(layer, torch.nn.Linear)
    return layer


def test_is_an_inference_engine(engine: TorchEngine) -> None:
    seam: InferenceEngine = engine
    assert (seam.precision, seam.backend, seam.batch_size) == (Precision.FP32, "torch-eager", 32)


def test_recognises_each_class(engine: TorchEngine) -> None:
    probabilities = engine.probabilities(coloured_tiles(EVERY_CLASS, side=40))
    assert probabilities.shape == (len(EVERY_CLASS), CLASSES)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), EVERY_CLASS)


def test_tiles_of_varying_size(engine: TorchEngine) -> None:
    sides = (40, 32, 24, 40)
    tiles = [coloured_tiles([class_], side=side)[0] for class_, side in enumerate(sides)]
    together = engine.probabilities(tiles)
    one_by_one = np.concatenate([engine.probabilities(tile[None]) for tile in tiles])
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)
    np.testing.assert_array_equal(together.argmax(axis=1), range(len(sides)))


def test_batch_size_does_not_change_the_result(tiny_bundle: Bundle, engine: TorchEngine) -> None:
    tiles = coloured_tiles(EVERY_CLASS, side=40)
    expected = engine.probabilities(tiles)
    for batch_size in (1, 7):
        measured = fp32_engine(tiny_bundle, batch_size).probabilities(tiles)
        np.testing.assert_allclose(measured, expected, atol=1e-5)


def test_sentinels_hold_in_fp32(tiny_bundle: Bundle, engine: TorchEngine) -> None:
    assert verify_sentinels(engine, tiny_bundle.sentinels()) <= 1e-5


def test_sentinels_hold_in_the_precision_of_this_device(tiny_bundle: Bundle) -> None:
    engine = TorchEngine(tiny_bundle)
    assert engine.device == default_device()
    assert verify_sentinels(engine, tiny_bundle.sentinels()) <= engine.precision.tolerance


def test_bf16_is_close_to_fp32(tiny_bundle: Bundle, engine: TorchEngine) -> None:
    bf16 = TorchEngine(tiny_bundle, device=CPU, precision=Precision.BF16)
    tiles = coloured_tiles(EVERY_CLASS, side=40)
    measured, expected = bf16.probabilities(tiles), engine.probabilities(tiles)
    assert measured.dtype == np.float32
    assert 0 < np.abs(measured - expected).max() < Precision.BF16.tolerance


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", Precision)
def test_gpu_is_close_to_fp32_on_the_cpu(
    tiny_bundle: Bundle, engine: TorchEngine, precision: Precision
) -> None:
    gpu = TorchEngine(tiny_bundle, device=torch.device("cuda", 0), precision=precision)
    tiles = coloured_tiles(EVERY_CLASS, side=40)
    difference = np.abs(gpu.probabilities(tiles) - engine.probabilities(tiles)).max()
    assert difference < precision.tolerance


@pytest.mark.parametrize("factor", [1.5, float("nan")])
def test_a_changed_weight_is_found(tiny_bundle: Bundle, factor: float) -> None:
    broken = fp32_engine(tiny_bundle)
    with torch.no_grad():
        last_layer(broken).weight *= factor
    with pytest.raises(SentinelError, match="may not serve"):
        verify_sentinels(broken, tiny_bundle.sentinels())


def test_sentinels_of_another_model_are_refused(tiny_bundle: Bundle, engine: TorchEngine) -> None:
    sentinels = tiny_bundle.sentinels()
    sentinels.probabilities[0, 0] = float("nan")
    with pytest.raises(SentinelError, match="largest probability difference nan"):
        verify_sentinels(engine, sentinels)


def test_what_is_not_finite_is_handed_back(tiny_bundle: Bundle) -> None:
    broken = fp32_engine(tiny_bundle)
    with torch.no_grad():
        last_layer(broken).bias[3] = float("inf")
    assert not np.isfinite(broken.probabilities(coloured_tiles([0]))).all()


def test_threads(tiny_bundle: Bundle) -> None:
    before = torch.get_num_threads()
    try:
        TorchEngine(tiny_bundle, device=CPU, precision=Precision.FP32, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
