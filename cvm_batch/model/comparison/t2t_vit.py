"""T2T-ViT-14 (Yuan, Chen, Wang, Yu, Shi, Jiang, Tay, Feng and Yan 2021, arXiv:2101.11986).

Modules have the names of the authors' public weights. Their random features and position
encodings, which nothing trains, are buffers here: still in the state, no longer parameters.

Shapes: n images, s input side in pixels, t tokens, c channels of a token, m random features.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

_TOKEN = 64  # channels while tokens are made, Table 2
_WIDTH, _DEPTH, _HEADS, _MLP_RATIO = 384, 14, 6, 3.0  # Table 2
_EPSILON = 1e-8


class T2TViT14(nn.Module):
    """Section 3.3: tokens out of tokens, then a deep and narrow ViT."""

    def __init__(self, classes: int, *, img_size: int = 224) -> None:
        super().__init__()
        if img_size % 16:
            raise ValueError(f"img_size must be a multiple of 16, not {img_size}")
        self.tokens_to_token = _TokensToToken(img_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, _WIDTH))
        tokens = (img_size // 16) ** 2
        self.register_buffer("pos_embed", _sinusoids(tokens + 1, _WIDTH)[None])
        self.blocks = nn.Sequential(
            *(
                Block(_WIDTH, _HEADS, mlp_ratio=_MLP_RATIO, norm_layer=nn.LayerNorm)
                for _ in range(_DEPTH)
            )
        )
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(_WIDTH, classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of normalised images [n, 3, s, s]."""
        tokens = self.tokens_to_token(images)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = self.norm(self.blocks(tokens + self.get_buffer("pos_embed")))
        return cast(Tensor, self.head(tokens[:, 0]))


class _TokensToToken(nn.Module):
    """Section 3.1: split softly into overlapping tokens, attend, make an image again; twice,
    and a last split. Patches of 7, 3 and 3 that overlap by 3, 1 and 1 (section 3.3)."""

    def __init__(self, img_size: int) -> None:
        super().__init__()
        self._sides = img_size // 4, img_size // 8
        self.soft_split0 = nn.Unfold(7, stride=4, padding=2)
        self.soft_split1 = nn.Unfold(3, stride=2, padding=1)
        self.soft_split2 = nn.Unfold(3, stride=2, padding=1)
        self.attention1 = _Performer(3 * 7 * 7)
        self.attention2 = _Performer(_TOKEN * 3 * 3)
        self.project = nn.Linear(_TOKEN * 3 * 3, _WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """Tokens [n, t, c]."""
        first, second = self._sides
        x = self.attention1(self.soft_split0(images).mT).mT.unflatten(2, (first, first))
        x = self.attention2(self.soft_split1(x).mT).mT.unflatten(2, (second, second))
        return cast(Tensor, self.project(self.soft_split2(x).mT))


class _Performer(nn.Module):
    """A Performer's layer (Choromanski et al. 2020, FAVOR+), with which section 3.1 keeps 3,136
    tokens affordable: one head, and values take the place of the input in the first sum, since
    the input is of another width."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        features = _TOKEN // 2
        self.norm1 = nn.LayerNorm(inputs)
        self.kqv = nn.Linear(inputs, 3 * _TOKEN)
        self.proj = nn.Linear(_TOKEN, _TOKEN)
        self.dp = nn.Dropout(0.1)
        self.norm2 = nn.LayerNorm(_TOKEN)
        self.mlp = nn.Sequential(
            nn.Linear(_TOKEN, _TOKEN), nn.GELU(), nn.Linear(_TOKEN, _TOKEN), nn.Dropout(0.1)
        )
        random = nn.init.orthogonal_(torch.empty(features, _TOKEN)) * math.sqrt(features)
        self.register_buffer("w", random)

    def forward(self, tokens: Tensor) -> Tensor:
        """[n, t, 64] of tokens [n, t, c]."""
        key, query, value = self.kqv(self.norm1(tokens)).chunk(3, dim=-1)
        # Exponentials summed over thousands of tokens: more than 16 bits hold.
        with _without_autocast(tokens.device.type):
            attended = self._attend(key.float(), query.float(), value.float()).to(value.dtype)
        x = value + self.dp(self.proj(attended))
        return cast(Tensor, x + self.mlp(self.norm2(x)))

    def _attend(self, key: Tensor, query: Tensor, value: Tensor) -> Tensor:
        """Attention by positive random features, linear in the number of tokens."""
        key, query = self._positive(key), self._positive(query)
        weights = query @ key.sum(dim=1, keepdim=True).mT
        return query @ (key.mT @ value) / (weights + _EPSILON)

    def _positive(self, x: Tensor) -> Tensor:
        """[n, t, m], whose products are an unbiased softmax kernel."""
        random = self.get_buffer("w").float()
        return (functional.linear(x, random) - x.square().sum(-1, keepdim=True) / 2).exp() / (
            math.sqrt(len(random))
        )


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(device_type):  # as on the meta device
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _sinusoids(places: int, width: int) -> Tensor:
    """Fixed position encodings float32 [places, width] of Vaswani et al. (section 3.2)."""
    wave = 10_000 ** (-(torch.arange(width) // 2 * 2).double() / width)
    angle = torch.arange(places).double()[:, None] * wave
    even = torch.arange(width) % 2 == 0
    return torch.where(even, angle.sin(), angle.cos()).float()
