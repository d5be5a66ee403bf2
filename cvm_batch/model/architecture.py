"""The shape of a network as data: what a bundle says of it. Loads neither PyTorch nor timm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_REFUSED_ARGS = re.compile("pretrained|checkpoint|cache_dir|num_classes|scriptable|exportable")


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A timm model without its classifier."""

    name: str
    """The model's name in timm."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for ``timm.create_model``."""

    def __post_init__(self) -> None:
        # timm takes "hf-hub:..." and local paths as names, and paths of pickled weights as
        # arguments; a bundle describes shapes and nothing else.
        if not re.fullmatch(r"[A-Za-z0-9_.]+", self.name):
            raise ValueError(f"{self.name!r} is no name of a timm model")
        if refused := sorted(arg for arg in self.args if _REFUSED_ARGS.match(arg)):
            raise ValueError(f"arguments that no bundle may set: {', '.join(refused)}")

    def build(self, *, pretrained: bool = False) -> nn.Module:
        """Return the module, mapping images [n, 3, s, s] to features [n, num_features]."""
        import timm  # here: a plan reads bundles and needs no network

        # timm writes into nested arguments (xception41's block_cfg): give it a copy.
        args = deepcopy(dict(self.args))
        return timm.create_model(self.name, pretrained=pretrained, num_classes=0, **args)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """All that decides the network's shape, except the number of classes."""

    cnn: Backbone
    vt: Backbone
    hidden: int
    """Width of the fusion MLP's hidden layer."""

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "cvm-cervix",
            "cnn": {"name": self.cnn.name, "args": dict(self.cnn.args)},
            "vt": {"name": self.vt.name, "args": dict(self.vt.args)},
            "hidden": self.hidden,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Architecture:
        """Raises KeyError or ValueError where a field is missing or of another kind."""
        if value["kind"] != "cvm-cervix":
            raise ValueError(f"unknown architecture kind {value['kind']!r}")
        return cls(
            cnn=Backbone(**value["cnn"]),
            vt=Backbone(**value["vt"]),
            hidden=int(value["hidden"]),
        )


# The paper leaves the hidden width open; 2240, the fused width, is the one that gives
# its sizes of "about 120 MB" in 32 and "60 MB" in 16 bits (31,375,859 parameters).
CVM_CERVIX = Architecture(
    cnn=Backbone(name="legacy_xception"),
    vt=Backbone(name="deit_tiny_patch16_224"),
    hidden=2240,
)

# A sibling of 3 M parameters for 100 px crops: an aligned Xception with four narrow
# stages, and a DeiT of half the depth. Small enough to ship, fast enough for a laptop.
CVM_CERVIX_MINI = Architecture(
    cnn=Backbone(
        name="xception41",
        args={
            "block_cfg": [
                {"in_chs": 64, "out_chs": 96, "stride": 2},
                {"in_chs": 96, "out_chs": 160, "stride": 2},
                {"in_chs": 160, "out_chs": 256, "stride": 2},
                {"in_chs": 256, "out_chs": 256, "stride": 1},
                {"in_chs": 256, "out_chs": 256, "stride": 1},
                {"in_chs": 256, "out_chs": [256, 384, 512], "stride": 1},
            ]
        },
    ),
    vt=Backbone(
        name="deit_tiny_patch16_224",
        args={"img_size": 96, "patch_size": 12, "embed_dim": 128, "depth": 6, "num_heads": 4},
    ),
    hidden=640,
)
