"""From an fp32 bundle to an fp16 one: measured first, written last."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

import cvm_batch
from cvm_batch.errors import AgreementError, BundleError
from cvm_batch.model.agreement import KEEP_FP32, Agreement, Comparison
from cvm_batch.model.backends.choosing import Backend
from cvm_batch.model.bundle import CARD_FILE, Bundle, write_bundle
from cvm_batch.model.guards import SentinelGuard
from cvm_batch.model.precision import Precision
from cvm_batch.tiles import Tiles

#: Share of tiles that must keep their class.
LEAST_SAME_CLASS = 0.99
_FP16 = Precision.FP16
_FP16_MAX = torch.finfo(torch.float16).max

_CARD = """\
## Exported to fp16

The weights of this bundle are those of the bundle with digest `{digest}`, rounded from fp32
to fp16. All that stands above was written of that one. Of its sentinels, classified by both
on {device}, {sentinels}. {data} The largest number within the network was {activation}.
"""


class Export:
    """One fp32 bundle on its way to fp16.

    Agreement on the bundle's sentinels is measured when this is made, agreement on further
    tiles by `add`; `write` makes the new bundle.
    """

    def __init__(self, bundle: Bundle, out: Path, *, device: torch.device | None = None) -> None:
        """``out``: the new bundle's folder.

        Raises BundleError where the bundle is not in fp32 or ``out`` exists; of it,
        SentinelError where the device does not reproduce the sentinels in fp32, and
        AgreementError where fp16 disagrees on them, or does not hold a weight or an activation.
        """
        if bundle.spec.precision is not Precision.FP32:
            raise BundleError(
                f"{bundle.path} is stored in {bundle.spec.precision} already. Use it as it is, or "
                "export the fp32 bundle that it was made from."
            )
        if out.exists():
            raise BundleError(f"{out} exists already. Name another folder, or remove it first.")
        self.bundle = bundle
        self.data: Agreement | None = None
        """On the tiles added so far; None before there are any."""
        self._out = out
        network = bundle.network()
        self.comparison = Comparison(
            network, _rounded(network), bundle.spec.preprocessing, _FP16, device=device
        )
        sentinels = bundle.sentinels()
        guard = SentinelGuard(sentinels, Precision.FP32, str(Backend.EAGER))
        guard.check(self.comparison.reference, len(sentinels.tiles))
        self.sentinels: Agreement = self.comparison.compare(sentinels.tiles)
        """On the bundle's own."""
        self._check(self.sentinels, "its sentinels", most=_FP16.tolerance)

    def add(self, tiles: Tiles) -> None:
        """Compare on more tiles, at least one, of native size. Raises AgreementError."""
        found = self.comparison.compare(tiles)
        self.data = self.data + found if self.data else found

    def write(self, *, read: Mapping[str, Any] | None = None) -> Bundle:
        """Write the fp16 bundle; its folder appears whole or not at all.

        ``read``: what to record of where the added tiles come from. Raises AgreementError
        where fp16 disagrees on them, and BundleError where the folder cannot be written.
        """
        if self.data:
            # Not the largest difference: among many cells, some stand on the border of classes.
            self._check(self.data, "the data", most=None)
        spec = replace(
            self.bundle.spec,
            name=self._out.name,
            precision=_FP16,
            provenance={
                **self.bundle.spec.provenance,
                "exported_from": self.bundle.digest,
                "agreement": self._agreement(read or {}),
            },
        )
        tiles, card = self.bundle.sentinels().tiles, self._card()
        try:
            return write_bundle(self._out, spec, self.bundle.network(), tiles, card=card)
        except (OSError, SafetensorError) as error:
            raise BundleError(
                f"{self._out} cannot be written: {error}. Choose another folder, or free space."
            ) from error

    @property
    def device_name(self) -> str:
        if self.comparison.emulated:
            return "a CPU, fp16 emulated by rounding the weights"
        return torch.cuda.get_device_name(self.comparison.device)

    def activation_json(self) -> dict[str, Any]:
        largest = self.comparison.largest_activation
        return {
            "module": largest.module,
            "value": largest.value,
            "share_of_fp16": largest.value / _FP16_MAX,
        }

    def activation_told(self) -> str:
        found = self.activation_json()
        return (
            f"{found['value']:,.1f} in {found['module']}, {100 * found['share_of_fp16']:.2g} % of "
            f"fp16's largest, {_FP16_MAX:,.0f}"
        )

    def _agreement(self, read: Mapping[str, Any]) -> dict[str, Any]:
        names = self.bundle.spec.class_names
        return {
            "precision": str(_FP16),
            "device": self.device_name,
            "sentinels": self.sentinels.to_json(names),
            "data": {**self.data.to_json(names), **read} if self.data else None,
            "largest_activation": self.activation_json(),
            "versions": {"cvm_batch": cvm_batch.__version__, "torch": torch.__version__},
        }

    def _card(self) -> str:
        path = self.bundle.path / CARD_FILE
        before = path.read_text() if path.is_file() else f"# {self.bundle.spec.name}\n"
        heading, paragraph = _CARD.format(
            digest=self.bundle.digest,
            device=self.device_name,
            sentinels=told(self.sentinels),
            data=f"Of further data, {told(self.data)}." if self.data else "No more was tried.",
            activation=self.activation_told(),
        ).split("\n\n")
        filled = textwrap.fill(paragraph, 90, break_long_words=False, break_on_hyphens=False)
        return f"{before.rstrip()}\n\n{heading}\n\n{filled}\n"

    def _check(self, found: Agreement, where: str, *, most: float | None) -> None:
        """``most``: the largest probability difference that is allowed."""
        too_far = most is not None and found.largest_difference > most
        if found.same_share >= LEAST_SAME_CLASS and not too_far:
            return
        allowed = "" if most is None else f" (at most {most} is allowed)"
        raise AgreementError(
            f"{self.bundle.path} does not say in fp16 what it says in fp32. Of {where}, "
            f"{told(found)}{allowed}; {LEAST_SAME_CLASS:.0%} of the tiles must keep their class. "
            f"Nothing was written. {KEEP_FP32}"
        )


def told(found: Agreement) -> str:
    """An agreement's figures in words."""
    return (
        f"{found.same:,} of {found.tiles:,} tiles keep their class ({100 * found.same_share:.2f} "
        f"%), and the largest probability difference is {found.largest_difference:.3g}"
    )


def _rounded(network: nn.Module) -> nn.Module:
    """A copy in fp32 with the weights as an fp16 bundle stores them. Raises AgreementError."""
    rounded = deepcopy(network).to(_FP16.dtype).float()
    for name, weight in rounded.state_dict().items():
        if not weight.isfinite().all():
            largest = network.state_dict()[name].abs().max()
            raise AgreementError(
                f"Weight {name} reaches {largest:,.0f}: fp16 ends at {_FP16_MAX:,.0f}. {KEEP_FP32}"
            )
    return rounded
