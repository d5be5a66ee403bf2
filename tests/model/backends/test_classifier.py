from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from cvm_batch.model.architecture import CVM_CERVIX_MINI
from cvm_batch.model.backends.classifier import Classifier, folded
from cvm_batch.model.network import CvmCervix
from cvm_batch.model.preprocessing import Preprocessing


def settled(network: nn.Module, side: int) -> nn.Module:
    """In evaluation mode, with statistics as after training: folding 0 and 1 proves little."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low in (
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
                (module.weight.data, 0.5),
                (module.bias.data, -0.5),
            ):
                assert value is not None
                value.uniform_(low, low + 1, generator=generator)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@torch.inference_mode()
def assert_same(folded_: nn.Module, network: nn.Module, images: Tensor) -> None:
    expected = network(images)
    spread = float(expected.std())
    torch.testing.assert_close(folded_(images), expected, rtol=1e-3, atol=1e-3 * spread)


@pytest.mark.parametrize("name", ["legacy_xception", "xception41", "test_resnet", "resnet18"])
def test_convolutions_carry_their_normalisation(name: str) -> None:
    torch.manual_seed(0)
    wrapped = nn.Sequential(timm.create_model(name, num_classes=0))
    network = settled(wrapped, 64)
    result = folded(network)
    assert norms(network) > norms(result) == 0
    assert_same(result, network, torch.randn(2, 3, 64, 64))


def test_the_network_itself_stays_as_it_is() -> None:
    torch.manual_seed(0)
    network = settled(CvmCervix(CVM_CERVIX_MINI, 6), 96)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = folded(network)
    assert_same(result, network, torch.randn(2, 3, 96, 96))
    assert norms(result) == 0
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


class _Shared(nn.Module):
    """One convolution that two normalisations follow: neither may be folded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.one(self.conv(images)) + self.two(self.conv(images))
        return found


class _Seen(nn.Module):
    """The convolution's own output is used as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.conv(images)
        return found + self.norm(found)


class _Branching(nn.Module):
    """Cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.norm(self.conv(images))
        return found if found.sum() > 0 else -found


@pytest.mark.parametrize("module", [_Shared, _Seen, _Branching])
def test_what_cannot_be_folded_is_left(module: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = settled(nn.Sequential(module()), 8)
    result = folded(network)
    assert norms(result) == norms(network)
    assert_same(result, network, torch.randn(2, 3, 8, 8))


def test_a_classifier_normalises_and_sums_to_one() -> None:
    torch.manual_seed(0)
    preprocessing = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    with torch.inference_mode():
        expected = head(preprocessing.normalise(images, torch.float32)).softmax(1)
        found = Classifier(head, preprocessing, torch.float32)(images)
        low = Classifier(head, preprocessing, torch.bfloat16)(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, expected, rtol=0, atol=0.01)
