"""A bundle that was just written, as it will be served: sentinels, and fp16 against fp32."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import nn

from cvm_batch.errors import AgreementError
from cvm_batch.model.agreement import KEEP_FP32, Agreement, Comparison
from cvm_batch.model.backends.starting import start_engine
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.export import LEAST_SAME_CLASS, told
from cvm_batch.model.precision import Precision
from cvm_batch.tiles import Tiles


@dataclass(frozen=True, kw_only=True)
class Fp16:
    """How a bundle in fp16, which GPUs run, compares with the network as it was trained."""

    agreement: Agreement | None = None
    """None where fp16 does not hold the network's numbers."""
    fault: str | None = None
    """Why it should not be served in fp16, and what to do; None where it may."""

    def __str__(self) -> str:
        if self.fault is not None or self.agreement is None:
            return self.fault or ""
        return f"in fp16, {told(self.agreement)}"

    def to_json(self, class_names: tuple[str, ...]) -> Mapping[str, Any]:
        figures = self.agreement.to_json(class_names) if self.agreement else {}
        return {"fault": self.fault, **figures}


def check_served(bundle: Bundle, trained: nn.Module, tiles: Tiles) -> Fp16:
    """Start the bundle on this device, and compare fp16 with ``trained`` on its sentinels and
    on at least one more native-size tile.

    Raises SentinelError where the bundle's sentinels are not reproduced in fp32.
    """
    start_engine(bundle, precision=Precision.FP32).close()
    comparison = Comparison(
        deepcopy(trained), bundle.network(), bundle.spec.preprocessing, Precision.FP16
    )
    try:
        found = comparison.compare(bundle.sentinels().tiles) + comparison.compare(tiles)
    except AgreementError as error:
        return Fp16(fault=str(error))
    if found.same_share >= LEAST_SAME_CLASS:
        return Fp16(agreement=found)
    return Fp16(
        agreement=found,
        fault=f"In fp16, {told(found)}; {LEAST_SAME_CLASS:.0%} must keep their class. {KEEP_FP32}",
    )
