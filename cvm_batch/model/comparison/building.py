"""From a name to a network with its own classifier.

Shapes: n images, s input side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import timm
import torchvision
from torch import nn

from cvm_batch.errors import UsageError
from cvm_batch.model.comparison.botnet import botnet_50
from cvm_batch.model.comparison.inception_resnet_v1 import InceptionResNetV1
from cvm_batch.model.comparison.registry import COMPARED, Source
from cvm_batch.model.comparison.t2t_vit import T2TViT14

_OURS: Mapping[str, Callable[..., nn.Module]] = {
    "inception_resnet_v1": InceptionResNetV1,
    "botnet_50": botnet_50,
    "t2t_vit_14": T2TViT14,
}
#: The last layer of each network from torchvision, which pretrained weights do not fill.
_HEADS = {
    "alexnet": "classifier.6",
    "googlenet": "fc",
    "shufflenet_v2_x1_0": "fc",
    "shufflenet_v2_x0_5": "fc",
}
# Without the auxiliary heads: they carried gradients into networks that had no batch
# normalisation, which this one has, and a loss over three outputs would be GoogLeNet's alone.
# Its input is scaled as its pretrained weights want it, also without them: a bundle builds what
# was trained, and does not know how that began.
_GOOGLENET = {"aux_logits": False, "init_weights": True, "transform_input": True}


def build(name: str, classes: int, *, pretrained: bool, args: Mapping[str, Any]) -> nn.Module:
    """Return the module, mapping images [n, 3, s, s] to logits [n, classes].

    ``pretrained``: with weights from ImageNet, downloaded, except the last layer's. Raises
    UsageError for a name that nobody knows, and where there are no such weights.
    """
    source = COMPARED[name].source if name in COMPARED else Source.TIMM
    if source is Source.TORCHVISION:
        return _from_torchvision(name, classes, pretrained, args)
    if source is Source.OURS:
        return _ours(name, classes, pretrained, args)
    return _from_timm(name, classes, pretrained, args)


def _ours(name: str, classes: int, pretrained: bool, args: Mapping[str, Any]) -> nn.Module:
    if pretrained:
        raise UsageError(
            f"There are no pretrained weights for {name} in timm or torchvision. "
            "Train it from scratch."
        )
    return _OURS[name](classes, **args)


def _from_timm(name: str, classes: int, pretrained: bool, args: Mapping[str, Any]) -> nn.Module:
    if not timm.is_model(name):
        raise UsageError(
            f"There is no network {name!r} in timm {timm.__version__}, nor among those of the "
            f"comparison: {', '.join(COMPARED)}."
        )
    network: nn.Module = timm.create_model(name, pretrained, num_classes=classes, **args)
    return network


def _from_torchvision(
    name: str, classes: int, pretrained: bool, args: Mapping[str, Any]
) -> nn.Module:
    fixed = _GOOGLENET if name == "googlenet" else {}
    network: nn.Module = torchvision.models.get_model(name, num_classes=classes, **fixed, **args)
    if pretrained:
        weights = torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=False)
        left_out = (f"{_HEADS[name]}.", "aux")
        kept = {key: value for key, value in weights.items() if not key.startswith(left_out)}
        network.load_state_dict(kept, strict=False)
    return network
