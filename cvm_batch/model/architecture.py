"""The shape of a network as data: what a bundle says of it. Loads neither PyTorch nor timm.

There are two kinds: `Fusion`, CVM-Cervix itself, and `SingleNetwork`, any one network that is
known by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# What would load weights, or what decides the classes and the outputs elsewhere.
_REFUSED_ARGS = re.compile(
    "pretrained|checkpoint|cache_dir|weights|num_classes|aux_logits|scriptable|exportable"
)


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A timm model without its classifier."""

    name: str
    """The model's name in timm."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for ``timm.create_model``."""

    def __post_init__(self) -> None:
        _check(self.name, self.args)

    def build(self, *, pretrained: bool = False) -> nn.Module:
        """Return the module, mapping images [n, 3, s, s] to features [n, num_features]."""
        # Here: a plan reads bundles and needs no network.
        from cvm_batch.model.timm_import import import_timm

        timm = import_timm()
        # timm writes into nested arguments (xception41's block_cfg): give it a copy.
        args = deepcopy(dict(self.args))
        features: nn.Module = timm.create_model(
            self.name, pretrained=pretrained, num_classes=0, **args
        )
        return features


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """CVM-Cervix: all that decides its shape, except the number of classes."""

    cnn: Backbone
    vt: Backbone
    hidden: int
    """Width of the fusion MLP's hidden layer."""

    def __str__(self) -> str:
        return f"{self.cnn.name} + {self.vt.name}, hidden width {self.hidden}"

    @property
    def input_px(self) -> int:
        """The side that the network takes. A timm transformer has one, 224 where none is given;
        its convolutional partner takes any."""
        return int(self.vt.args.get("img_size", 224))

    def build(self, classes: int, *, pretrained: bool = False) -> nn.Module:
        """Return the module, mapping images [n, 3, s, s] to logits [n, classes]."""
        from cvm_batch.model.network import CvmCervix

        return CvmCervix(self, classes, pretrained=pretrained)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "cvm-cervix",
            "cnn": {"name": self.cnn.name, "args": dict(self.cnn.args)},
            "vt": {"name": self.vt.name, "args": dict(self.vt.args)},
            "hidden": self.hidden,
        }


@dataclass(frozen=True, kw_only=True)
class SingleNetwork:
    """One network with its own classifier, as those that CVM-Cervix is compared with."""

    name: str
    """In `comparison.registry`, or in timm."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for whoever builds it."""

    def __post_init__(self) -> None:
        _check(self.name, self.args)

    def __str__(self) -> str:
        return self.name

    @property
    def input_px(self) -> int | None:
        """The side that the network takes; None where it takes any.

        Loads timm where the network is not among those of the comparison.
        """
        from cvm_batch.model.comparison.registry import input_px

        return input_px(self.name, self.args)

    def build(self, classes: int, *, pretrained: bool = False) -> nn.Module:
        """Return the module, mapping images [n, 3, s, s] to logits [n, classes].

        Raises UsageError where there are no pretrained weights.
        """
        from cvm_batch.model.timm_import import import_timm

        import_timm()  # before what follows imports it at length
        from cvm_batch.model.comparison.building import build

        return build(self.name, classes, pretrained=pretrained, args=deepcopy(dict(self.args)))

    def to_json(self) -> dict[str, Any]:
        return {"kind": "single", "name": self.name, "args": dict(self.args)}


Architecture = Fusion | SingleNetwork


def architecture_from_json(value: Mapping[str, Any]) -> Architecture:
    """Raises KeyError, TypeError or ValueError where a field is missing or of another kind."""
    match value["kind"]:
        case "cvm-cervix":
            return Fusion(
                cnn=Backbone(**value["cnn"]),
                vt=Backbone(**value["vt"]),
                hidden=int(value["hidden"]),
            )
        case "single":
            return SingleNetwork(name=value["name"], args=value["args"])
        case kind:
            raise ValueError(f"unknown architecture kind {kind!r}")


def _check(name: str, args: Mapping[str, Any]) -> None:
    # timm takes "hf-hub:..." and local paths as names, and paths of pickled weights as
    # arguments; a bundle describes shapes and nothing else.
    if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
        raise ValueError(f"{name!r} is no name of a model")
    if refused := sorted(arg for arg in args if _REFUSED_ARGS.match(arg)):
        raise ValueError(f"arguments that no bundle may set: {', '.join(refused)}")


# The paper leaves the hidden width open; 2240, the fused width, is the one that gives
# its sizes of "about 120 MB" in 32 and "60 MB" in 16 bits (31,375,859 parameters).
CVM_CERVIX = Fusion(
    cnn=Backbone(name="legacy_xception"),
    vt=Backbone(name="deit_tiny_patch16_224"),
    hidden=2240,
)

# A sibling of 3 M parameters for 100 px crops: an aligned Xception with four narrow
# stages, and a DeiT of half the depth. Small enough to ship, fast enough for a laptop.
CVM_CERVIX_MINI = Fusion(
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
