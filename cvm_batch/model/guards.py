"""Guards against a device that computes wrongly in silence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cvm_batch.errors import SentinelError
from cvm_batch.model.bundle import Sentinels
from cvm_batch.model.precision import Precision
from cvm_batch.tiles import Tiles


@dataclass(frozen=True)
class SentinelGuard:
    """Judges a device by tiles whose outputs are known."""

    sentinels: Sentinels
    precision: Precision
    backend: str

    def check(self, classify: Callable[[Tiles], NDArray[np.float32]], tiles: int) -> float:
        """Classify at least ``tiles`` sentinels; return the largest probability difference.

        They are repeated to fill a batch, so that the device is judged in the shape it will
        serve in, and is warm afterwards. Raises SentinelError where the difference is above
        the tolerance of the precision.
        """
        count = len(self.sentinels.tiles)
        order = np.arange(max(count, tiles)) % count
        measured = classify(self.sentinels.tiles[order])
        difference = float(np.abs(measured - self.sentinels.probabilities[order]).max())
        # A comparison with NaN is false: ask for what is right, not for what is wrong.
        if not difference <= self.precision.tolerance:
            raise SentinelError(
                f"This device does not reproduce the bundle's sentinel outputs: largest "
                f"probability difference {difference:.4g}, allowed {self.precision.tolerance} in "
                f"{self.precision} ({self.backend}). It computes wrongly and may not serve: "
                "check the device and its driver, or try --precision fp32."
            )
        return difference
