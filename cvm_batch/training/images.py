"""The images of a training, decoded once and kept as uint8: on the device where they fit.

Shapes: n images, s input side in pixels. An image takes 3 s² bytes: 150 kB at 224 px, so
that 13,677 blood cells take 2 GB.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvm_batch.cpus import usable_cpus
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.training.datasets import LabelledCells

_CHUNK = 512
#: The network, its gradients and a batch's activations take the rest.
_MOST_OF_FREE = 0.5
_LOG = logging.getLogger(__name__)


def load_images(
    cells: LabelledCells,
    positions: NDArray[np.int64],
    preprocessing: Preprocessing,
    device: torch.device,
) -> Tensor:
    """Images uint8 [n, 3, s, s] of the cells at ``positions``, resized as the engine does.

    They are on ``device``, or in the machine's own memory where a GPU's would not hold them
    beside a network: who uses them brings a batch at a time over. Raises DataSetError where
    one does not decode.
    """
    side = preprocessing.input_px
    home = _home(len(positions) * 3 * side**2, device)
    images = torch.empty((len(positions), 3, side, side), dtype=torch.uint8, device=home)
    images = images.contiguous(memory_format=torch.channels_last)
    at = 0
    for block in _blocks(cells, positions, preprocessing, device):
        images[at : at + len(block)] = block
        at += len(block)
    return images


def _home(size: int, device: torch.device) -> torch.device:
    """Where images of so many bytes are kept."""
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    if size <= _MOST_OF_FREE * free:
        return device
    _LOG.warning(
        "%.1f GB of images do not fit on %s, which has %.1f GB free: they stay in the machine's "
        "memory, and training is slower",
        size / 1e9,
        device,
        free / 1e9,
    )
    return torch.device("cpu")


def _blocks(
    cells: LabelledCells,
    positions: NDArray[np.int64],
    preprocessing: Preprocessing,
    device: torch.device,
) -> Iterator[Tensor]:
    # Pillow gives up the interpreter's lock while it decodes.
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for start in range(0, len(positions), _CHUNK):
            tiles = list(pool.map(cells.read, positions[start : start + _CHUNK].tolist()))
            yield preprocessing.resize(tiles, device)
