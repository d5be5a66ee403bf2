"""Random changes of a batch of training images, drawn for each image on its own.

Shapes: n images, s input side in pixels. The random numbers come from a generator on
the CPU, so that a seed means the same on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cvm_batch.training.recipe import Augmentation


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Changed copies uint8 [n, 3, s, s] of uint8 images [n, 3, s, s]."""
    if augmentation.quarter_turns:
        images = _turn(images, torch.randint(4, (len(images),), generator=generator))
    if augmentation.flips:
        for axis in (2, 3):
            chosen = torch.rand(len(images), generator=generator) < 0.5
            images = _where(chosen, images.flip(axis), images)
    if augmentation.shift_px:
        images = _shift(images, augmentation.shift_px, generator)
    if augmentation.jitter:
        images = _jitter(images, augmentation.jitter, generator)
    return images


def _turn(images: Tensor, quarters: Tensor) -> Tensor:
    for quarter in (1, 2, 3):
        images = _where(quarters == quarter, images.rot90(quarter, (2, 3)), images)
    return images


def _shift(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    side = images.shape[2]
    # Mirrored borders look like more smear; black ones would be a mark of the change.
    padded = functional.pad(images.float(), (most,) * 4, mode="reflect").to(torch.uint8)
    corners = torch.randint(2 * most + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack(
        [
            image[:, top : top + side, left : left + side]
            for image, (top, left) in zip(padded, corners, strict=True)
        ]
    )


def _jitter(images: Tensor, most: float, generator: torch.Generator) -> Tensor:
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
