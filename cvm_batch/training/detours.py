"""Layers that PyTorch trains slower in bf16 than in fp32 on CPUs, and fp32 for them.

Measured on AMD's AVX-512 with PyTorch 2.15, forwards and back (docs/performance.md): depthwise
convolutions with a stride take four times as long in bf16, attention three times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

#: Its parameters, in order.
_OF_CONV2D = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class SlowInBf16(TorchFunctionMode):
    """Within it, and within autocast on the CPU, those layers compute in fp32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if not _is_slow(func, args, named):
            return func(*args, **named)
        with torch.autocast("cpu", enabled=False):
            return func(
                *map(_in_fp32, args), **{name: _in_fp32(value) for name, value in named.items()}
            )


def _is_slow(func: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    if func is functional.conv2d:
        given = {**dict(zip(_OF_CONV2D, args, strict=False)), **named}
        stride = given.get("stride", 1)
        strided = (stride if isinstance(stride, int) else max(stride)) > 1
        return bool(strided and given.get("groups", 1) > 1)
    return func is functional.scaled_dot_product_attention


def _in_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
