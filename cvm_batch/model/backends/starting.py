"""From a bundle to an engine that serves: the way in to all backends."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cvm_batch.cpus import usable_cpus
from cvm_batch.model.backends.choosing import Backend
from cvm_batch.model.backends.classifier import Classifier, folded
from cvm_batch.model.backends.cpu import CpuLane, compiled
from cvm_batch.model.backends.lanes import Lane, LanedEngine
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.engine import InferenceEngine, default_device
from cvm_batch.model.guards import SentinelGuard
from cvm_batch.model.precision import Precision, choose_precision

#: Tiles of one lane on a CPU: their activations stay in its cache (docs/performance.md).
_CPU_BATCH = 8
#: Lanes on a CPU take memory; more CPUs than that share them.
_MOST_CPU_LANES = 16


def start_engine(
    bundle: Bundle,
    *,
    device: torch.device | None = None,
    precision: Precision | None = None,
    backend: Backend = Backend.EAGER,
    batch_size: int | None = None,
    threads: int | None = None,
) -> InferenceEngine:
    """An engine that has reproduced the bundle's sentinels.

    What is None is what the device does best; ``threads`` of a CPU, by default all that this
    process may use. Raises BundleError, also as SentinelError where the device computes
    wrongly, and UsageError.
    """
    device = _indexed(device or default_device())
    precision = choose_precision(device.type, precision)
    threads = threads or usable_cpus()
    guard = SentinelGuard(bundle.sentinels(), precision, str(backend))
    if device.type == "cuda":
        return LanedEngine(_on_gpu(bundle, device, precision, backend, batch_size), guard)
    count = min(threads, _MOST_CPU_LANES)
    lanes = _on_cpu(bundle, precision, backend, batch_size or _CPU_BATCH, count, threads)
    return LanedEngine(lanes, guard, threads_per_lane=threads // count)


def _on_cpu(
    bundle: Bundle,
    precision: Precision,
    backend: Backend,
    batch_size: int,
    lanes: int,
    threads: int,
) -> Sequence[Lane]:
    preprocessing = bundle.spec.preprocessing
    if backend is Backend.OPENVINO:
        from cvm_batch.model.backends.openvino import openvino_lanes

        return openvino_lanes(
            Classifier(bundle.network(), preprocessing, torch.float32),
            preprocessing,
            precision,
            batch_size=batch_size,
            lanes=lanes,
            threads=threads,
        )
    classifier = Classifier(folded(bundle.network()), preprocessing, precision.dtype)
    padded = backend is Backend.COMPILED
    run = compiled(classifier) if padded else classifier
    return [CpuLane(run, preprocessing, batch_size, padded=padded) for _ in range(lanes)]


def _on_gpu(
    bundle: Bundle,
    device: torch.device,
    precision: Precision,
    backend: Backend,
    batch_size: int | None,
) -> Sequence[Lane]:
    from cvm_batch.model.backends import cuda
    from cvm_batch.model.backends.gpu_layers import for_gpu

    cuda.prepare(device)
    preprocessing = bundle.spec.preprocessing
    network = folded(bundle.network())
    if precision is not Precision.FP32:
        network = for_gpu(network)
    module = Classifier(network, preprocessing, precision.dtype).to(device)
    classifier = torch.compile(module, dynamic=False) if backend is Backend.COMPILED else module
    # Sizes are tried on the eager network: compiling it for each would take minutes.
    size = batch_size or cuda.fitting_batch_size(module, preprocessing, device)
    return [cuda.CudaLane(classifier, preprocessing, device, size) for _ in range(cuda.LANES)]


def _indexed(device: torch.device) -> torch.device:
    """PyTorch's streams and statistics take no GPU without its number."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
