"""Whether a network says in a lower precision what it says in fp32, on the same tiles.

n tiles, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cvm_batch.errors import AgreementError
from cvm_batch.model.backends.classifier import Classifier, folded
from cvm_batch.model.engine import default_device
from cvm_batch.model.precision import Precision
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.tiles import Tiles

#: What to do instead, at the end of every refusal.
KEEP_FP32 = "Keep the model in fp32, and run it with --precision fp32."
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How a lower precision compares with fp32 over some tiles; ``+`` adds more of them."""

    largest_difference: float
    """Of all probabilities of all tiles."""
    confusion: NDArray[np.int64]
    """[k, k]: tiles by their class in fp32 (rows) and in the lower precision (columns)."""

    @classmethod
    def of(cls, fp32: NDArray[np.float32], lower: NDArray[np.float32]) -> Agreement:
        """Of probabilities [n, k] each, all of them finite."""
        classes = fp32.shape[1]
        pairs = fp32.argmax(axis=1) * classes + lower.argmax(axis=1)
        return cls(
            largest_difference=float(np.abs(fp32 - lower).max(initial=0)),
            confusion=np.bincount(pairs, minlength=classes**2).reshape(classes, classes),
        )

    def __add__(self, more: Agreement) -> Agreement:
        return Agreement(
            largest_difference=max(self.largest_difference, more.largest_difference),
            confusion=self.confusion + more.confusion,
        )

    @property
    def tiles(self) -> int:
        return int(self.confusion.sum())

    @property
    def same(self) -> int:
        """Tiles that keep their class."""
        return int(self.confusion.trace())

    @property
    def same_share(self) -> float:
        return self.same / self.tiles

    def changes(self) -> list[tuple[int, int, int]]:
        """Class in fp32, class in the lower precision, tiles that changed so: most first."""
        moved = self.confusion - np.diag(self.confusion.diagonal())
        found = [(int(a), int(b), int(moved[a, b])) for a, b in np.argwhere(moved)]
        return sorted(found, key=lambda change: -change[2])

    def to_json(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        of = self.confusion.sum(axis=1)
        return {
            "tiles": self.tiles,
            "largest_difference": self.largest_difference,
            "changed": self.tiles - self.same,
            "same_class": self.same_share,
            "changes": [
                {"from": class_names[a], "to": class_names[b], "tiles": count, "of": int(of[a])}
                for a, b, count in self.changes()
            ],
        }


@dataclass(frozen=True)
class Activation:
    """The largest number, its sign left out, that went into or out of any module."""

    module: str
    """Its name in the network, as in the names of its weights."""
    value: float


class Comparison:
    """A network in fp32 and in a lower precision, side by side on one device.

    CPUs run bf16 for real. fp16 is for GPUs, and many a CPU has no arithmetic for it: there
    only the weights are rounded to it. Of the mean difference of a CPU that does have it, that
    was 85 %.
    """

    def __init__(
        self,
        reference: nn.Module,
        lower: nn.Module,
        preprocessing: Preprocessing,
        precision: Precision,
        *,
        device: torch.device | None = None,
    ) -> None:
        """Both networks are in fp32 and in evaluation mode, the weights of ``lower`` as they
        are stored for it; ``reference`` is taken over. ``device``: the best by default."""
        self.precision = precision
        self.device = device or default_device()
        self.emulated = precision is Precision.FP16 and self.device.type == "cpu"
        if self.device.type == "cuda":
            from cvm_batch.model.backends import cuda

            cuda.prepare(self.device)
        self._preprocessing = preprocessing
        # As engines run it, with batch normalisation folded before the weights are cast.
        cast = folded(lower).to(precision.dtype)
        dtype = torch.float32 if self.emulated else precision.dtype
        self._lower = Classifier(cast, preprocessing, dtype).to(self.device)
        self._reference = Classifier(reference, preprocessing, torch.float32).to(self.device)
        self._watch = _Watch(reference)

    @property
    def largest_activation(self) -> Activation:
        """Of all that the fp32 network has classified so far, at least one tile."""
        return self._watch.largest()

    def reference(self, tiles: Tiles) -> NDArray[np.float32]:
        """Probabilities [n, k] of at least one tile in fp32."""
        return np.concatenate(
            [self._run(self._reference, tiles[at : at + _BATCH]) for at in _starts(tiles)]
        )

    def compare(self, tiles: Tiles) -> Agreement:
        """Classify at least one native-size tile in both.

        Raises AgreementError where a number within the network is beyond what the lower
        precision holds, or where the latter's probabilities are not finite.
        """
        found = [self._compare(tiles[at : at + _BATCH]) for at in _starts(tiles)]
        return sum(found[1:], start=found[0])

    def _compare(self, tiles: Tiles) -> Agreement:
        fp32 = self._run(self._reference, tiles)
        self._check_range()
        lower = self._run(self._lower, tiles)
        if not_finite := int((~np.isfinite(lower).all(axis=1)).sum()):
            raise AgreementError(
                f"In {self.precision}, {not_finite} of {len(tiles)} tiles get probabilities that "
                f"are not finite, though in fp32 nothing is out of range. {KEEP_FP32}"
            )
        return Agreement.of(fp32, lower)

    @torch.inference_mode()
    def _run(self, classifier: Classifier, tiles: Tiles) -> NDArray[np.float32]:
        found: Tensor = classifier(self._preprocessing.resize(tiles, self.device))
        return found.cpu().numpy()

    def _check_range(self) -> None:
        largest, limit = self.largest_activation, torch.finfo(self.precision.dtype).max
        # A comparison with NaN is false: ask for what is right, not for what is wrong.
        if not largest.value < limit:
            raise AgreementError(
                f"Module {largest.module} reaches {largest.value:,.0f} in fp32: {self.precision} "
                f"ends at {limit:,.0f}, and would make infinity of it. {KEEP_FP32}"
            )


class _Watch:
    """Keeps the largest number that each module of a network has taken or given.

    What modules take is looked at too: the sums around a transformer's attention are
    nobody's output.
    """

    def __init__(self, network: nn.Module) -> None:
        # In the order of their first calls, so that of equals the one that made it comes first.
        self._largest: dict[str, Tensor] = {}
        for name, module in network.named_modules():
            if name:
                module.register_forward_hook(partial(self._see, name))

    def largest(self) -> Activation:
        values = torch.stack(list(self._largest.values()))
        at = int(values.argmax())  # NaN counts as the largest
        return Activation(list(self._largest)[at], float(values[at]))

    def _see(self, name: str, module: nn.Module, taken: tuple[Any, ...], given: Any) -> None:
        for value in (*taken, given):
            if isinstance(value, Tensor) and value.is_floating_point():
                least, most = value.aminmax()
                largest = torch.maximum(-least, most)
                before = self._largest.get(name, largest)
                self._largest[name] = torch.maximum(before, largest)


def _starts(tiles: Tiles) -> range:
    return range(0, len(tiles), _BATCH)
