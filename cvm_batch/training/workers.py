"""The workers of a training that shares each batch out, by torch.distributed.

Each takes the same part of every batch and averages the gradients with the others', so that
two workers step as one would that accumulates the two halves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from cvm_batch.errors import UsageError
from cvm_batch.training.recipe import Recipe


@dataclass(frozen=True)
class Workers:
    """This process's place among them. The process group exists where there are several."""

    rank: int = 0
    count: int = 1

    def check(self, recipe: Recipe) -> None:
        """Raises UsageError where the workers' parts of a batch would not be equal.

        Gradients are averaged over workers and parts, so that images of a smaller part would
        count for more; and a worker with fewer parts than the others would leave them waiting.
        """
        parts = self.count * recipe.accumulate
        if rest := recipe.batch_size % parts:
            fewer, more = recipe.batch_size - rest, recipe.batch_size - rest + parts
            raise UsageError(
                f"A batch of {recipe.batch_size} does not come out even for {self.count} workers "
                f"that each take {recipe.accumulate} parts. Set batch_size to a multiple of "
                f"{parts}, as --set batch_size={fewer or more}, or take another number of workers."
            )

    def share(self, batch: Tensor) -> Tensor:
        """This worker's part of a batch [n, ...], as large as every other's."""
        return batch.tensor_split(self.count)[self.rank]

    def wrapped(self, network: nn.Module, device: torch.device) -> nn.Module | None:
        """``network`` with gradients that are averaged over all; None for a single worker."""
        if self.count == 1:
            return None
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(
            network,
            device_ids=[device.index] if device.type == "cuda" else None,
            # Each normalises by its own part; the running statistics are averaged at the
            # end of an epoch, instead of taken from the first worker at every step.
            broadcast_buffers=False,
        )

    def mean(self, value: Tensor) -> Tensor:
        """Of all workers' values."""
        if self.count > 1:
            distributed.all_reduce(value)
            value = value / self.count
        return value

    @torch.no_grad()
    def average_statistics(self, network: nn.Module) -> None:
        """Make batch normalisation's running statistics the mean of all workers'."""
        if self.count > 1:
            for buffer in network.buffers():
                if buffer.is_floating_point():
                    distributed.all_reduce(buffer)
                    buffer /= self.count


ALONE = Workers()
