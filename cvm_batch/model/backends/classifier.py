"""The network as every backend runs it: uint8 images in, probabilities out."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cvm_batch.model.preprocessing import Preprocessing


class Classifier(nn.Module):
    """Normalises, casts, classifies; one graph for whoever compiles it."""

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.network = network.to(dtype).to(memory_format=torch.channels_last)
        self.dtype = dtype
        scale, shift = preprocessing.scale_and_shift()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities float32 [n, classes] of resized uint8 images [n, 3, s, s]."""
        scale, shift = cast(Tensor, self.scale), cast(Tensor, self.shift)
        logits = self.network(torch.addcmul(shift, images.float(), scale).to(self.dtype))
        return cast(Tensor, logits.float().softmax(dim=1))


def folded(network: nn.Module) -> nn.Module:
    """A copy of the network in which convolutions carry their batch normalisation.

    A third of a CNN's memory traffic goes to layers that only scale and shift. What cannot
    be traced stays as it is. Equal up to rounding; the network is in evaluation mode, and
    in fp32, so that nothing is lost before the weights are cast.
    """
    copy = deepcopy(network)
    _fold(copy)
    return copy


class Tracer(fx.Tracer):
    """Keeps batch normalisation whole, timm's own kind with an activation inside too."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, nn.BatchNorm2d) or super().is_leaf_module(module, qualified_name)


def _fold(module: nn.Module) -> None:
    """In place: the graph says what follows on what, and the module goes on computing itself."""
    if not any(isinstance(part, nn.BatchNorm2d) for part in module.modules() if part is not module):
        return
    try:
        graph = Tracer().trace(module)
    except Exception:  # control flow that depends on data: fx raises whatever it meets
        for child in module.children():
            _fold(child)
        return
    parts = dict(module.named_modules())
    called = {node: parts[str(node.target)] for node in graph.nodes if node.op == "call_module"}
    # What is used twice may not be changed for one use.
    uses = Counter(called.values())
    once = {node: part for node, part in called.items() if uses[part] == 1}
    for node, norm in once.items():
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        (before,) = node.all_input_nodes
        conv = once.get(before)
        if isinstance(conv, nn.Conv2d) and len(before.users) == 1:
            module.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
            module.set_submodule(str(node.target), _after(norm))


def _after(norm: nn.BatchNorm2d) -> nn.Module:
    """What is left of a batch normalisation: nothing, or timm's activation."""
    found = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    rest = [module for module in found if not isinstance(module, nn.Identity)]
    return rest[0] if len(rest) == 1 else nn.Sequential(*rest) if rest else nn.Identity()
