"""Pillow's bilinear resize of uint8 images, bit for bit, on whichever device they are.

The network was trained on what Pillow makes of a tile. PyTorch's own antialiased resize
rounds once instead of after each pass: one pixel in five comes out a grey level off, which
moved probabilities of a trained bundle by up to 0.007 on an H100. Here the passes, the
fixed-point weights and the rounding are those of Pillow's Resample.c.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

#: Weights are whole numbers of 1 / 2**22, so that 255 times all of them fits in 32 bits.
_PRECISION_BITS = 32 - 8 - 2


def resized(images: Tensor, side: int) -> Tensor:
    """Uint8 [n, side, side, 3] of uint8 images [n, h, w, 3]."""
    height, width = images.shape[1:3]
    # Pillow 13 goes along the rows first unless the other way is less work. (Earlier versions
    # never do the other way, which moves tall images by a grey level.)
    columns_first = height > side and 2 * (width - side) < height - side
    for axis in (1, 2) if columns_first else (2, 1):
        if images.shape[axis] != side:
            images = _along(images, axis, side)
    return images


def _along(images: Tensor, axis: int, side: int) -> Tensor:
    first, weights = _weights(images.shape[axis], side, images.device)
    last = images.shape[axis] - 1
    shape = [1, 1, 1, 1]
    shape[axis] = side
    total: Tensor | None = None
    for tap, weight in enumerate(weights):
        # Weights beyond the image's end are zero.
        values = images.index_select(axis, (first + tap).clamp_max(last)) * weight.view(shape)
        total = values if total is None else total.add_(values)
    assert total is not None
    total += 1 << (_PRECISION_BITS - 1)
    return (total >> _PRECISION_BITS).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=256)
def _weights(old: int, new: int, device: torch.device) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The first source position int64 [new] of each new one, and the weights int32 [new] of
    the positions from there on, one tensor for each."""
    scale = old / new
    reach = max(1.0, scale)  # the triangle's, wider where pixels are brought together
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + reach + 0.5).astype(np.int64), old)
    position = first[:, None] + np.arange(math.ceil(reach) * 2 + 1)
    distance = np.abs((position - centre[:, None] + 0.5) / reach)
    weight = np.where(position < end[:, None], np.maximum(1 - distance, 0), 0)
    weight /= weight.sum(axis=1, keepdims=True)
    fixed = (weight * (1 << _PRECISION_BITS) + 0.5).astype(np.int32)
    taps = [torch.from_numpy(tap).to(device) for tap in np.ascontiguousarray(fixed.T) if tap.any()]
    return torch.from_numpy(first).to(device), tuple(taps)
