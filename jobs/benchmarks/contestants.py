"""Who takes part: our engine in all its forms, and its peers as a careful user runs them.

All map native-size uint8 tiles [n, h, w, 3] to probabilities float32 [n, classes]; n is a
multiple of their batch. Each is set up in a process of its own, and may change settings of
that process. The peers resize with torchvision, whose kernel for uint8 is the fastest here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from cvm_batch.cpus import usable_cpus
from cvm_batch.model.backends.choosing import Backend
from cvm_batch.model.backends.classifier import Classifier
from cvm_batch.model.backends.starting import start_engine
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision

Classify = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Ready:
    """A contestant that has set itself up."""

    classify: Classify
    batch: int
    """Tiles that are classified at once."""
    lanes: int = 1
    """Batches under way at the same time."""


@dataclass(frozen=True)
class Contestant:
    name: str
    precision: Precision
    set_up: Callable[[Bundle, Precision, torch.device], Ready]
    backend: Backend | None = None
    """Of our engine; None for a peer."""

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"


def contestants(device: torch.device) -> list[Contestant]:
    """All that can run on a device of that kind, whether installed or not."""
    fp32, fp16, bf16 = Precision.FP32, Precision.FP16, Precision.BF16
    gpu = device.type == "cuda"
    half = fp16 if gpu else bf16
    ours = [
        Contestant(f"cvm-batch {backend}", precision, partial(_ours, backend), backend)
        for backend in Backend
        if not (gpu and backend is Backend.OPENVINO)
        for precision in ((fp32, fp16, bf16) if gpu else (fp32, bf16))
    ]
    peers = [
        Contestant(EAGER_NCHW, fp32, eager_nchw),
        Contestant("eager channels-last", fp32, eager_channels_last),
        Contestant("eager channels-last", half, eager_channels_last),
        Contestant("timm's benchmark", half, timm_benchmark),
        Contestant("torch.compile", fp32, torch_compile),
        Contestant("torch.compile", half, torch_compile),
        Contestant("ONNX Runtime", fp32, onnx_runtime),
    ]
    if not gpu:
        peers += [Contestant(OPENVINO, precision, openvino) for precision in (fp32, bf16)]
    return ours + peers


#: The two that all others are compared with.
EAGER_NCHW = "eager NCHW"
OPENVINO = "OpenVINO"


def _ours(backend: Backend, bundle: Bundle, precision: Precision, device: torch.device) -> Ready:
    engine = start_engine(bundle, device=device, precision=precision, backend=backend)
    return Ready(engine.probabilities, engine.batch_size, engine.lanes)


def eager_nchw(bundle: Bundle, precision: Precision, device: torch.device) -> Ready:
    """PyTorch as in the paper's time."""
    network = bundle.network().to(device, precision.dtype)
    return _in_torch(network, bundle, precision, device, layout=torch.contiguous_format, batch=32)


def eager_channels_last(bundle: Bundle, precision: Precision, device: torch.device) -> Ready:
    network = _channels_last(bundle, device, precision.dtype)
    return _in_torch(network, bundle, precision, device)


def timm_benchmark(bundle: Bundle, precision: Precision, device: torch.device) -> Ready:
    """As timm's published tables are made (benchmark-infer-amp-nhwc-*.csv): `benchmark.py
    --amp --channels-last`, where weights stay in fp32 and autocast casts them."""
    torch.backends.cuda.matmul.allow_tf32 = True
    network = _channels_last(bundle, device, torch.float32)
    autocast = partial(torch.autocast, device.type, dtype=precision.dtype)
    return _in_torch(network, bundle, Precision.FP32, device, context=autocast)


def torch_compile(bundle: Bundle, precision: Precision, device: torch.device) -> Ready:
    """In its default mode; it compiles in the first batch."""
    network = _channels_last(bundle, device, precision.dtype)
    return _in_torch(torch.compile(network), bundle, precision, device)


