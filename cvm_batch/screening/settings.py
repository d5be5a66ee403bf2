"""What one run is asked to do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from cvm_batch.archives.opening import ArrayNames, OpenOptions
from cvm_batch.archives.scale import LEAST_MPP, MOST_MPP, sensible
from cvm_batch.errors import UsageError
from cvm_batch.jobfiles import SHIPPED_BUNDLE
from cvm_batch.model.backends.choosing import Backend
from cvm_batch.model.bundle import SPEC_FILE, BundleSpec
from cvm_batch.model.precision import Precision
from cvm_batch.remote.addresses import absolute, is_remote
from cvm_batch.results.stores.store import results_root
from cvm_batch.screening.policy import LeasePolicy


class ExecutorKind(StrEnum):
    RAY = "ray"
    LOCAL = "local"


class DecodeOn(StrEnum):
    """Where tiles are decoded."""

    REPLICA = "replica"
    """In the replica's own threads."""
    CLUSTER = "cluster"
    """By tasks on any node's free CPUs; tiles come over the object store."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Checked at construction; raises UsageError."""

    inputs: tuple[str, ...]
    """Slide archives, folders of them, manifest tables; paths or URLs."""
    model: str
    """A bundle's folder, or the name of a known one."""
    out: Path | str
    """The results folder, made where there is none: a path, or an address on object storage."""
    precision: Precision | None = None
    """None: what the device does best."""
    backend: Backend | None = None
    """None: the fastest for the work that waits."""
    executor: ExecutorKind = ExecutorKind.RAY
    replicas: int | None = None
    """In all; None: as many as the cluster has room for, also when it grows or shrinks: one
    per GPU, or without GPUs one per node. For Ray alone."""
    replicas_per_gpu: int | None = None
    """None: one, where there are GPUs. For Ray alone."""
    decode_on: DecodeOn = DecodeOn.REPLICA
    """For Ray on GPUs alone."""
    priorities: tuple[tuple[str, int], ...] = ()
    """Patterns of slide_ids, and the priority that these get in place of the manifest's."""
    until: float | None = None
    """Seconds since the epoch by which running work is to have ended; None: no end."""
    patience_seconds: float = LeasePolicy.patience_seconds
    """A replica with work in hand that shows no sign of it for so long is ended and replaced."""
    retry: bool = False
    """Take up slides that are not complete, also those that failed for a lasting reason, and
    nothing else."""
    settle_seconds: float | None = None
    """Slides whose files changed in the last so many are left for a later run; None: none are."""
    rehash: bool = False
    """Tell slides by what their files hold, all of which planning reads, not by their sizes and
    times."""
    batch_size: int | None = None
    """None: the engine's own choice."""
    mpp: tuple[float, float] | None = None
    """Microns per level-0 pixel, x and y; None: what each slide says of itself."""
    arrays: ArrayNames = field(default_factory=ArrayNames)
    """Under which names zarr archives hold what."""
    address: str | None = None
    """A running Ray cluster; None starts Ray on this machine for the run."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", results_root(self.out))
        for name in ("replicas", "replicas_per_gpu", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}.")
        for_ray = self.replicas or self.replicas_per_gpu or self.address
        if self.executor is ExecutorKind.LOCAL and (for_ray or self.decode_on != DecodeOn.REPLICA):
            raise UsageError(
                "--replicas, --replicas-per-gpu, --decode-on and --address are for --executor "
                "ray: the local executor runs one replica per GPU, or one on the CPU, in this "
                "process."
            )
        if self.mpp is not None and not sensible(self.mpp):
            raise UsageError(
                f"--mpp {self.mpp[0]:g},{self.mpp[1]:g} cannot be microns per pixel of a "
                f"microscope slide: {LEAST_MPP:g} to {MOST_MPP:g} can."
            )
        if not self.inputs:
            raise UsageError("Name at least one slide archive or folder of them.")

    @classmethod
    def from_json(cls, value: Mapping[str, Any], **changed: Any) -> Settings:
        """The settings of an earlier run, as its manifest holds them, with some changed.

        Raises UsageError where they are not those of this version.
        """
        try:
            known: dict[str, Any] = {
                **value,
                "inputs": tuple(value["inputs"]),
                "precision": value["precision"] and Precision(value["precision"]),
                "backend": value["backend"] and Backend(value["backend"]),
                "executor": ExecutorKind(value["executor"]),
                "priorities": tuple((pattern, n) for pattern, n in value["priorities"]),
                "decode_on": DecodeOn(value["decode_on"]),
                "mpp": value["mpp"] and tuple(value["mpp"]),
                "arrays": ArrayNames(**value["arrays"]),
            }
            return cls(**(known | changed))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"The earlier run's settings cannot be used: {error!r}. Give them to "
                "`cvm-batch submit` as you did then."
            ) from error

    def absolute(self) -> Settings:
        """With paths that mean the same in every folder, and on other machines that see them."""
        model = self.model
        if model != SHIPPED_BUNDLE and ("/" in model or (Path(model) / SPEC_FILE).is_file()):
            model = absolute(model)
        # Without `..`, as slides' URIs are (`DiskPlace.of`): who erases a slide looks for those.
        inputs = tuple(uri if is_remote(uri) else os.path.abspath(uri) for uri in self.inputs)
        return replace(self, inputs=inputs, model=model, out=absolute(str(self.out)))

    def quiet_since(self, now: float) -> float | None:
        """Up to when a slide may have changed that is planned ``now``; None: at any time."""
        return None if self.settle_seconds is None else now - self.settle_seconds

    def opening(self, spec: BundleSpec) -> OpenOptions:
        """How slides are opened for a model."""
        return OpenOptions(
            tile_um=spec.tile_um,
            least_px=spec.preprocessing.input_px,
            mpp=self.mpp,
            arrays=self.arrays,
        )
