"""PyTorch on the CPU: eager, or compiled by Inductor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvm_batch.model.backends.classifier import Classifier
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.tiles import Tiles

CPU = torch.device("cpu")


class CpuLane:
    def __init__(
        self,
        classifier: Callable[[Tensor], Tensor],
        preprocessing: Preprocessing,
        batch_size: int,
        *,
        padded: bool = False,
    ) -> None:
        """``classifier`` maps uint8 [n, 3, s, s] to float32 [n, classes]; ``padded`` where it
        takes full batches alone."""
        self.batch_size = batch_size
        self._classifier = classifier
        self._preprocessing = preprocessing
        self._fixed = batch_size if padded else 0

    @torch.inference_mode()
    def probabilities(self, tiles: Tiles) -> NDArray[np.float32]:
        images = self._preprocessing.resize(tiles, CPU)
        if missing := max(0, self._fixed - len(tiles)):
            images = torch.cat([images, images.new_zeros((missing, *images.shape[1:]))])
            images = images.contiguous(memory_format=torch.channels_last)
        found: NDArray[np.float32] = self._classifier(images)[: len(tiles)].numpy()
        return found

    def shrink(self, batch_size: int) -> None:
        self.batch_size = batch_size


def compiled(classifier: Classifier) -> Callable[[Tensor], Tensor]:
    """For one batch size. Frozen weights are laid out for the machine once, not in each call."""
    found: Callable[[Tensor], Tensor] = torch.compile(
        classifier, dynamic=False, options={"freezing": True}
    )
    return found
