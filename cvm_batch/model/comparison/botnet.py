"""BoTNet-50 (Srinivas, Lin, Parmar, Shlens, Abbeel and Vaswani 2021, arXiv:2101.11605).

ResNet-50 whose last three 3x3 convolutions, those of the stage c5, are self-attention over all
places of the map, "and no other changes" (abstract, section 3, Table 1).

Shapes: n images, s input side in pixels, h heads, d channels of a head, i and j rows, k and l
columns of the map: queries are at (i, k), keys at (j, l).
"""

from __future__ import annotations

from typing import cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

_HEADS = 4  # Figure 4


def botnet_50(classes: int, *, img_size: int = 224) -> nn.Module:
    """The module, mapping images [n, 3, s, s] with s = ``img_size`` to logits [n, classes]."""
    network: nn.Module = timm.create_model("resnet50", num_classes=classes)
    side = -(-img_size // 16)
    for block in network.get_submodule("layer4").children():
        replaced = block.get_submodule("conv2")
        assert isinstance(replaced, nn.Conv2d)
        stride = replaced.stride[0]
        block.set_submodule("conv2", _Attention(replaced.out_channels, side, stride))
        side = -(-side // stride)
    return network


class _Attention(nn.Module):
    """Figure 4: queries meet keys and, apart, the distance to them in rows and in columns.

    The distances' encodings are shared among heads, as in the authors' code (appendix), from
    which the first values are too.
    """

    def __init__(self, width: int, side: int, stride: int) -> None:
        super().__init__()
        each = width // _HEADS
        self._side, self._width = side, width
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.rows = nn.Parameter(torch.empty(2 * side - 1, each))
        self.columns = nn.Parameter(torch.empty(2 * side - 1, each))
        # Section 3: where the convolution had a stride, the average of 2x2 comes after.
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        nn.init.normal_(self.qkv.weight, std=0.01)
        for encodings in (self.rows, self.columns):
            nn.init.normal_(encodings, std=each**-0.5)
        places = torch.arange(side)
        self.register_buffer("distance", places - places[:, None] + side - 1, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, h*d, i, k] from the same, or half the side with a stride of 2."""
        side = self._side
        query, key, value = self.qkv(x).unflatten(1, (3, _HEADS, -1)).flatten(4).mT.unbind(1)
        by_place = query.unflatten(2, (side, side)) * query.shape[-1] ** -0.5
        distance = self.get_buffer("distance")
        rows = torch.einsum("nhikd,ijd->nhikj", by_place, self.rows[distance])
        columns = torch.einsum("nhikd,kld->nhikl", by_place, self.columns[distance])
        encoded = (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=encoded)
        return cast(Tensor, self.pool(found.mT.reshape(-1, self._width, side, side)))
