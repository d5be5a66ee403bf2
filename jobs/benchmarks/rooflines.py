"""How fast a device could be at best: the bound that contestants are held against.

Each kernel takes as long as its arithmetic or its memory traffic, whichever is longer; a
tile takes as long as its kernels together. The kernels are those of a perfectly fused
network: batch normalisation, activations and residual additions cost nothing of their own,
and attention keeps its scores on the chip.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from cvm_batch.cpus import usable_cpus
from cvm_batch.model.architecture import Architecture
from cvm_batch.model.precision import Precision

_MATRIX = 4096
_REPETITIONS = 3
#: Images that share one reading of the weights.
_BATCH = 256

_aten = torch.ops.aten
#: They read their operands and write their result; what follows them is fused into them.
_KERNELS = {
    _aten.convolution,
    _aten.addmm,
    _aten.mm,
    _aten.max_pool2d_with_indices,
    _aten.mean,
    _aten.native_layer_norm,
}
#: Fused into the kernel before, which has to read the other operand.
_RESIDUALS = {_aten.add, _aten.add_}


@dataclass(frozen=True)
class Peak:
    """What a device can do at most in one precision."""

    flops: float
    """Floating-point operations a second, a multiply-add counted as two."""
    bandwidth: float | None = None
    """Bytes a second to and from the device's memory; None where arithmetic alone counts."""


@dataclass(frozen=True)
class Kernel:
    """What one image costs in one kernel."""

    flop: float
    elements: float
    """Numbers read and written."""


class Roofline:
    """Of one network on one device, in some precisions."""

    def __init__(
        self,
        kernels: Sequence[Kernel],
        device: torch.device,
        precisions: Sequence[Precision],
    ) -> None:
        """A CPU's has to be measured; a GPU that is not known has none."""
        self._kernels = kernels
        self._precisions = precisions
        self._is_cpu = device.type == "cpu"
        self.peaks: dict[Precision, Peak] = {}
        if not self._is_cpu:
            self.peaks |= published_peaks(torch.cuda.get_device_name(device), precisions)

    def measure(self) -> None:
        """Look at a CPU's peak once more. The best counts, since whoever else uses the machine
        can only lower it."""
        for precision in self._precisions if self._is_cpu else ():
            flops = _matmul_flops(precision)
            if precision not in self.peaks or flops > self.peaks[precision].flops:
                self.peaks[precision] = Peak(flops)

    def bounds(self) -> dict[Precision, float]:
        """Tiles a second that no implementation passes."""
        return {
            precision: bound(self._kernels, peak, precision)
            for precision, peak in self.peaks.items()
        }


def bound(kernels: Sequence[Kernel], peak: Peak, precision: Precision) -> float:
    """Tiles a second, where every kernel runs as fast as the device can."""
    seconds_a_number = precision.dtype.itemsize / peak.bandwidth if peak.bandwidth else 0.0
    return 1 / sum(
        max(kernel.flop / peak.flops, kernel.elements * seconds_a_number) for kernel in kernels
    )


def kernels_of(architecture: Architecture, classes: int, side: int) -> list[Kernel]:
    """The kernels for images [3, side, side]."""
    with torch.device("meta"):
        network = architecture.build(classes).eval()
        images = torch.empty(_BATCH, 3, side, side)
    recorder = _Recorder()
    with recorder, torch.no_grad():
        network(images)
    return recorder.kernels


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        kind = func.overloadpacket
        count = flop_registry.get(kind)
        flop = count(*args, **kwargs, out_val=result) if count else 0
        elements = 0
        if kind in _KERNELS:
            elements = sum(map(_elements, tree_leaves((args, result))))
        elif kind in _RESIDUALS:
            elements = _elements(result)
        if flop or elements:
            self.kernels.append(Kernel(flop / _BATCH, elements / _BATCH))
        return result


def _elements(value: Any) -> int:
    """Of a floating-point tensor: the indices of a pooling are never written."""
    return value.numel() if isinstance(value, Tensor) and value.is_floating_point() else 0


def _matmul_flops(precision: Precision) -> float:
    """Of this machine's CPU, in a large matrix product: the best of some."""
    torch.set_num_threads(usable_cpus())
    left, right = torch.randn(2, _MATRIX, _MATRIX).to(precision.dtype)
    seconds = []
    for _ in range(_REPETITIONS):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return float(2 * _MATRIX**3 / min(seconds))


#: Words of a GPU's name, and dense TFLOP/s in fp16 or bf16, in fp32, TB/s: as in NVIDIA's
#: data sheets, H200's and H100's first and last as measured. In fp32 it is TF32 where there
#: is such, since PyTorch's convolutions use it unless they are told not to.
_GPUS: tuple[tuple[str, float, float, float], ...] = (
    ("H200", 790, 495, 4.3),
    ("H100 NVL", 835, 418, 3.9),
    ("H100 PCIe", 756, 378, 2.0),
    ("H100", 762, 495, 3.0),
    ("A100 40GB", 312, 156, 1.555),
    ("A100 80GB PCIe", 312, 156, 1.935),
    ("A100", 312, 156, 2.039),
    ("L40S", 362, 183, 0.864),
    ("L4", 121, 60, 0.3),
    ("A10", 125, 62.5, 0.6),
    ("V100", 125, 15.7, 0.9),
    ("T4", 65, 8.1, 0.32),
)


def published_peaks(name: str, precisions: Sequence[Precision]) -> dict[Precision, Peak]:
    """Of the GPU that calls itself ``name``; empty for one that is not in the list."""
    words = set(re.findall(r"\w+", name))
    for known, half, single, bandwidth in _GPUS:
        if set(known.split()) <= words:
            return {
                precision: Peak(
                    1e12 * (single if precision is Precision.FP32 else half), 1e12 * bandwidth
                )
                for precision in precisions
            }
    return {}
