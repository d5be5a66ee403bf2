from __future__ import annotations

import pytest

from cvm_batch.errors import UsageError
from cvm_batch.model.backends import choosing
from cvm_batch.model.backends.choosing import Backend, Work, choose_backend
from cvm_batch.model.precision import Precision

FULL_SIZE = 11.6


def work(tiles: int, *, device: str = "cpu", processors: int = 2) -> Work:
    return Work(tiles=tiles, gflop=lambda: FULL_SIZE, device_type=device, processors=processors)


@pytest.fixture(params=[True, False], ids=["openvino", "bare"])
def openvino(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(choosing, "openvino_installed", lambda: request.param)
    return bool(request.param)


def test_few_tiles_are_not_worth_a_conversion(openvino: bool) -> None:
    assert choose_backend(work(100), Precision.FP32) is Backend.EAGER


def test_a_night_on_cpus_takes_openvino_where_it_is(openvino: bool) -> None:
    expected = Backend.OPENVINO if openvino else Backend.EAGER
    assert choose_backend(work(100_000), Precision.BF16) is expected


def test_more_cpus_need_more_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "openvino_installed", lambda: True)
    assert choose_backend(work(2_000, processors=2), Precision.FP32) is Backend.OPENVINO
    assert choose_backend(work(2_000, processors=64), Precision.FP32) is Backend.EAGER


def test_small_networks_are_counted_where_it_may_matter() -> None:
    tiles = 10_000
    small = Work(tiles=tiles, gflop=lambda: 0.1, device_type="cpu", processors=2)
    assert choose_backend(small, Precision.FP32) is Backend.EAGER


def test_little_work_is_not_counted() -> None:
    def count() -> float:
        raise AssertionError("counting loads PyTorch")

    few = Work(tiles=100, gflop=count, device_type="cpu", processors=2)
    assert choose_backend(few, Precision.FP32) is Backend.EAGER


def test_gpus_compile_for_long_nights_alone() -> None:
    assert choose_backend(work(10**5, device="cuda"), Precision.FP16) is Backend.EAGER
    assert choose_backend(work(10**8, device="cuda"), Precision.FP16) is Backend.COMPILED
    assert choose_backend(work(0, device="cuda", processors=0), Precision.FP16) is Backend.EAGER


@pytest.mark.parametrize("wanted", [Backend.EAGER, Backend.COMPILED])
def test_what_is_wanted_wins(wanted: Backend) -> None:
    assert choose_backend(work(1), Precision.FP32, wanted) is wanted
    assert choose_backend(work(10**9, device="cuda"), Precision.FP16, wanted) is wanted


def test_openvino_on_request(openvino: bool) -> None:
    if openvino:
        assert choose_backend(work(1), Precision.BF16, Backend.OPENVINO) is Backend.OPENVINO
        return
    with pytest.raises(UsageError, match=r"cvm-batch\[openvino\]"):
        choose_backend(work(1), Precision.BF16, Backend.OPENVINO)


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [("cuda", Precision.FP16, "runs on CPUs"), ("cpu", Precision.FP16, "fp32 and bf16")],
)
def test_openvino_where_it_cannot_run(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: Precision, words: str
) -> None:
    monkeypatch.setattr(choosing, "openvino_installed", lambda: True)
    with pytest.raises(UsageError, match=words):
        choose_backend(work(1, device=device), precision, Backend.OPENVINO)
