"""CVM-Cervix: a CNN and a visual transformer, fused by an MLP (paper, section 3).

Shapes: n images, s input side in pixels, c CNN features, v VT features.
The architecture is data, so that a small sibling is the same class.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cvm_batch.model.architecture import Architecture, Fusion


class CvmCervix(nn.Module):
    """Feature fusion of section 3.4: concatenate, CNN first, then Linear, GELU, Linear."""

    def __init__(self, architecture: Fusion, classes: int, *, pretrained: bool = False) -> None:
        super().__init__()
        self.architecture = architecture
        self.cnn = architecture.cnn.build(pretrained=pretrained)
        self.vt = architecture.vt.build(pretrained=pretrained)
        width = int(self.cnn.num_features) + int(self.vt.num_features)  # type: ignore[arg-type]
        self.mlp = nn.Sequential(
            nn.Linear(width, architecture.hidden),
            nn.GELU(),
            nn.Linear(architecture.hidden, classes),
        )

    def features(self, images: Tensor) -> Tensor:
        """Fused features [n, c + v] of normalised images [n, 3, s, s]."""
        return torch.cat([self.cnn(images), self.vt(images)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of normalised images [n, 3, s, s]."""
        return cast(Tensor, self.mlp(self.features(images)))


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def tile_gflop(architecture: Architecture, classes: int, side: int) -> float:
    """Arithmetic of one image [3, side, side] in GFLOP, a multiply-add counted as two."""
    with torch.device("meta"):
        network = architecture.build(classes).eval()
        images = torch.empty(1, 3, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    return float(counter.get_total_flops()) / 1e9
