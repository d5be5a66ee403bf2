"""The GPU's layers against PyTorch's own, on a CPU through Triton's interpreter."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")

_KERNELS = """
import torch
from torch.nn import functional
from cvm_batch.model.backends.kernels import depthwise, max_pool

torch.manual_seed(0)
SHAPES = ((24, 5, 7, 1), (136, 3, 3, 1), (64, 6, 4, 2), (65, 3, 5, 2))
for channels, height, width, stride in SHAPES:
    images = torch.randn(2, channels, height, width).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(channels, 1, 3, 3), torch.randn(channels)
    taps = weight.flatten(1).t().contiguous()
    for relu in (False, True):
        for b in (None, bias):
            given = images.relu() if relu else images
            expected = functional.conv2d(given, weight, b, stride, 1, groups=channels)
            torch.testing.assert_close(depthwise(images, taps, b, stride, relu), expected)
    assert torch.equal(max_pool(images), functional.max_pool2d(images, 3, 2, 1))
    images[0, 0, 0, 0] = float("nan")
    assert max_pool(images).isnan().sum() == functional.max_pool2d(images, 3, 2, 1).isnan().sum()
    assert depthwise(images, taps, None, stride, True).isnan().any()
"""

_NETWORKS = """
import timm, torch
from torch import nn
from cvm_batch.model.backends.classifier import folded
from cvm_batch.model.backends.gpu_layers import ConvRelu, Depthwise, MaxPool, Pointwise, for_gpu
from cvm_batch.model.network import CvmCervix
from cvm_batch.model.architecture import CVM_CERVIX_MINI, Backbone, Fusion

sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
vt = Backbone(name="deit_tiny_patch16_224", args=sizes)
torch.manual_seed(0)
for cnn, counts in (
    (Backbone(name="legacy_xception"), (34, 38, 4, 2)),
    (CVM_CERVIX_MINI.cnn, (18, 22, 0, 2)),
    (Backbone(name="resnet18"), (0, 3, 1, 9)),
):
    network = CvmCervix(Fusion(cnn=cnn, vt=vt, hidden=8), 3)
    for module in network.modules():  # batch normalisation that does something
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    network.eval()
    images = torch.randn(2, 3, 32, 32)
    rewritten = for_gpu(folded(network)).to(memory_format=torch.channels_last)
    if cnn.name != "legacy_xception":  # which takes half a minute to interpret
        with torch.inference_mode():
            expected = network(images)
            found = rewritten(images.to(memory_format=torch.channels_last))
        limit = 1e-3 * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=limit)
    kinds = (Depthwise, Pointwise, MaxPool, ConvRelu)
    met = tuple(sum(isinstance(m, kind) for m in rewritten.modules()) for kind in kinds)
    assert met == counts, (cnn.name, met)
"""


@pytest.mark.parametrize("script", [_KERNELS, _NETWORKS], ids=["kernels", "networks"])
def test_equal_to_pytorch(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
