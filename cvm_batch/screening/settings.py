"""What one run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cvm_batch.errors import UsageError
from cvm_batch.model.precision import Precision


class ExecutorKind(StrEnum):
    RAY = "ray"
    LOCAL = "local"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Checked at construction; raises UsageError."""

    inputs: tuple[Path, ...]
    """Slide archives, or folders of them."""
    model: str
    """A bundle's folder, or the name of a known one."""
    out: Path
    """The results folder; made where there is none."""
    precision: Precision | None = None
    """None: what the device does best."""
    executor: ExecutorKind = ExecutorKind.RAY
    replicas: int | None = None
    """None: one per GPU, or without GPUs one per node. For Ray alone."""
    batch_size: int | None = None
    """None: the engine's own choice."""
    address: str | None = None
    """A running Ray cluster; None starts Ray on this machine for the run."""

    def __post_init__(self) -> None:
        for name in ("replicas", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}.")
        if self.executor is ExecutorKind.LOCAL and (self.replicas or self.address):
            raise UsageError(
                "--replicas and --address are for --executor ray: the local executor runs one "
                "replica per GPU, or one on the CPU, in this process."
            )
        if not self.inputs:
            raise UsageError("Name at least one slide archive or folder of them.")
