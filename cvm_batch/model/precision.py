"""Numeric precision: what there is, and which one a device should run."""

from __future__ import annotations

from enum import StrEnum

import torch

from cvm_batch.errors import UsageError


class Precision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self]

    @property
    def tolerance(self) -> float:
        """Largest probability difference from fp32 that sentinels may show."""
        return {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.05}[self]


def choose_precision(device: torch.device, wanted: Precision | None = None) -> Precision:
    """fp16 on GPUs, bf16 on CPUs with the instructions, else fp32; ``wanted`` wins.

    Raises UsageError for fp16 on a CPU, which has no arithmetic for it.
    """
    if wanted is Precision.FP16 and device.type == "cpu":
        raise UsageError(
            "Precision fp16 needs a GPU, and this replica runs on a CPU: "
            "use --precision bf16 or fp32, or leave the choice to cvm-batch."
        )
    if wanted is not None:
        return wanted
    if device.type == "cuda":
        return Precision.FP16
    return Precision.BF16 if cpu_has_bf16() else Precision.FP32


def cpu_has_bf16() -> bool:
    """True where the CPU multiplies bf16 itself; emulated, it is slower than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
