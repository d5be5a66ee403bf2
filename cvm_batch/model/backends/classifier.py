"""The network as every backend runs it: uint8 images in, probabilities out."""

from __future__ import annotations

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
    for name, child in copy.named_children():
        if any(isinstance(module, nn.BatchNorm2d) for module in child.modules()):
            setattr(copy, name, _folded(child))
    return copy


class _Tracer(fx.Tracer):
    """Keeps batch normalisation whole, timm's own kind with an activation inside too."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, nn.BatchNorm2d) or super().is_leaf_module(module, qualified_name)


def _folded(module: nn.Module) -> nn.Module:
    try:
        traced = fx.GraphModule(module, _Tracer().trace(module))
    except Exception:  # control flow that depends on data: fx raises whatever it meets
        return module
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        norm = modules.get(node.target) if node.op == "call_module" else None
        if isinstance(norm, nn.Identity):  # timm's places for what a network has not
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        before = node.args[0]
        conv = modules.get(before.target) if before.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or len(before.users) > 1 or calls(traced, before) > 1:
            continue
        traced.set_submodule(before.target, fuse_conv_bn_eval(conv, norm))
        if rest := _after(norm):
            traced.set_submodule(node.target, rest[0] if len(rest) == 1 else nn.Sequential(*rest))
        else:
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def calls(traced: fx.GraphModule, of: fx.Node) -> int:
    """How often a module is used: one that is shared may not be changed for one use."""
    return sum(node.op == "call_module" and node.target == of.target for node in traced.graph.nodes)


def _after(norm: nn.BatchNorm2d) -> list[nn.Module]:
    """What is left of a batch normalisation of timm's: its activation."""
    found = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    return [module for module in found if not isinstance(module, nn.Identity)]
