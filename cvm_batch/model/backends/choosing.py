"""Which backend a run uses: chosen once, since every replica must use the same one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec

from cvm_batch.errors import UsageError
from cvm_batch.model.precision import Precision


class Backend(StrEnum):
    EAGER = "torch-eager"
    """PyTorch as it is, on GPUs replayed as a CUDA graph."""
    COMPILED = "torch-compile"
    """PyTorch through Inductor."""
    OPENVINO = "openvino"
    """CPUs alone; an optional dependency."""


#: GFLOP per CPU from which OpenVINO's 9 s of conversion pay: it saves 2.5 ms on each
#: (docs/performance.md).
_OPENVINO_PAYS = 4_000
#: GFLOP per GPU from which Inductor's 27 s pay: on an H100 it saves 1 % (docs/performance.md).
_COMPILING_PAYS = 3.5e8
#: GFLOP of a tile for CVM-Cervix in full size. Where that would be too little work to prepare
#: for, a network's own need not be counted, which loads PyTorch.
_FULL_SIZE_GFLOP = 11.6


@dataclass(frozen=True)
class Work:
    """What waits for the devices of a run."""

    tiles: int
    gflop: Callable[[], float]
    """Counts that of one tile; called where it may decide."""
    device_type: str
    """``cuda`` or ``cpu``."""
    processors: int
    """GPUs, or CPUs where there are none, of all replicas together."""

    def pays(self, least_gflop: float) -> bool:
        """Whether each processor has more than that to do."""
        tiles_each = self.tiles / max(1, self.processors)
        if tiles_each * _FULL_SIZE_GFLOP <= least_gflop:
            return False
        return tiles_each * self.gflop() > least_gflop


def choose_backend(work: Work, precision: Precision, wanted: Backend | None = None) -> Backend:
    """The fastest one, its preparation counted in; ``wanted`` wins.

    Raises UsageError where the wanted one cannot be had.
    """
    if wanted is Backend.OPENVINO:
        _refuse_openvino(work.device_type, precision)
    if wanted is not None:
        return wanted
    if work.device_type == "cuda":
        return Backend.COMPILED if work.pays(_COMPILING_PAYS) else Backend.EAGER
    if openvino_installed() and work.pays(_OPENVINO_PAYS):
        return Backend.OPENVINO
    return Backend.EAGER


def openvino_installed() -> bool:
    return find_spec("openvino") is not None


def _refuse_openvino(device_type: str, precision: Precision) -> None:
    if device_type != "cpu":
        raise UsageError(
            "--backend openvino runs on CPUs, and this run has GPUs: leave the choice to cvm-batch."
        )
    if not openvino_installed():
        raise UsageError(
            "--backend openvino needs the package openvino: pip install 'cvm-batch[openvino]', "
            "on every node."
        )
    if precision is Precision.FP16:
        raise UsageError("--backend openvino has fp32 and bf16, not fp16.")
