"""The seam of the inference engine: native-size tiles in, class probabilities out."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cvm_batch.model.precision import Precision
from cvm_batch.tiles import Tiles


@dataclass(frozen=True)
class Classified:
    """A batch's class probabilities, and the seconds of the device that they took."""

    probabilities: NDArray[np.float32]
    """[n, classes]. Values that are not finite are handed back as they are: the caller
    knows whose tiles they belong to."""
    seconds: float


class InferenceEngine(Protocol):
    """One model on one device, which has reproduced the bundle's sentinels.

    Precision and backend hold for a whole run, and so does the batch size, unless memory
    runs out: then it is halved.
    """

    precision: Precision
    backend: str
    batch_size: int
    lanes: int
    """Batches that run at once. Twice as many under way keep the device busy."""
    sentinel_difference: float
    """Largest probability difference from the bundle's recorded outputs, as last seen."""

    def start(self, tiles: Tiles) -> Future[Classified]:
        """Classify native-size uint8 tiles, best ``batch_size`` of them, in the background.

        The future raises SentinelError where the device turns out to compute wrongly, and
        torch.OutOfMemoryError where not even one tile fits.
        """
        ...

    def probabilities(self, tiles: Tiles) -> NDArray[np.float32]:
        """Class probabilities [n, classes] of any number of native-size uint8 tiles."""
        ...

    def close(self) -> None:
        """Forget what has not begun. Calling it twice is harmless."""
        ...


def default_device() -> torch.device:
    """The first GPU that this process may see, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
