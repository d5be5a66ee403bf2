from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cvm_batch.errors import AgreementError
from cvm_batch.model.agreement import Activation, Agreement, Comparison
from cvm_batch.model.backends.classifier import folded
from cvm_batch.model.bundle import BundleSpec, reference_probabilities
from cvm_batch.model.network import CvmCervix
from cvm_batch.model.precision import Precision
from cvm_batch.model.preprocessing import Preprocessing
from tests.conftest import CLASSES

CPU = torch.device("cpu")
#: A white tile becomes ones.
PLAIN = Preprocessing(input_px=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
WHITE = np.full((1, 2, 2, 3), 255, np.uint8)


def tiles_of_any_colour(count: int, *, seed: int = 3) -> NDArray[np.uint8]:
    """Some of them stand between the tiny bundle's classes."""
    colours = np.random.default_rng(seed).integers(0, 256, (count, 1, 1, 3), np.uint8)
    return np.broadcast_to(colours, (count, 40, 40, 3)).copy()


def rounded(network: nn.Module, dtype: type[np.float16]) -> nn.Module:
    """A copy whose weights went through NumPy's 16 bits."""
    copy = deepcopy(network)
    for tensor in copy.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(tensor.numpy().astype(dtype).astype(np.float32)))
    return copy


def test_figures_of_an_agreement() -> None:
    fp32 = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.4, 0.35, 0.25]], np.float32)
    lower = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.375, 0.4, 0.225]], np.float32)
    found = Agreement.of(fp32, lower)
    assert found.largest_difference == pytest.approx(0.05)
    np.testing.assert_array_equal(found.confusion, [[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    assert found.to_json(("a", "b", "c")) == {
        "tiles": 3,
        "largest_difference": found.largest_difference,
        "changed": 1,
        "same_class": 2 / 3,
        "changes": [{"from": "a", "to": "b", "tiles": 1, "of": 2}],
    }


def test_parts_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    fp32, lower = rng.dirichlet(np.ones(4), (2, 50)).astype(np.float32)
    whole = Agreement.of(fp32, lower)
    parts = Agreement.of(fp32[:20], lower[:20]) + Agreement.of(fp32[20:], lower[20:])
    assert parts.largest_difference == whole.largest_difference
    np.testing.assert_array_equal(parts.confusion, whole.confusion)
    counts = [tiles for _, _, tiles in whole.changes()]
    assert sum(counts) == whole.tiles - whole.same > 0
    assert counts == sorted(counts, reverse=True)


def test_emulated_fp16_is_fp32_with_rounded_weights(
    tiny_network: CvmCervix, tiny_spec: BundleSpec
) -> None:
    tiles, preprocessing = tiles_of_any_colour(70), tiny_spec.preprocessing
    comparison = Comparison(
        deepcopy(tiny_network), tiny_network, preprocessing, Precision.FP16, device=CPU
    )
    found = comparison.compare(tiles)
    fp32 = reference_probabilities(tiny_network, preprocessing, tiles)
    fp16 = rounded(folded(tiny_network), np.float16)
    with torch.inference_mode():
        images = preprocessing.normalise(preprocessing.resize(tiles, CPU), torch.float32)
        logits = fp16(images).double().numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert comparison.emulated
    assert 1e-4 < found.largest_difference < 0.02
    assert found.largest_difference == pytest.approx(np.abs(probabilities - fp32).max(), abs=2e-5)
    expected = np.zeros((CLASSES, CLASSES), np.int64)
    np.add.at(expected, (fp32.argmax(axis=1), probabilities.argmax(axis=1)), 1)
    np.testing.assert_array_equal(found.confusion, expected)


def test_bf16_strays_further_than_fp16(tiny_network: CvmCervix, tiny_spec: BundleSpec) -> None:
    tiles = tiles_of_any_colour(40)
    bf16, fp16 = (
        Comparison(
            deepcopy(tiny_network), tiny_network, tiny_spec.preprocessing, precision, device=CPU
        )
        for precision in (Precision.BF16, Precision.FP16)
    )
    assert not bf16.emulated
    assert bf16.compare(tiles).largest_difference > 2 * fp16.compare(tiles).largest_difference > 0


def test_tiles_of_varying_size_are_compared(tiny_network: CvmCervix, tiny_spec: BundleSpec) -> None:
    comparison = Comparison(
        deepcopy(tiny_network), tiny_network, tiny_spec.preprocessing, Precision.FP16, device=CPU
    )
    tiles = list(tiles_of_any_colour(40))
    of_equal_size = comparison.compare(np.stack(tiles))
    tiles[7] = tiles[7][:30]
    np.testing.assert_array_equal(comparison.compare(tiles).confusion, of_equal_size.confusion)


class Chain(nn.Module):
    """``first``, something that is no module, ``last``; [n, 3, 2, 2] to [n, 2]."""

    def __init__(self, gain: float, offset: float, last: float) -> None:
        super().__init__()
        self.offset = offset
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        self.last = nn.Linear(2, 2)
        with torch.no_grad():
            for linear, weight in ((self.first[1], gain / 12), (self.last, last)):
                assert isinstance(linear, nn.Linear)
                linear.weight.fill_(weight)
                linear.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.last(self.first(images) + self.offset)
        return found


def chained(chain: Chain, precision: Precision = Precision.FP16) -> Comparison:
    return Comparison(chain.eval(), Chain(0, 0, 0).eval(), PLAIN, precision, device=CPU)


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        # Not "first", which hands on what it was handed, nor "last", which takes it.
        (Chain(-240, 0, 0.01), Activation("first.1", 240)),
        (Chain(2, -500, 0.01), Activation("last", 498)),
        (Chain(2, 0, 100), Activation("last", 400)),
        (Chain(0, 0, 0), Activation("first.0", 1)),
    ],
)
def test_largest_activation_and_where_it_is(chain: Chain, expected: Activation) -> None:
    comparison = chained(chain)
    comparison.compare(WHITE)
    assert comparison.largest_activation.module == expected.module
    assert comparison.largest_activation.value == pytest.approx(expected.value)


def test_largest_activation_is_that_of_all_tiles_so_far() -> None:
    comparison = chained(Chain(255, 0, 0.001))
    for grey in (7, 200, 30):
        comparison.compare(np.full((1, 2, 2, 3), grey, np.uint8))
    assert comparison.largest_activation.value == pytest.approx(200)


def test_what_overflows_fp16_is_refused_by_its_name() -> None:
    chain = Chain(2, 65_504, 1e-6)
    assert torch.isfinite(chain(torch.ones(1, 3, 2, 2))).all()
    with pytest.raises(AgreementError, match="Module last reaches 65,506 in fp32: fp16 ends"):
        chained(chain).compare(WHITE)
    assert chained(chain, Precision.BF16).compare(WHITE).tiles == 1


def test_the_largest_number_is_not_yet_beyond() -> None:
    with pytest.raises(AgreementError, match=r"first\.1 reaches 65,504"):
        chained(Chain(65_504, 0, 1e-6)).compare(WHITE)
    assert chained(Chain(65_472, 0, 1e-6)).compare(WHITE).tiles == 1


def test_activations_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(AgreementError, match="last reaches nan"):
        chained(Chain(1, 0, float("nan"))).compare(WHITE)


def test_weights_that_overflow_when_they_are_folded_are_refused() -> None:
    """Each number in fp32 is small, and so is each stored weight."""
    conv = nn.Conv2d(3, 2, 2, bias=False)
    norm = nn.BatchNorm2d(2, eps=0)
    with torch.no_grad():
        conv.weight.fill_(0.1)
        norm.running_var.fill_(1e-12)  # type: ignore[union-attr]
    network = nn.Sequential(nn.Sequential(conv, norm), nn.Flatten()).eval()
    comparison = Comparison(deepcopy(network), network, PLAIN, Precision.FP16, device=CPU)
    black = np.zeros((3, 2, 2, 3), np.uint8)
    black[1, 0, 0, 0] = 1
    with pytest.raises(AgreementError, match="In fp16, 3 of 3 tiles get probabilities that are"):
        comparison.compare(black)
    assert comparison.largest_activation.value < 1000
