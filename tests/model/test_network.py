"""The network against the paper's numbers (golden: parameter counts and widths)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from cvm_batch.model.architecture import (
    CVM_CERVIX,
    CVM_CERVIX_MINI,
    Architecture,
    Backbone,
    SingleNetwork,
    architecture_from_json,
)
from cvm_batch.model.network import CvmCervix, parameter_count

CLASSES = 11


@pytest.fixture(scope="module")
def paper_network() -> CvmCervix:
    torch.manual_seed(0)
    return CvmCervix(CVM_CERVIX, CLASSES)


@pytest.fixture(scope="module")
def mini_network() -> CvmCervix:
    torch.manual_seed(0)
    return CvmCervix(CVM_CERVIX_MINI, CLASSES)


def test_parameters_are_the_papers(paper_network: CvmCervix) -> None:
    assert parameter_count(paper_network.cnn) == 20_806_952
    assert parameter_count(paper_network.vt) == 5_524_416
    assert parameter_count(paper_network) == 31_375_859
    mebibytes = parameter_count(paper_network) * 4 / 2**20
    assert mebibytes == pytest.approx(119.69, abs=0.01)


def test_mlp_is_linear_gelu_linear_over_2240_features(paper_network: CvmCervix) -> None:
    first, activation, last = paper_network.mlp
    assert isinstance(first, torch.nn.Linear)
    assert isinstance(activation, torch.nn.GELU)
    assert isinstance(last, torch.nn.Linear)
    assert (first.in_features, first.out_features) == (2240, 2240)
    assert (last.in_features, last.out_features) == (2240, CLASSES)


@torch.inference_mode()
def test_features_are_concatenated_cnn_first(paper_network: CvmCervix) -> None:
    images = torch.rand(1, 3, 224, 224)
    network = paper_network.eval()
    features = network.features(images)
    assert features.shape == (1, 2240)
    torch.testing.assert_close(features[:, :2048], network.cnn(images))
    torch.testing.assert_close(features[:, 2048:], network.vt(images))
    torch.testing.assert_close(network(images), network.mlp(features))


def test_mini_is_small(mini_network: CvmCervix) -> None:
    assert parameter_count(mini_network) <= 4_000_000


@pytest.mark.parametrize(("fixture", "side"), [("paper_network", 224), ("mini_network", 96)])
def test_gradient_reaches_every_parameter(
    fixture: str, side: int, request: pytest.FixtureRequest
) -> None:
    network: CvmCervix = request.getfixturevalue(fixture).train()
    loss = torch.nn.functional.cross_entropy(
        network(torch.rand(2, 3, side, side)), torch.tensor([0, CLASSES - 1])
    )
    torch.autograd.backward(loss)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    "architecture",
    [CVM_CERVIX, CVM_CERVIX_MINI, SingleNetwork(name="vgg11", args={"mlp_ratio": 0.5})],
    ids=["paper", "mini", "single"],
)
def test_architecture_survives_json(architecture: Architecture) -> None:
    value = json.loads(json.dumps(architecture.to_json()))
    assert architecture_from_json(value) == architecture


def test_mini_from_json_has_the_same_weights_by_name(mini_network: CvmCervix) -> None:
    value = json.loads(json.dumps(CVM_CERVIX_MINI.to_json()))
    again = CvmCervix(architecture_from_json(value), CLASSES)
    shapes = {name: tensor.shape for name, tensor in again.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in mini_network.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"kind": "resnet"}, ValueError),
        ({"hidden": "wide"}, ValueError),
        ({"cnn": {"title": "legacy_xception"}}, TypeError),
        ({"kind": "single"}, KeyError),
        ({"kind": "single", "name": "resnet18", "args": {"num_classes": 3}}, ValueError),
    ],
    ids=repr,
)
def test_foreign_architectures_are_refused(
    change: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        architecture_from_json(CVM_CERVIX.to_json() | change)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("hf-hub:someone/model", {}),
        ("local-dir:/tmp/model", {}),
        ("../model", {}),
        ("resnet18", {"checkpoint_path": "/tmp/weights.pth"}),
        ("resnet18", {"pretrained": True}),
        ("resnet18", {"pretrained_cfg_overlay": {"file": "/tmp/weights.pth"}}),
        ("resnet18", {"num_classes": 3}),
        ("alexnet", {"weights": "DEFAULT"}),
        ("googlenet", {"aux_logits": True}),
    ],
)
@pytest.mark.parametrize("kind", [Backbone, SingleNetwork])
def test_no_network_reaches_outside_the_bundle(
    kind: type[Backbone | SingleNetwork], name: str, args: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"no name of a model|no bundle may set"):
        kind(name=name, args=args)
