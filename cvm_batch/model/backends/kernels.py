"""Kernels for the memory traffic of a CNN in halves on a GPU, in Triton.

Depthwise convolutions and poolings are 2 % of CVM-Cervix's arithmetic and a third of its
memory traffic. Each kernel reads the activations once and writes once, a ReLU before it
included, which no library's kernel takes along (figures: docs/performance.md).

Shapes: n images, c channels, h x w pixels, channels-last in memory; 3x3 windows, padding 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

#: Output pixels and channels of one program; measured on an H100.
_PIXELS, _CHANNELS = 32, 64
#: Sizes that differ from layer to layer: one binary serves them all.
_SIZES = ("pixels", "height", "width", "out_height", "out_width")


@triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
def _depthwise_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    pixels,
    height,
    width,
    out_height,
    out_width,
    # Known when compiled: 728 channels are no multiple of 16, and Triton would read them
    # one by one, at a fifth of the speed.
    channels: tl.constexpr,
    stride: tl.constexpr,
    relu: tl.constexpr,
    has_bias: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
):
    # Output pixels of all images in a row; the channels of a pixel lie side by side.
    pixel = tl.program_id(0) * block_pixels + tl.arange(0, block_pixels)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    column = pixel % out_width
    row = pixel // out_width % out_height
    image = pixel // (out_width * out_height)
    is_channel = channel < channels
    inside = (pixel < pixels)[:, None] & is_channel[None, :]
    total = tl.zeros((block_pixels, block_channels), tl.float32)
    if has_bias:
        total += tl.load(bias_ptr + channel, is_channel, 0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(9):
        y = row * stride + tap // 3 - 1
        x = column * stride + tap % 3 - 1
        on_image = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        place = ((image * height + y) * width + x).to(tl.int64) * channels
        value = tl.load(
            x_ptr + place[:, None] + channel[None, :], inside & on_image[:, None], 0.0
        ).to(tl.float32)
        if relu:
            # A value that is no number must come through, or the engine's guard misses it.
            value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
        weight = tl.load(weight_ptr + tap * channels + channel, is_channel, 0.0)
        total += value * weight.to(tl.float32)[None, :]
    at = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
def _max_pool_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    y_ptr,
    pixels,
    height,
    width,
    out_height,
    out_width,
    channels: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
):
    pixel = tl.program_id(0) * block_pixels + tl.arange(0, block_pixels)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    column = pixel % out_width
    row = pixel // out_width % out_height
    image = pixel // (out_width * out_height)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    highest = tl.full((block_pixels, block_channels), float("-inf"), tl.float32)
    for tap in tl.static_range(9):
        y = row * 2 + tap // 3 - 1
        x = column * 2 + tap % 3 - 1
        on_image = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        place = ((image * height + y) * width + x).to(tl.int64) * channels
        value = tl.load(
            x_ptr + place[:, None] + channel[None, :],
            inside & on_image[:, None],
            float("-inf"),
        ).to(tl.float32)
        highest = tl.maximum(highest, value, propagate_nan=tl.PropagateNan.ALL)
    at = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(y_ptr + at, highest.to(y_ptr.dtype.element_ty), inside)


@triton_op("cvm_batch::depthwise", mutates_args={})
def depthwise(
    images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, relu: bool
) -> Tensor:
    """Depthwise convolution of ``images`` [n, c, h, w], or of their positive part.

    ``weight`` is [9, c], the taps row by row, ``bias`` [c]. Sums are in fp32.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    out = _blank(images, stride)
    height, width = images.shape[2:]
    out_height, out_width = out.shape[2:]
    channels, pixels = out.shape[1], out.numel() // out.shape[1]
    wrap_triton(_depthwise_kernel)[_grid(pixels, channels)](
        images,
        weight,
        weight if bias is None else bias,
        out,
        pixels,
        height,
        width,
        out_height,
        out_width,
        channels=channels,
        stride=stride,
        relu=relu,
        has_bias=bias is not None,
        block_pixels=_PIXELS,
        block_channels=_CHANNELS,
    )
    return out


@triton_op("cvm_batch::max_pool", mutates_args={})
def max_pool(images: Tensor) -> Tensor:
    """Max pooling of ``images`` [n, c, h, w] with stride 2."""
    images = images.contiguous(memory_format=torch.channels_last)
    out = _blank(images, 2)
    height, width = images.shape[2:]
    out_height, out_width = out.shape[2:]
    channels, pixels = out.shape[1], out.numel() // out.shape[1]
    wrap_triton(_max_pool_kernel)[_grid(pixels, channels)](
        images,
        out,
        pixels,
        height,
        width,
        out_height,
        out_width,
        channels=channels,
        block_pixels=_PIXELS,
        block_channels=_CHANNELS,
    )
    return out


def _blank(images: Tensor, stride: int) -> Tensor:
    count, channels, height, width = images.shape
    return torch.empty(
        (count, channels, (height - 1) // stride + 1, (width - 1) // stride + 1),
        dtype=images.dtype,
        device=images.device,
        memory_format=torch.channels_last,
    )


def _grid(pixels: int, channels: int) -> tuple[int, int]:
    return triton.cdiv(pixels, _PIXELS), triton.cdiv(channels, _CHANNELS)
