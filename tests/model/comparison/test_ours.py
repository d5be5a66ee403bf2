"""Our own networks against public ones: names and shapes of weights, and outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import Tensor, nn

from cvm_batch.model import comparison
from cvm_batch.model.architecture import SingleNetwork
from cvm_batch.model.comparison.registry import COMPARED, Source
from cvm_batch.model.network import parameter_count, tile_gflop

OURS = [name for name, known in COMPARED.items() if known.source is Source.OURS]
IMAGENET = 1000


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return SingleNetwork(name=name).build(IMAGENET)


def listed(state: Mapping[str, Tensor]) -> str:
    """The digest of lines like ``head.weight 1000x384``."""
    lines = (f"{name} {'x'.join(map(str, value.shape))}" for name, value in state.items())
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "entries", "digest"),
    [
        # timesler/facenet-pytorch, models/inception_resnet_v1.py, classify=True
        (
            "inception_resnet_v1",
            716,
            "976de0a8b6fb33ab5ea64afc3228ff3e1733a1237bec277d7b3c422dadca4d3b",
        ),
        # yitu-opensource/T2T-ViT, models/t2t_vit.py, t2t_vit_14
        (
            "t2t_vit_14",
            188,
            "91dbbc53452c59b79d112bbb2a7c8f245b42c5559ab056a5fa3f90b01acd83d7",
        ),
    ],
)
def test_weights_have_the_names_and_shapes_of_public_ones(
    name: str, entries: int, digest: str
) -> None:
    state = on_meta(name).state_dict()
    assert len(state) == entries
    assert listed(state) == digest


def known_weights(network: nn.Module) -> nn.Module:
    """In evaluation mode, with weights that depend on names and shapes alone."""
    rng = np.random.default_rng(0)
    state = network.state_dict()
    for name in sorted(state):
        value = state[name]
        if value.ndim > 1 and name != "pos_embed":
            gain = (2 / value[0].numel()) ** 0.5
            value.copy_(torch.from_numpy(gain * rng.standard_normal(value.shape)))
        elif name.endswith(("bias", "running_mean")):
            value.copy_(torch.from_numpy(rng.uniform(-0.1, 0.1, value.shape)))
    return network.eval()


@pytest.mark.parametrize(
    ("name", "args", "side", "logits"),
    [
        ("inception_resnet_v1", {}, 96, [-9.733238, 19.913284, -9.166565, 11.313615]),
        ("t2t_vit_14", {"img_size": 64}, 64, [0.655178, -1.287252, -1.506355, -0.081784]),
    ],
)
def test_logits_are_those_of_public_implementations(
    name: str, args: dict[str, Any], side: int, logits: list[float]
) -> None:
    """Golden: what the files named above compute, with the same weights and image."""
    network = known_weights(SingleNetwork(name=name, args=args).build(11))
    image = np.random.default_rng(1).standard_normal((1, 3, side, side))
    with torch.inference_mode():
        found = network(torch.from_numpy(image).float())
    np.testing.assert_allclose(found[0, :4], logits, atol=1e-4)


def test_the_trunk_of_inception_resnet_v1() -> None:
    network = on_meta("inception_resnet_v1")
    heads = (network.get_submodule(name) for name in ("last_linear", "last_bn", "logits"))
    assert parameter_count(network) - sum(map(parameter_count, heads)) == 22_564_096


def test_the_size_of_t2t_vit_14() -> None:
    """Table 2 of its paper; the authors count what nothing trains as parameters."""
    network = on_meta("t2t_vit_14")
    fixed = sum(buffer.numel() for buffer in network.buffers())
    assert parameter_count(network) + fixed == 21_545_550
    multiply_adds = tile_gflop(SingleNetwork(name="t2t_vit_14"), IMAGENET, 224) / 2
    assert multiply_adds == pytest.approx(4.8, abs=0.05)


def test_t2t_vit_takes_whole_patches() -> None:
    with pytest.raises(ValueError, match="multiple of 16, not 100"):
        SingleNetwork(name="t2t_vit_14", args={"img_size": 100}).build(11)


def test_botnet_is_resnet_except_for_three_convolutions() -> None:
    botnet, resnet = (on_meta(name).state_dict() for name in ("botnet_50", "resnet50"))
    convolutions = {f"layer4.{block}.conv2.weight" for block in range(3)}
    assert resnet.keys() - botnet.keys() == convolutions
    assert all(botnet[name].shape == resnet[name].shape for name in resnet.keys() & botnet.keys())
    # Three 3x3 of 512 channels become three 1x1 each, and distances in maps of 14, 7 and 7 px.
    distances = 2 * 128 * (27 + 13 + 13)
    sizes = [parameter_count(on_meta(name)) for name in ("botnet_50", "resnet50")]
    assert sizes[0] - sizes[1] == 3 * (3 - 9) * 512**2 + distances


@pytest.mark.parametrize("block", [0, 1])
def test_the_attention_of_botnet_is_timms(block: int) -> None:
    """Independently written; the first block halves the map."""
    torch.manual_seed(0)
    network = SingleNetwork(name="botnet_50", args={"img_size": 96}).build(11).double()
    ours = network.get_submodule(f"layer4.{block}.conv2")
    side = (6, 3)[block]
    theirs = BottleneckAttn(512, feat_size=(side, side), stride=2 - block, scale_pos_embed=True)
    theirs.double()
    theirs.load_state_dict(
        {
            "qkv.weight": 30 * ours.get_submodule("qkv").weight,
            "pos_embed.height_rel": ours.get_parameter("rows"),
            "pos_embed.width_rel": ours.get_parameter("columns"),
        }
    )
    ours.get_submodule("qkv").weight.data.mul_(30)  # so that attention is far from even
    images = torch.randn(2, 512, side, side).double()
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_each_is_short(name: str) -> None:
    module = name.removesuffix("_14").removesuffix("_50")
    lines = (Path(comparison.__path__[0]) / f"{module}.py").read_text().splitlines()
    assert len(lines) < 200
