"""One contract for every backend, precision and device that this machine has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch

from cvm_batch.errors import SentinelError
from cvm_batch.model.backends.choosing import Backend, openvino_installed
from cvm_batch.model.backends.starting import start_engine
from cvm_batch.model.bundle import Bundle, Sentinels, reference_probabilities
from cvm_batch.model.engine import InferenceEngine
from cvm_batch.model.precision import Precision
from tests.conftest import CLASSES, coloured_tiles

EVERY_CLASS = np.arange(3 * CLASSES) % CLASSES


def cases() -> Iterator[pytest.ParameterSet]:
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    no_openvino = pytest.mark.skipif(not openvino_installed(), reason="needs openvino")
    for backend, precision in product(Backend, (Precision.FP32, Precision.BF16)):
        marks = [no_openvino] if backend is Backend.OPENVINO else []
        yield pytest.param(
            ("cpu", backend, precision), marks=marks, id=f"cpu-{backend}-{precision}"
        )
    for backend, precision in product((Backend.EAGER, Backend.COMPILED), Precision):
        yield pytest.param(
            ("cuda", backend, precision), marks=no_gpu, id=f"cuda-{backend}-{precision}"
        )


@pytest.fixture(scope="module", params=cases())
def engine(request: pytest.FixtureRequest, tiny_bundle: Bundle) -> Iterator[InferenceEngine]:
    device, backend, precision = request.param
    found = start_engine(
        tiny_bundle, device=torch.device(device), precision=precision, backend=backend
    )
    yield found
    found.close()


def reference(bundle: Bundle, tiles: np.ndarray) -> np.ndarray:
    return reference_probabilities(bundle.network(), bundle.spec.preprocessing, tiles)


def test_reproduces_the_sentinels(engine: InferenceEngine) -> None:
    assert 0 <= engine.sentinel_difference <= engine.precision.tolerance


def test_is_close_to_the_fp32_reference(engine: InferenceEngine, tiny_bundle: Bundle) -> None:
    tiles = coloured_tiles(EVERY_CLASS, side=40)
    measured, expected = engine.probabilities(tiles), reference(tiny_bundle, tiles)
    assert measured.dtype == np.float32
    assert measured.shape == (len(tiles), CLASSES)
    assert np.abs(measured - expected).max() <= engine.precision.tolerance
    if engine.precision is Precision.FP32:
        np.testing.assert_allclose(measured, expected, atol=1e-5)
    np.testing.assert_array_equal(measured.argmax(axis=1), EVERY_CLASS)


@pytest.mark.parametrize("count", [1, 2, 7, 9, 33])
def test_any_number_of_tiles(engine: InferenceEngine, count: int) -> None:
    tiles = coloured_tiles(np.arange(count) % CLASSES, side=40)
    together = engine.probabilities(tiles)
    one_by_one = np.concatenate([engine.probabilities(tile[None]) for tile in tiles])
    # In low precision a kernel may add up in another order for another number of rows.
    np.testing.assert_allclose(together, one_by_one, atol=engine.precision.tolerance / 10)
    np.testing.assert_array_equal(together.argmax(axis=1), one_by_one.argmax(axis=1))


def test_no_tiles(engine: InferenceEngine) -> None:
    assert engine.probabilities(coloured_tiles([0])[:0]).shape == (0, CLASSES)
    assert engine.probabilities([]).shape == (0, CLASSES)


def test_tiles_of_varying_size_in_order(engine: InferenceEngine) -> None:
    sides = (40, 32, 24, 40, 100, 31, 24, 32, 200)
    tiles = [coloured_tiles([class_], side=side)[0] for class_, side in enumerate(sides)]
    found = engine.probabilities(tiles)
    one_by_one = np.concatenate([engine.probabilities(tile[None]) for tile in tiles])
    np.testing.assert_allclose(found, one_by_one, atol=engine.precision.tolerance / 10)
    np.testing.assert_array_equal(found.argmax(axis=1), range(len(sides)))


def test_batches_under_way_do_not_mix(engine: InferenceEngine) -> None:
    batches = [coloured_tiles(np.full(engine.batch_size, n % CLASSES)) for n in range(20)]
    started = [engine.start(batch) for batch in batches]
    for n, future in enumerate(started):
        found = future.result()
        assert (found.probabilities.argmax(axis=1) == n % CLASSES).all()
        assert found.seconds > 0


def test_answers_stay_as_they_are(engine: InferenceEngine) -> None:
    first = engine.start(coloured_tiles([1])).result().probabilities
    kept = first.copy()
    engine.probabilities(coloured_tiles(EVERY_CLASS))
    np.testing.assert_array_equal(first, kept)


def test_tiles_that_may_not_be_written(engine: InferenceEngine) -> None:
    tiles = coloured_tiles([3], side=32)
    tiles.setflags(write=False)
    assert engine.probabilities(tiles).argmax() == 3


@pytest.mark.parametrize("backend", [Backend.EAGER, Backend.OPENVINO])
def test_sentinels_of_another_model_are_refused(
    tiny_bundle: Bundle, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend is Backend.OPENVINO:
        pytest.importorskip("openvino")
    known = tiny_bundle.sentinels()
    other = Sentinels(known.tiles, np.roll(known.probabilities, 1, axis=1))
    monkeypatch.setattr(Bundle, "sentinels", lambda _: other)
    with pytest.raises(SentinelError, match="may not serve"):
        start_engine(tiny_bundle, precision=Precision.FP32, backend=backend)


@pytest.mark.skipif(not openvino_installed(), reason="needs openvino")
def test_openvino_calls_nobody(tiny_bundle: Bundle) -> None:
    # In a process of its own: another test may have let the benchmark's peer load all of it.
    script = f"""
import sys
from pathlib import Path
from cvm_batch.model.backends.choosing import Backend
from cvm_batch.model.backends.starting import start_engine
from cvm_batch.model.bundle import load_bundle
from cvm_batch.model.precision import Precision

bundle = load_bundle(Path({str(tiny_bundle.path)!r}))
start_engine(bundle, precision=Precision.FP32, backend=Backend.OPENVINO).close()
assert sys.modules["openvino_telemetry"] is None
# What its converter takes instead has no way out.
from openvino.tools.ovc import telemetry_utils
assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"
"""
    subprocess.run([sys.executable, "-c", script], check=True)
