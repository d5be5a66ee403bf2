"""Numeric precision: what there is, and which one a device should run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from cvm_batch.errors import UsageError

if TYPE_CHECKING:
    import torch


class Precision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"

    @property
    def dtype(self) -> torch.dtype:
        import torch  # here: a plan names precisions and computes nothing

        return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self]

    @property
    def tolerance(self) -> float:
        """Largest probability difference from fp32 that sentinels may show."""
        return {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.05}[self]


def choose_precision(device_type: str, wanted: Precision | None = None) -> Precision:
    """fp16 on GPUs (``cuda``), bf16 on CPUs that are faster in it, else fp32; ``wanted`` wins.

    Raises UsageError for fp16 on a CPU, which has no arithmetic for it.
    """
    if wanted is Precision.FP16 and device_type == "cpu":
        raise UsageError(
            "Precision fp16 needs a GPU, and this replica runs on a CPU: "
            "use --precision bf16 or fp32, or leave the choice to cvm-batch."
        )
    if wanted is not None:
        return wanted
    if device_type == "cuda":
        return Precision.FP16
    return Precision.BF16 if cpu_prefers_bf16() else Precision.FP32


def cpu_prefers_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """True where the CPU multiplies bf16 faster than fp32.

    Having the instructions is not enough: AMX has 8 times the rate of fp32 and AMD's AVX-512
    twice, but Intel's AVX-512 without AMX (also where a virtual machine hides it) half
    (docs/decisions/0014).
    """
    told = cpuinfo.read_text()
    first = re.search(r"^flags\s*:(.*)$", told, re.MULTILINE)
    flags = first[1].split() if first else []  # none is told on ARM
    return "amx_bf16" in flags or ("avx512_bf16" in flags and "AuthenticAMD" in told)


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Let fp32 be fp32 on a GPU within: TF32, cuDNN's default, rounds to 10 bits."""
    import torch

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, matmul.allow_tf32)
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
