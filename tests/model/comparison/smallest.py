"""The networks of Table 3 at the smallest input that each takes, so that tests are quick."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cvm_batch.cli.demo import SLIDES
from cvm_batch.model.architecture import CVM_CERVIX, Architecture, Backbone, SingleNetwork
from cvm_batch.model.comparison.registry import COMPARED
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.tiles import Tiles
from tests.archives.reading import open_at
from tests.conftest import CLASSES, coloured_tiles

#: All that the paper compares, its own included.
ALL = [*COMPARED, "cvm-cervix"]
# BoTNet's distances need a map of more than one place.
_SIDES = {"alexnet": 63, "botnet_50": 64, "inception_v3": 75, "inception_resnet_v1": 75}
#: Less of what repeats itself, or takes seconds to write and to read.
_SHORTER: Mapping[str, dict[str, Any]] = {
    "vgg": {"mlp_ratio": 0.02},
    "resnet": {"layers": [1, 1, 1, 1]},
    "densenet": {"block_config": [2, 2, 2, 2]},
    "vit": {"depth": 2},
    "deit": {"depth": 2},
}


def full_size(name: str) -> Architecture:
    return CVM_CERVIX if name == "cvm-cervix" else SingleNetwork(name=name)


def smallest(name: str) -> tuple[Architecture, int]:
    """The network for a small input, and the side of that."""
    side = _SIDES.get(name, 32)
    if name == "cvm-cervix":
        vt = Backbone(name=CVM_CERVIX.vt.name, args={"img_size": side, **_SHORTER["deit"]})
        return replace(CVM_CERVIX, vt=vt), side
    args = dict(_SHORTER.get(name.rstrip("0123456789").partition("_")[0], {}))
    if COMPARED[name].input_px:
        args["img_size"] = side
    return SingleNetwork(name=name, args=args), side


def shipped_cells(start: int, stop: int) -> Tiles:
    """Real cells of native size out of the slides that come with cvm-batch."""
    with closing(open_at(SLIDES / "frame-379c7ce2.zip")) as archive:
        return archive.read(start, stop).tiles


def norms(network: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    return [part for part in network.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]


def stirred(network: nn.Module) -> nn.Module:
    """No batch normalisation scales by 0 or by 1, as some begin."""
    for norm in norms(network):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return network


@torch.no_grad()
def settled(network: nn.Module, side: int) -> nn.Module:
    """In evaluation mode, and as if trained: batch normalisation knows what images are like,
    the logits of different ones differ by about 1, and no image is on the border of classes."""
    different = images([*shipped_cells(0, 4), *coloured_tiles(range(CLASSES))], side)
    for norm in norms(network):
        norm.momentum = 1.0
        # Most of what comes to an activation passes: random layers, many of them, that cut at 0
        # make chaos of the last bits.
        nn.init.constant_(norm.bias, 2)
    network.train()(different)
    logits = network.eval()(different)
    spread = logits.std(dim=0).mean()
    *_, last = (part for part in network.modules() if isinstance(part, nn.Linear))
    last.bias.copy_((last.bias - logits.mean(dim=0)) / spread)
    last.bias[0] += 3
    last.weight.div_(spread)
    return network


def images(tiles: Tiles, side: int) -> torch.Tensor:
    """Normalised images float32 [n, 3, side, side]."""
    preprocessing = Preprocessing(input_px=side)
    resized = preprocessing.resize(tiles, torch.device("cpu"))
    return preprocessing.normalise(resized, torch.float32)
