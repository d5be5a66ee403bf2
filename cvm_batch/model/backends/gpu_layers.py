"""A folded network's layers, in the forms that cost a GPU the least memory traffic.

Folding gives every convolution a bias, and PyTorch adds a bias to cuDNN's convolution in a
pass of its own: over a quarter of CVM-Cervix's time on an H100 (docs/performance.md).
"""

from __future__ import annotations

from collections import Counter
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from cvm_batch.model.backends.classifier import Tracer
from cvm_batch.model.backends.kernels import depthwise, max_pool


class Depthwise(nn.Module):
    """A 3x3 depthwise `Conv2d`, and the ReLU before it where ``relu``."""

    def __init__(self, conv: nn.Conv2d, *, relu: bool) -> None:
        super().__init__()
        self.register_buffer("weight", conv.weight.detach().flatten(1).t().contiguous())
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())
        self._stride = int(conv.stride[0])
        self._relu = relu

    def forward(self, images: Tensor) -> Tensor:
        weight, bias = cast(Tensor, self.weight), cast("Tensor | None", self.bias)
        return cast(Tensor, depthwise(images, weight, bias, self._stride, self._relu))


class Pointwise(nn.Module):
    """A 1x1 `Conv2d` as a matrix product, whose epilogue adds the bias."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("weight", conv.weight.detach().flatten(1))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())
        self._stride = int(conv.stride[0])

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 2, 3, 1)  # no copy where they are channels-last
        if self._stride > 1:
            pixels = pixels[:, :: self._stride, :: self._stride].contiguous()
        weight, bias = cast(Tensor, self.weight), cast("Tensor | None", self.bias)
        return functional.linear(pixels, weight, bias).permute(0, 3, 1, 2)


class MaxPool(nn.Module):
    """`MaxPool2d` of 3x3 with stride 2 and padding 1."""

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, max_pool(images))


class ConvRelu(nn.Module):
    """A `Conv2d` with a bias and the ReLU after it, as one call of cuDNN."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        self.register_buffer("weight", conv.weight.detach())
        self.register_buffer("bias", conv.bias.detach())
        self._shape = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)

    def forward(self, images: Tensor) -> Tensor:
        weight, bias = cast(Tensor, self.weight), cast(Tensor, self.bias)
        return cast(Tensor, _conv_relu(images, weight, bias, *self._shape))


@torch.library.custom_op("cvm_batch::conv_relu", mutates_args=(), device_types="cuda")
def _conv_relu(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return torch.cudnn_convolution_relu(images, weight, bias, stride, padding, dilation, groups)


@_conv_relu.register_kernel("cpu")
def _(images, weight, bias, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    return functional.conv2d(images, weight, bias, stride, padding, dilation, groups).relu()


@_conv_relu.register_fake
def _(images, weight, bias, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    return functional.conv2d(images, weight, bias, stride, padding, dilation, groups)


def for_gpu(network: nn.Module) -> nn.Module:
    """The network with these layers in it, wherever it can be traced; takes ``network`` over.

    For halves alone: in fp32 the matrix products would need other settings than convolutions.
    """
    if not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        return network
    try:
        traced = fx.GraphModule(network, Tracer().trace(network))
    except Exception:  # control flow that depends on data: fx raises whatever it meets
        for name, child in network.named_children():
            setattr(network, name, for_gpu(child))
        return network
    _rewrite(traced)
    return traced


def _rewrite(traced: fx.GraphModule) -> None:
    graph, modules = traced.graph, dict(traced.named_modules())
    called = {node: modules[str(node.target)] for node in graph.nodes if node.op == "call_module"}
    for node, module in list(called.items()):
        if isinstance(module, nn.Identity):  # timm's places for what a network has not
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            del called[node]
    # What is used twice may not be changed for one use.
    uses = Counter(called.values())
    once = {node: module for node, module in called.items() if uses[module] == 1}
    for node, module in once.items():
        if isinstance(module, nn.MaxPool2d) and _is_known_pool(module):
            traced.set_submodule(str(node.target), MaxPool())
        if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros":
            continue
        (before,), (after, *others) = node.all_input_nodes, list(node.users)
        if _is_depthwise(module):
            relu = isinstance(called.get(before), nn.ReLU) and len(before.users) == 1
            traced.set_submodule(str(node.target), Depthwise(module, relu=relu))
            if relu:
                node.replace_input_with(before, before.all_input_nodes[0])
                graph.erase_node(before)
        elif module.kernel_size == (1, 1) and module.groups == 1 and module.padding == (0, 0):
            traced.set_submodule(str(node.target), Pointwise(module))
        elif module.bias is not None and isinstance(called.get(after), nn.ReLU) and not others:
            traced.set_submodule(str(node.target), ConvRelu(module))
            after.replace_all_uses_with(node)
            graph.erase_node(after)
    traced.delete_all_unused_submodules()
    traced.recompile()


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and conv.kernel_size == (3, 3)
        and conv.padding == (1, 1)
        and conv.dilation == (1, 1)
        and conv.stride in ((1, 1), (2, 2))
    )


def _is_known_pool(pool: nn.MaxPool2d) -> bool:
    """Some give their sizes as a number, others as a pair."""
    sizes = [pool.kernel_size, pool.stride, pool.padding, pool.dilation]
    pairs = [size if isinstance(size, tuple) else (size, size) for size in sizes]
    return pairs == [(3, 3), (2, 2), (1, 1), (1, 1)] and not pool.ceil_mode
