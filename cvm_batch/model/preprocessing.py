"""From native-size uint8 tiles to the network's input.

Pillow's bilinear resize (which antialiases) followed by the training transform's
normalisation: rounded to whole grey levels after the resize, since that is what the
network saw in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvm_batch.tiles import Tiles

if TYPE_CHECKING:  # a plan reads bundles and needs no network
    import torch
    from torch import Tensor

#: Part of the result key: raise it when the same tile would give another input.
PREPROCESSING_VERSION = 2

#: Brings uint8 tiles [n, h, w, 3] to a device.
Upload = Callable[[NDArray[np.uint8]], "Tensor"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The training transform, as recorded in the bundle."""

    input_px: int = 224
    """Side of the square input; tiles are stretched to it, as in the paper."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.interpolation != "bilinear":
            raise ValueError(f"unknown interpolation {self.interpolation!r}; known: bilinear")
        if self.input_px < 1 or not all(0 < std < math.inf for std in self.std):
            raise ValueError("input_px and every std must be above zero")
        if not all(map(math.isfinite, self.mean)):
            raise ValueError("every mean must be a number")

    def to_json(self) -> dict[str, Any]:
        return {
            "input_px": self.input_px,
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preprocessing:
        """Raises KeyError or ValueError where a field is missing or senseless."""
        mean, std = (tuple(float(v) for v in value[key]) for key in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3:
            raise ValueError("mean and std take three numbers each")
        return cls(
            input_px=int(value["input_px"]),
            mean=mean,
            std=std,
            interpolation=str(value["interpolation"]),
        )

    def resize(self, tiles: Tiles, device: torch.device, upload: Upload | None = None) -> Tensor:
        """Return uint8 [n, 3, s, s] in channels-last memory on ``device``.

        On the CPU Pillow itself resizes; elsewhere PyTorch does, bit for bit the same.
        ``upload`` brings tiles of one size to the device, each call's in memory of its
        own.
        """
        import torch

        from cvm_batch.model.resizing import resized

        if device.type == "cpu":
            return self._resize_on_cpu(tiles)
        upload = upload or (lambda block: torch.from_numpy(block).to(device))
        if isinstance(tiles, np.ndarray):
            return resized(upload(tiles), self.input_px).permute(0, 3, 1, 2)
        out = torch.empty(
            (len(tiles), 3, self.input_px, self.input_px),
            dtype=torch.uint8,
            device=device,
            memory_format=torch.channels_last,
        )
        for positions in _positions_by_shape(tiles).values():
            block = np.stack([tiles[position] for position in positions])
            out[positions] = resized(upload(block), self.input_px).permute(0, 3, 1, 2)
        return out

    def normalise(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (images / 255 - mean) / std of uint8 [n, 3, s, s] in ``dtype``."""
        import torch

        scale, shift = (value.to(images.device) for value in self.scale_and_shift())
        return torch.addcmul(shift, images.float(), scale).to(dtype)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Float32 [3, 1, 1] each: one multiply-add normalises, instead of three passes."""
        import torch

        std = torch.tensor(self.std).view(3, 1, 1)
        mean = torch.tensor(self.mean).view(3, 1, 1)
        return 1 / (255 * std), -mean / std

    def _resize_on_cpu(self, tiles: Tiles) -> Tensor:
        """Pillow's own: PyTorch's kernel for uint8 is four times as fast, and two grey levels
        off once in some million values (docs/decisions/0014)."""
        import torch

        side = self.input_px
        out = np.empty((len(tiles), side, side, 3), np.uint8)
        for image, tile in zip(out, tiles, strict=True):
            if tile.shape[:2] == (side, side):
                image[:] = tile
            else:
                resized = Image.fromarray(tile).resize((side, side), Image.Resampling.BILINEAR)
                image[:] = np.asarray(resized)
        return torch.from_numpy(out).permute(0, 3, 1, 2)


def _positions_by_shape(tiles: Sequence[NDArray[np.uint8]]) -> dict[tuple[int, ...], list[int]]:
    positions: dict[tuple[int, ...], list[int]] = {}
    for position, tile in enumerate(tiles):
        positions.setdefault(tile.shape, []).append(position)
    return positions
