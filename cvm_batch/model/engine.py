"""The inference engine: native-size tiles in, class probabilities out."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cvm_batch.errors import SentinelError
from cvm_batch.model.bundle import Bundle, Sentinels
from cvm_batch.model.precision import Precision, choose_precision
from cvm_batch.tiles import Tiles


class InferenceEngine(Protocol):
    """One model on one device. Precision, backend and batch size hold for a whole run."""

    precision: Precision
    backend: str
    batch_size: int

    def probabilities(self, tiles: Tiles) -> NDArray[np.float32]:
        """Class probabilities [n, classes] of native-size uint8 tiles.

        Values that are not finite are handed back as they are: the caller knows whose
        tiles they belong to.
        """
        ...


class TorchEngine:
    """PyTorch, eager, channels-last."""

    backend = "torch-eager"

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: torch.device | None = None,
        precision: Precision | None = None,
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> None:
        """``threads``: CPU threads of one operation. Raises BundleError, UsageError."""
        self.device = device or default_device()
        self.precision = choose_precision(self.device, precision)
        self.batch_size = batch_size or (512 if self.device.type == "cuda" else 32)
        if threads is not None:
            torch.set_num_threads(threads)
        self._preprocessing = bundle.spec.preprocessing
        self._classes = len(bundle.spec.class_names)
        network = bundle.network().to(self.device, self.precision.dtype)
        self._network = network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def probabilities(self, tiles: Tiles) -> NDArray[np.float32]:
        found = np.empty((len(tiles), self._classes), np.float32)
        for start in range(0, len(tiles), self.batch_size):
            batch = slice(start, start + self.batch_size)
            found[batch] = self._classify(tiles[batch])
        return found

    def _classify(self, tiles: Tiles) -> NDArray[np.float32]:
        images = self._preprocessing.resize(tiles, self.device)
        logits = self._network(self._preprocessing.normalise(images, self.precision.dtype))
        probabilities: NDArray[np.float32] = logits.float().softmax(dim=1).cpu().numpy()
        return probabilities


def default_device() -> torch.device:
    """The first GPU that this process may see, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def verify_sentinels(engine: InferenceEngine, sentinels: Sentinels) -> float:
    """Classify the sentinel tiles; return the largest probability difference.

    They are repeated to fill a batch, so that the device is judged in the shape it will
    serve in, and is warm afterwards. Raises SentinelError where the difference is above the
    tolerance of the engine's precision.
    """
    count = len(sentinels.tiles)
    order = np.arange(max(count, engine.batch_size)) % count
    measured = engine.probabilities(sentinels.tiles[order])
    difference = float(np.abs(measured - sentinels.probabilities[order]).max())
    # A comparison with NaN is false: ask for what is right, not for what is wrong.
    if not difference <= engine.precision.tolerance:
        raise SentinelError(
            f"This device does not reproduce the bundle's sentinel outputs: largest probability "
            f"difference {difference:.4g}, allowed {engine.precision.tolerance} in "
            f"{engine.precision} ({engine.backend}). It computes wrongly and may not serve: "
            "check the device and its driver, or try --precision fp32."
        )
    return difference