def openvino(bundle: Bundle, precision: Precision, device: torch.device) -> Ready:
    """As its guide "Optimizing for Throughput" advises: the hint, a stream for each CPU, as
    many requests under way as the compiled model asks for."""
    from cvm_batch.model.backends.openvino import ov

    batch, classes = _batch(device), len(bundle.spec.class_names)
    classifier = Classifier(bundle.network(), bundle.spec.preprocessing, torch.float32).eval()
    with torch.no_grad():
        exported = torch.export.export(classifier, (_example(bundle, batch),))
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "NUM_STREAMS": usable_cpus(),
        "INFERENCE_NUM_THREADS": usable_cpus(),
    }
    queue = ov.AsyncInferQueue(ov.Core().compile_model(ov.convert_model(exported), "CPU", settings))

    def classify(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = np.empty((len(tiles), classes), np.float32)

        def keep(request: ov.InferRequest, at: int) -> None:
            found[at : at + batch] = request.get_output_tensor().data

        queue.set_callback(keep)
        for at in range(0, len(tiles), batch):
            images = _resized(tiles[at : at + batch], bundle, device)
            queue.start_async({0: images.contiguous().numpy()}, at)
        queue.wait_all()
        return found

    return Ready(classify, batch, len(queue))


def onnx_runtime(bundle: Bundle, precision: Precision, device: torch.device) -> Ready:
    """`torch.onnx.export`, then a session with a thread for each CPU."""
    import onnxruntime

    batch = _batch(device)
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    classifier = Classifier(bundle.network(), bundle.spec.preprocessing, precision.dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(classifier, (_example(bundle, batch),), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
    if provider not in session.get_providers():  # it falls back to the CPU with a warning
        raise RuntimeError(f"onnxruntime has no {provider} here: install onnxruntime-gpu")
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    binding = session.io_binding()
    binding.bind_output(answer.name, "cpu")

    def classify(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = []
        for at in range(0, len(tiles), batch):
            images = _resized(tiles[at : at + batch], bundle, device).contiguous()
            if device.type == "cuda":
                torch.cuda.synchronize()  # the session has a stream of its own
            shape, pointer = tuple(images.shape), images.data_ptr()
            binding.bind_input(given.name, device.type, 0, np.uint8, shape, pointer)
            session.run_with_iobinding(binding)
            found += binding.copy_outputs_to_cpu()
        return np.concatenate(found)

    return Ready(classify, batch)


def _channels_last(bundle: Bundle, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return bundle.network().to(device, dtype).to(memory_format=torch.channels_last)


def _in_torch(
    network: Callable[[Tensor], Tensor],
    bundle: Bundle,
    precision: Precision,
    device: torch.device,
    *,
    layout: torch.memory_format = torch.channels_last,
    batch: int | None = None,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Ready:
    """``precision`` is that of the images."""
    torch.set_num_threads(usable_cpus())
    torch.backends.cudnn.benchmark = True
    size = batch or _batch(device)

    @torch.inference_mode()
    def classify(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = []
        for at in range(0, len(tiles), size):
            images = _resized(tiles[at : at + size], bundle, device)
            images = bundle.spec.preprocessing.normalise(images, precision.dtype)
            with context():
                logits = network(images.contiguous(memory_format=layout))
            found.append(logits.float().softmax(dim=1))
        # Copied once, so that a GPU need not wait for the CPU between batches.
        probabilities: NDArray[np.float32] = torch.cat(found).cpu().numpy()
        return probabilities

    return Ready(classify, size)


def _resized(tiles: NDArray[np.uint8], bundle: Bundle, device: torch.device) -> Tensor:
    """Uint8 images [n, 3, s, s] on ``device``."""
    images = torch.from_numpy(tiles)
    if device.type == "cuda":
        images = images.pin_memory().to(device, non_blocking=True)
    side = bundle.spec.preprocessing.input_px
    resized: Tensor = transforms.resize(images.permute(0, 3, 1, 2), [side, side], antialias=True)
    return resized


def _batch(device: torch.device) -> int:
    """timm's default on GPUs; on CPUs the usual size."""
    return 256 if device.type == "cuda" else 32


def _example(bundle: Bundle, batch: int) -> Tensor:
    side = bundle.spec.preprocessing.input_px
    return torch.zeros((batch, 3, side, side), dtype=torch.uint8)
