from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cvm_batch.errors import UsageError
from cvm_batch.model import precision
from cvm_batch.model.precision import Precision, choose_precision

CPU, GPU = "cpu", "cuda"


def test_gpus_run_fp16() -> None:
    assert choose_precision(GPU) is Precision.FP16


@pytest.mark.parametrize(("faster", "expected"), [(True, "bf16"), (False, "fp32")])
def test_cpus_run_bf16_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, faster: bool, expected: str
) -> None:
    monkeypatch.setattr(precision, "cpu_prefers_bf16", lambda: faster)
    assert choose_precision(CPU) == expected


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "vendor", "faster"),
    [
        (True, True, "GenuineIntel", True),
        (False, True, "GenuineIntel", False),  # half the rate of fp32, as measured
        (False, True, "AuthenticAMD", True),
        (False, False, "AuthenticAMD", False),
    ],
)
def test_instructions_for_bf16_are_not_always_fast(
    tmp_path: Path, amx: bool, avx512_bf16: bool, vendor: str, faster: bool
) -> None:
    flags = "fpu sse2" + " avx512_bf16" * avx512_bf16 + " amx_bf16 amx_tile" * amx
    told = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n\n"
    (tmp_path / "cpuinfo").write_text(2 * told)
    assert precision.cpu_prefers_bf16(tmp_path / "cpuinfo") is faster


def test_this_cpu_is_told_as_pytorch_tells_it() -> None:
    amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    expected = torch.cpu._is_amx_tile_supported() or (amd and torch.cpu._is_avx512_bf16_supported())
    assert precision.cpu_prefers_bf16() == expected


@pytest.mark.parametrize(
    ("device", "wanted"),
    [(GPU, "fp32"), (GPU, "bf16"), (GPU, "fp16"), (CPU, "fp32"), (CPU, "bf16")],
    ids=str,
)
def test_what_is_wanted_wins(device: str, wanted: str) -> None:
    assert choose_precision(device, Precision(wanted)) == wanted


def test_fp16_on_a_cpu_is_wrong_use() -> None:
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        choose_precision(CPU, Precision.FP16)


def test_dtype_and_tolerance_of_each() -> None:
    assert {p: (p.dtype, p.tolerance) for p in Precision} == {
        "fp32": (torch.float32, 1e-3),
        "fp16": (torch.float16, 0.02),
        "bf16": (torch.bfloat16, 0.05),
    }
