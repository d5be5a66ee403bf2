"""The networks of Table 3 against what is known of them (golden: parameter counts)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from cvm_batch.errors import UsageError
from cvm_batch.model.architecture import CVM_CERVIX, SingleNetwork
from cvm_batch.model.comparison.registry import COMPARED, Source
from cvm_batch.model.network import parameter_count, tile_gflop
from tests.conftest import CLASSES
from tests.model.comparison.smallest import images, shipped_cells, smallest, stirred

#: With 11 classes.
PARAMETERS = {
    "vgg11": 128_811_403,
    "vgg13": 128_995_915,
    "vgg16": 134_305_611,
    "vgg19": 139_615_307,
    "resnet18": 11_182_155,
    "resnet34": 21_290_315,
    "resnet50": 23_530_571,
    "resnet101": 42_522_699,
    "densenet121": 6_965_131,
    "densenet169": 12_502_795,
    "inception_v3": 21_808_107,
    "legacy_xception": 20_829_491,
    "alexnet": 57_048_907,
    "googlenet": 5_611_179,
    "mobilenetv2_100": 2_237_963,
    "shufflenet_v2_x1_0": 1_264_879,
    "shufflenet_v2_x0_5": 353_067,
    "inception_resnet_v1": 23_488_267,
    "vit_base_patch16_224": 85_807_115,
    "botnet_50": 18_825_547,
    "deit_tiny_patch16_224": 5_526_539,
    "t2t_vit_14": 21_085_041,
}


@pytest.mark.parametrize("name", COMPARED)
def test_parameters_and_output_at_224_px(name: str) -> None:
    with torch.device("meta"):
        network = SingleNetwork(name=name).build(CLASSES).eval()
        logits = network(torch.empty(2, 3, 224, 224))
    assert parameter_count(network) == PARAMETERS[name]
    assert logits.shape == (2, CLASSES)


@pytest.mark.parametrize("name", COMPARED)
def test_in_training_logits_alone_and_a_gradient_for_every_parameter(name: str) -> None:
    architecture, side = smallest(name)
    torch.manual_seed(0)
    network = stirred(architecture.build(CLASSES)).train()
    logits = network(images(shipped_cells(0, 8), side))
    loss = nn.functional.cross_entropy(logits, torch.arange(8))
    torch.autograd.backward(loss)
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("half", ["cnn", "vt"])
def test_halves_of_the_fusion_are_networks_of_the_comparison(half: str) -> None:
    backbone = getattr(CVM_CERVIX, half)
    assert backbone.name in COMPARED
    with torch.device("meta"):
        alone = SingleNetwork(name=backbone.name).build(CLASSES).state_dict()
        fused = backbone.build().state_dict()
    assert {key: alone[key].shape for key in fused} == {
        key: value.shape for key, value in fused.items()
    }
    assert len(alone) == len(fused) + 2, "a weight and a bias for the classes"


@pytest.mark.parametrize(
    ("name", "args", "px"),
    [
        ("resnet18", {}, None),
        ("googlenet", {}, None),
        ("deit_tiny_patch16_224", {}, 224),
        ("vit_base_patch16_224", {"img_size": 96}, 96),
        ("convnext_atto", {}, None),
        ("vit_small_patch16_384", {}, 384),
        ("vit_small_patch16_384", {"img_size": 64}, 64),
        ("no_such_network", {}, None),
    ],
)
def test_the_input_that_a_network_takes(name: str, args: dict[str, Any], px: int | None) -> None:
    assert SingleNetwork(name=name, args=args).input_px == px


def test_what_a_bundle_says_is_read_without_pytorch_and_timm() -> None:
    script = """
import sys
from cvm_batch.model.architecture import architecture_from_json
assert architecture_from_json({"kind": "single", "name": "resnet18", "args": {}}).input_px is None
sys.exit("torch" in sys.modules or "timm" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_any_other_network_of_timm() -> None:
    network = SingleNetwork(name="test_vit", args={"img_size": 32}).build(3).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(UsageError, match=r"no network 'resnet18000' .*shufflenet_v2_x0_5"):
        SingleNetwork(name="resnet18000").build(CLASSES)


@pytest.mark.parametrize(
    "name", [name for name, known in COMPARED.items() if known.source is Source.OURS]
)
def test_ours_have_no_pretrained_weights(name: str) -> None:
    with pytest.raises(UsageError, match=f"no pretrained weights for {name}"):
        SingleNetwork(name=name).build(CLASSES, pretrained=True)


def test_arithmetic_of_a_tile() -> None:
    assert tile_gflop(SingleNetwork(name="resnet18"), CLASSES, 224) == pytest.approx(3.63, abs=0.01)
    assert tile_gflop(SingleNetwork(name="googlenet"), CLASSES, 224) == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize(
    "name", [name for name, known in COMPARED.items() if known.source is Source.TORCHVISION]
)
def test_pretrained_weights_from_torchvision(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As downloaded before: 1,000 classes, and GoogLeNet's auxiliary heads."""
    auxiliary = {"aux_logits": True, "init_weights": True} if name == "googlenet" else {}
    published = get_model(name, **auxiliary).state_dict()
    file = tmp_path / "hub" / "checkpoints" / get_model_weights(name).DEFAULT.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(published, file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    found = SingleNetwork(name=name).build(CLASSES, pretrained=True).state_dict()
    other = {key for key, value in found.items() if not torch.equal(value, published[key])}
    head = {"alexnet": "classifier.6"}.get(name, "fc")
    assert other == {f"{head}.weight", f"{head}.bias"}
