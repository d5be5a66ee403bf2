"""The images of a training, decoded once and kept on the device as uint8.

Shapes: n images, s input side in pixels. An image takes 3 s² bytes: 150 kB at 224 px, so
that 13,677 blood cells take 2 GB.
"""

from __future__ import annotations

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


def load_images(
    cells: LabelledCells,
    positions: NDArray[np.int64],
    preprocessing: Preprocessing,
    device: torch.device,
) -> Tensor:
    """Images uint8 [n, 3, s, s] of the cells at ``positions``, resized as the engine does.

    Raises DataSetError where one does not decode.
    """
    side = preprocessing.input_px
    images = torch.empty((len(positions), 3, side, side), dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    at = 0
    for block in _blocks(cells, positions, preprocessing, device):
        images[at : at + len(block)] = block
        at += len(block)
    return images


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
