"""Inception-ResNet-v1 (Szegedy, Ioffe, Vanhoucke and Alemi 2016, arXiv:1602.07261).

Modules have the names of FaceNet's public weights in PyTorch, which add two things to the
paper's Figure 15: a sixth Inception-ResNet-C without activation, and 512 features before the
classes. In what follows "valid" convolutions are those without padding.

Shapes: n images, s input side in pixels, from 75.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn

_Size = int | tuple[int, int]
# Section 3.3: residuals are scaled by 0.1 to 0.3; these are FaceNet's.
_SCALE_A, _SCALE_B, _SCALE_C = 0.17, 0.10, 0.20
_FEATURES = 512


class InceptionResNetV1(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        # Figure 14, the stem.
        self.conv2d_1a = _conv(3, 32, 3, stride=2)
        self.conv2d_2a = _conv(32, 32, 3)
        self.conv2d_2b = _conv(32, 64, 3, padding=1)
        self.maxpool_3a = nn.MaxPool2d(3, stride=2)
        self.conv2d_3b = _conv(64, 80, 1)
        self.conv2d_4a = _conv(80, 192, 3)
        self.conv2d_4b = _conv(192, 256, 3, stride=2)
        # Figure 15, the whole.
        self.repeat_1 = nn.Sequential(*(_inception_a() for _ in range(5)))
        self.mixed_6a = _reduction_a()
        self.repeat_2 = nn.Sequential(*(_inception_b() for _ in range(10)))
        self.mixed_7a = _reduction_b()
        self.repeat_3 = nn.Sequential(*(_inception_c() for _ in range(5)))
        self.block8 = _inception_c(scale=1.0, activation=nn.Identity())
        self.avgpool_1a = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.last_linear = nn.Linear(1792, _FEATURES, bias=False)
        self.last_bn = nn.BatchNorm1d(_FEATURES, eps=1e-3)
        self.logits = nn.Linear(_FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of normalised images [n, 3, s, s]."""
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(images)))
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(self.maxpool_3a(x))))
        x = self.mixed_6a(self.repeat_1(x))
        x = self.mixed_7a(self.repeat_2(x))
        x = self.block8(self.repeat_3(x))
        features = self.last_linear(self.dropout(self.avgpool_1a(x).flatten(1)))
        return cast(Tensor, self.logits(self.last_bn(features)))


class _Branches(nn.Module):
    """What goes several ways at once, one after the other in the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self._names = [f"branch{number}" for number in range(len(branches))]
        for name, branch in zip(self._names, branches, strict=True):
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.get_submodule(name)(x) for name in self._names], dim=1)


class _Residual(_Branches):
    """Section 3.2: branches, a linear 1x1 convolution to the input's width, the sum."""

    def __init__(
        self, width: int, inner: int, *branches: nn.Module, scale: float, activation: nn.Module
    ) -> None:
        super().__init__(*branches)
        self.conv2d = nn.Conv2d(inner, width, 1)
        self.scale = scale
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.activation(x + self.scale * self.conv2d(super().forward(x))))


def _inception_a() -> nn.Module:
    """Figure 10."""
    return _Residual(
        256,
        96,
        _conv(256, 32, 1),
        nn.Sequential(_conv(256, 32, 1), _conv(32, 32, 3, padding=1)),
        nn.Sequential(_conv(256, 32, 1), _conv(32, 32, 3, padding=1), _conv(32, 32, 3, padding=1)),
        scale=_SCALE_A,
        activation=nn.ReLU(),
    )


def _inception_b() -> nn.Module:
    """Figure 11."""
    return _Residual(
        896,
        256,
        _conv(896, 128, 1),
        nn.Sequential(
            _conv(896, 128, 1),
            _conv(128, 128, (1, 7), padding=(0, 3)),
            _conv(128, 128, (7, 1), padding=(3, 0)),
        ),
        scale=_SCALE_B,
        activation=nn.ReLU(),
    )


def _inception_c(*, scale: float = _SCALE_C, activation: nn.Module | None = None) -> nn.Module:
    """Figure 13."""
    return _Residual(
        1792,
        384,
        _conv(1792, 192, 1),
        nn.Sequential(
            _conv(1792, 192, 1),
            _conv(192, 192, (1, 3), padding=(0, 1)),
            _conv(192, 192, (3, 1), padding=(1, 0)),
        ),
        scale=scale,
        activation=activation or nn.ReLU(),
    )


def _reduction_a() -> nn.Module:
    """Figure 7, with k, l, m, n = 192, 192, 256, 384 of Table 1."""
    return _Branches(
        _conv(256, 384, 3, stride=2),
        nn.Sequential(
            _conv(256, 192, 1), _conv(192, 192, 3, padding=1), _conv(192, 256, 3, stride=2)
        ),
        nn.MaxPool2d(3, stride=2),
    )


def _reduction_b() -> nn.Module:
    """Figure 12."""
    return _Branches(
        nn.Sequential(_conv(896, 256, 1), _conv(256, 384, 3, stride=2)),
        nn.Sequential(_conv(896, 256, 1), _conv(256, 256, 3, stride=2)),
        nn.Sequential(
            _conv(896, 256, 1), _conv(256, 256, 3, padding=1), _conv(256, 256, 3, stride=2)
        ),
        nn.MaxPool2d(3, stride=2),
    )


def _conv(
    inputs: int, outputs: int, kernel: _Size, *, stride: int = 1, padding: _Size = 0
) -> nn.Module:
    """Valid unless padded, with batch normalisation and ReLU."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False),
            bn=nn.BatchNorm2d(outputs, eps=1e-3),
            relu=nn.ReLU(),
        )
    )
