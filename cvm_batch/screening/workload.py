"""How much work waits, by which a run chooses its backend."""

from __future__ import annotations

import sys
from contextlib import closing
from functools import partial

from cvm_batch.isolation import Done, run_isolated
from cvm_batch.model.backends.choosing import Work
from cvm_batch.model.bundle import BundleSpec
from cvm_batch.screening.executor import Hardware

#: Loading PyTorch from a cold disk may take long, but not for ever.
_COUNTING_SECONDS = 600.0


def workload(tiles: int, spec: BundleSpec, hardware: Hardware) -> Work:
    return Work(
        tiles=tiles,
        gflop=partial(_tile_gflop, spec),
        device_type=hardware.device_type,
        processors=hardware.processors,
    )


def _tile_gflop(spec: BundleSpec) -> float:
    """Counted in another process, unless PyTorch is loaded here already: the driver lives all
    night, and needs none."""
    if "torch" in sys.modules:
        return spec.tile_gflop()
    outcomes = run_isolated(BundleSpec.tile_gflop, [spec], jobs=1, timeout=_COUNTING_SECONDS)
    with closing(outcomes):
        (outcome,) = outcomes
    if not isinstance(outcome, Done):
        raise outcome.error
    return outcome.result
