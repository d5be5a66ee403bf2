"""Random changes of a batch of training images, drawn for each image on its own.

Shapes: n images, s input side in pixels. The random numbers come from a generator on
the CPU, so that a seed means the same on every device; all else happens on the device of
the images, one pass over them for flips, turns and shifts together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from cvm_batch.training.recipe import Augmentation

#: The fixed attitudes of a fourfold training set: each image as it is, turned by 180
#: degrees, flipped left-right, flipped up-down.
ATTITUDES = 4


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Changed copies uint8 [n, 3, s, s] of uint8 images [n, 3, s, s]."""
    images = _moved(images, augmentation, generator)
    if augmentation.rotate or augmentation.zoom:
        images = _warped(images, augmentation, generator)
    if augmentation.jitter:
        images = _jittered(images, augmentation.jitter, generator)
    return images


def in_attitudes(images: Tensor, attitudes: Tensor) -> Tensor:
    """Each image [n, 3, s, s] in one of the four ``attitudes`` int64 [n]."""
    left_right = (attitudes == 1) | (attitudes == 2)
    up_down = (attitudes == 1) | (attitudes == 3)
    return _gathered(images, *_flipped(images, left_right, up_down))


def _moved(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Flips, quarter turns and shifts: every output pixel is one input pixel."""
    count, side = len(images), images.shape[2]
    chance = torch.rand((count, 3), generator=generator) < 0.5
    shifts = torch.randint(2 * augmentation.shift_px + 1, (count, 2, 1), generator=generator)
    left_right = chance[:, 0] & (augmentation.horizontal_flip or augmentation.quarter_turns)
    up_down = chance[:, 1] & (augmentation.vertical_flip or augmentation.quarter_turns)
    # A quarter turn is a flip of the transposed image; both flips are half a turn.
    if augmentation.quarter_turns:
        images = _where(chance[:, 2], images.transpose(2, 3), images)
    rows, columns = _flipped(images, left_right, up_down)
    if most := augmentation.shift_px:
        offsets = (shifts - most).to(images.device)
        # Mirrored borders look like more smear; black ones would be a mark of the change.
        rows, columns = (
            _mirrored(index + offsets[:, axis], side) for axis, index in enumerate((rows, columns))
        )
    return _gathered(images, rows, columns)


def _flipped(images: Tensor, left_right: Tensor, up_down: Tensor) -> tuple[Tensor, Tensor]:
    """Source rows and columns [n, s] of each output row and column."""
    index = torch.arange(images.shape[2], device=images.device)
    back = index.flip(0)
    return (
        torch.where(up_down.to(images.device)[:, None], back, index),
        torch.where(left_right.to(images.device)[:, None], back, index),
    )


def _gathered(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    which = torch.arange(len(images), device=images.device)[:, None, None]
    # Indexed as [n, s, s, 3], so that the channels of a pixel stay together.
    pixels = images.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return pixels.permute(0, 3, 1, 2)


def _mirrored(index: Tensor, side: int) -> Tensor:
    index = index.abs()
    return torch.where(index < side, index, 2 * (side - 1) - index)


def _warped(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Turned by any angle and scaled, bilinearly."""
    count = len(images)
    angle = 2 * math.pi * torch.rand(count, generator=generator) * augmentation.rotate
    scale = 1 + augmentation.zoom * (2 * torch.rand((count, 2), generator=generator) - 1)
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = cos / scale[:, 0], -sin / scale[:, 0]
    matrix[:, 1, 0], matrix[:, 1, 1] = sin / scale[:, 1], cos / scale[:, 1]
    grid = functional.affine_grid(matrix.to(images.device), list(images.shape), align_corners=False)
    warped = functional.grid_sample(
        images.float(), grid, padding_mode="reflection", align_corners=False
    )
    return warped.round_().clamp_(0, 255).to(torch.uint8)


def _jittered(images: Tensor, most: float, generator: torch.Generator) -> Tensor:
    def factor(channels: int, strength: float) -> Tensor:
        drawn = torch.rand((len(images), channels, 1, 1), generator=generator)
        return (1 + strength * (2 * drawn - 1)).to(images.device)

    values = images.float()
    mean = values.mean(dim=(1, 2, 3), keepdim=True)
    values = (values - mean) * factor(1, most) + mean * factor(1, most)
    values = values * factor(3, most / 2)
    return values.round_().clamp_(0, 255).to(torch.uint8)


def _where(chosen: Tensor, changed: Tensor, images: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, 1, 1, 1).to(images.device), changed, images)
