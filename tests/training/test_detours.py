"""Layers that are slow in bf16 compute in fp32, the others as autocast has it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cvm_batch.training import stepping
from cvm_batch.training.detours import SlowInBf16
from cvm_batch.training.recipes import find_recipe
from cvm_batch.training.stepping import Stepper

IMAGES = torch.rand(2, 8, 9, 9, generator=torch.Generator().manual_seed(0))


def output(layer: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16), SlowInBf16():
        found: Tensor = layer(IMAGES)
    return found


@pytest.mark.parametrize(
    ("layer", "dtype"),
    [
        (nn.Conv2d(8, 8, 3, stride=2, groups=8), torch.float32),
        (nn.Conv2d(8, 16, 3, stride=(1, 2), groups=4, padding="valid"), torch.float32),
        (nn.Conv2d(8, 8, 3, groups=8), torch.bfloat16),
        (nn.Conv2d(8, 8, 3, stride=2), torch.bfloat16),
    ],
    ids=["strided depthwise", "strided in groups", "depthwise", "strided"],
)
def test_convolutions(layer: nn.Conv2d, dtype: torch.dtype) -> None:
    found = output(layer)
    assert found.dtype == dtype
    exact = layer(IMAGES)
    if dtype == torch.float32:
        assert torch.equal(found, exact)
    else:
        torch.testing.assert_close(found.float(), exact, atol=0.02, rtol=0.02)


def test_convolutions_without_a_layer() -> None:
    """As timm's blurring pools call it."""
    kernels = torch.ones(8, 1, 3, 3)
    with torch.autocast("cpu", torch.bfloat16), SlowInBf16():
        strided = functional.conv2d(IMAGES, kernels, stride=2, groups=8)
        named = functional.conv2d(input=IMAGES.bfloat16(), weight=kernels, stride=(2, 2), groups=8)
        plain = functional.conv2d(IMAGES, torch.ones(4, 8, 3, 3))
    assert torch.equal(strided, functional.conv2d(IMAGES, kernels, stride=2, groups=8))
    assert named.dtype == torch.float32
    assert plain.dtype == torch.bfloat16


def test_attention() -> None:
    query, key, value = torch.randn(
        3, 1, 2, 5, 4, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0)
    )
    with torch.autocast("cpu", torch.bfloat16), SlowInBf16():
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    exact = functional.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), is_causal=True
    )
    assert torch.equal(found, exact)


@pytest.mark.parametrize("mixed", [True, False])
def test_a_step_moves_the_network_where_fp32_would(
    monkeypatch: pytest.MonkeyPatch, mixed: bool
) -> None:
    monkeypatch.setattr(stepping, "cpu_prefers_bf16", lambda: True)
    recipe = replace(find_recipe("cvm-cervix-mini-cric6"), mixed_precision=mixed)
    torch.manual_seed(0)
    network = recipe.architecture.build(6).train()
    twin = copy.deepcopy(network)
    images = torch.randint(0, 256, (4, 3, 96, 96), dtype=torch.uint8)
    labels = torch.tensor([0, 2, 3, 5])
    stepper = Stepper(network, recipe, torch.ones(6), torch.device("cpu"))
    loss = stepper.step(images, labels, 1e-4)

    inputs = recipe.preprocessing.normalise(images, torch.float32)
    functional.cross_entropy(
        twin(inputs), labels, label_smoothing=recipe.label_smoothing
    ).backward()
    gradients = [
        torch.cat([parameter.grad.flatten() for parameter in net.parameters()])
        for net in (network, twin)
    ]
    assert torch.isfinite(loss)
    alike = functional.cosine_similarity(*gradients, dim=0)
    assert alike > (0.9 if mixed else 0.99999)
    assert (alike < 0.99999) == mixed
