"""PyTorch on a GPU: all that knows of CUDA.

Each lane has its own stream, pinned buffers and CUDA graph. A lane's copies and kernels
follow each other on its stream; with two lanes one copies while the other computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvm_batch.model.backends.batching import Trial, best_batch_size
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.tiles import Tiles

#: One computes, one copies.
LANES = 2
_WARM_UP_CALLS = 3
_ALIGNMENT = 256


class CudaLane:
    """Full batches replay a CUDA graph; smaller ones fill its memory in part."""

    def __init__(
        self,
        classifier: Callable[[Tensor], Tensor],
        preprocessing: Preprocessing,
        device: torch.device,
        batch_size: int,
    ) -> None:
        """``classifier`` maps uint8 [n, 3, s, s] to float32 [n, classes] on ``device``."""
        self.batch_size = batch_size
        self._classifier = classifier
        self._preprocessing = preprocessing
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Waiting in the kernel leaves the CPU to the decoders.
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._staging = _Staging(device)
        # The weights came by the default stream.
        self._stream.wait_stream(torch.cuda.default_stream(device))
        self._images = self._blank_images()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._capture()

    @torch.inference_mode()
    def probabilities(self, tiles: Tiles) -> NDArray[np.float32]:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._staging.reuse()
            if len(tiles):  # no kernel takes an empty batch
                images = self._preprocessing.resize(tiles, self._device, self._staging.upload)
                self._images[: len(tiles)].copy_(images)
            if self._graph is not None:
                self._graph.replay()
            else:
                self._found = self._classifier(self._images)
            answers = self._staging.download(self._found[: len(tiles)])
            self._done.record()
            self._done.synchronize()
        return answers.numpy().copy()

    def shrink(self, batch_size: int) -> None:
        # Without a graph from here on: one that is captured while the other lane computes
        # is a risk, and running out of memory is rare.
        self.batch_size = batch_size
        self._graph = None
        self._images = self._blank_images()
        self._found = None  # type: ignore[assignment]
        torch.cuda.empty_cache()

    def _blank_images(self) -> Tensor:
        with torch.cuda.stream(self._stream):
            return blank_images(self.batch_size, self._preprocessing.input_px, self._device)

    @torch.inference_mode()
    def _capture(self) -> None:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP_CALLS):
                self._found = self._classifier(self._images)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._found = self._classifier(self._images)
        self._graph = graph


class _Staging:
    """Pinned memory of one lane, reused by every batch, for tiles on their way up and
    probabilities on their way down."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffer = torch.empty(0, dtype=torch.uint8, pin_memory=True)
        self._spent: list[Tensor] = []
        self._used = 0

    def reuse(self) -> None:
        """Call once whatever was copied last has arrived."""
        self._used = 0
        self._spent.clear()

    def upload(self, block: NDArray[np.uint8]) -> Tensor:
        pinned = self._take(block.nbytes).view(block.shape)
        pinned.numpy()[:] = block
        return pinned.to(self._device, non_blocking=True)

    def download(self, answers: Tensor) -> Tensor:
        """The same on the CPU, once the stream has got there."""
        nbytes = answers.numel() * answers.element_size()
        pinned = self._take(nbytes).view(answers.dtype).view(answers.shape)
        pinned.copy_(answers, non_blocking=True)
        return pinned

    def _take(self, nbytes: int) -> Tensor:
        start = self._used
        self._used += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        if self._used > len(self._buffer):
            self._spent.append(self._buffer)  # copies out of it may be under way
            self._buffer = torch.empty(2 * self._used, dtype=torch.uint8, pin_memory=True)
            start, self._used = 0, self._used - start
        return self._buffer[start : start + nbytes]


def fitting_batch_size(
    classifier: Callable[[Tensor], Tensor], preprocessing: Preprocessing, device: torch.device
) -> int:
    """The batch size that is fast and leaves room for every lane, by trying."""
    free, _ = torch.cuda.mem_get_info(device)
    return best_batch_size(
        lambda size: _try(classifier, preprocessing.input_px, device, size), budget=free // LANES
    )


@torch.inference_mode()
def _try(
    classifier: Callable[[Tensor], Tensor], side: int, device: torch.device, size: int
) -> Trial | None:
    images = blank_images(size, side, device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        classifier(images)  # cuDNN chooses its algorithms
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(_WARM_UP_CALLS):
            classifier(images)
        torch.cuda.synchronize(device)
        seconds = (time.perf_counter() - started) / _WARM_UP_CALLS
        needed = torch.cuda.max_memory_allocated(device) - before
    except torch.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()
    return Trial(size / seconds, needed)


def prepare(device: torch.device) -> None:
    """Process-wide settings: the fastest convolutions, and fp32 that is fp32."""
    torch.backends.cudnn.benchmark = True
    # TF32 rounds to 10 bits: more than the sentinels' tolerance in fp32 allows.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.cuda.set_device(device)


def blank_images(count: int, side: int, device: torch.device) -> Tensor:
    images = torch.zeros((count, 3, side, side), dtype=torch.uint8, device=device)
    return images.contiguous(memory_format=torch.channels_last)
