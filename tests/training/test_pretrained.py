"""First weights: where they come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from timm.models import _hub
from torch import nn

from cvm_batch.errors import UsageError
from cvm_batch.model.architecture import Architecture, Backbone, Fusion, SingleNetwork
from cvm_batch.training.pretrained import DOWNLOADED, Pretrained

CNN = Backbone(name="test_resnet")
VT = Backbone(name="test_vit", args={"img_size": 160})
FUSION = Fusion(cnn=CNN, vt=VT, hidden=8)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """timm's hub, with weights of these networks by their first word, as long as it has them."""
    networks = {name: timm.create_model(name) for name in ("test_resnet", "test_vit")}

    def download(repo_id: str, filename: str, **_: object) -> str:
        name = repo_id.split("/")[-1].split(".")[0]
        if name not in networks:
            raise LocalEntryNotFoundError(f"{repo_id} cannot be reached")
        path = tmp_path / f"hub-{name}.safetensors"
        save_file(networks[name].state_dict(), path)
        return str(path)

    monkeypatch.setattr(_hub, "hf_hub_download", download)
    return networks


def equal(loaded: nn.Module, hub: nn.Module) -> bool:
    """But for the classifier."""
    wanted, found = hub.state_dict(), loaded.state_dict()
    shared = [name for name in wanted if name in found and not name.startswith(("fc.", "head."))]
    return len(shared) > 10 and all(torch.equal(wanted[name], found[name]) for name in shared)


@pytest.mark.parametrize(
    "asked", [Pretrained(whole=DOWNLOADED), Pretrained(cnn=DOWNLOADED, vt=DOWNLOADED)]
)
def test_both_halves_begin_with_what_was_downloaded(
    tmp_path: Path, hub: dict[str, nn.Module], asked: Pretrained
) -> None:
    network = FUSION.build(3)
    asked.as_files(FUSION, tmp_path / "first").load(network)
    assert equal(network.get_submodule("cnn"), hub["test_resnet"])
    assert equal(network.get_submodule("vt"), hub["test_vit"])


def test_a_single_network_and_a_second_time_without_the_hub(
    tmp_path: Path, hub: dict[str, nn.Module]
) -> None:
    architecture = SingleNetwork(name="test_resnet")
    first = Pretrained(whole=DOWNLOADED).as_files(architecture, tmp_path / "first")
    wider = SingleNetwork(name="test_resnet", args={"in_chans": 3})
    other = Pretrained(whole=DOWNLOADED).as_files(wider, tmp_path / "first")
    assert other != first
    there = hub.pop("test_resnet")
    again = Pretrained(whole=DOWNLOADED).as_files(architecture, tmp_path / "first")
    assert again == first
    (part,) = first.digests()
    assert part == "whole, timm's test_resnet.r160_in1k"
    assert first.digests() == again.digests()
    network = architecture.build(3)
    head = network.get_parameter("fc.weight").clone()
    again.load(network)
    assert equal(network, there)
    assert torch.equal(network.get_parameter("fc.weight"), head)


@pytest.mark.parametrize(
    ("architecture", "asked", "what"),
    [
        (SingleNetwork(name="resnet18"), Pretrained(whole=DOWNLOADED), "resnet18.*cannot be reach"),
        (SingleNetwork(name="test_resnet", args={"layers": (1, 1, 1, 2)}), None, "has no weights"),
        (
            SingleNetwork(name="test_resnet", args={"stem_width": 8}),
            None,
            "no weights for test_res",
        ),
        (SingleNetwork(name="botnet_50"), None, "no pretrained weights for botnet_50"),
    ],
)
def test_what_cannot_be_had_is_told(
    tmp_path: Path,
    hub: dict[str, nn.Module],
    architecture: Architecture,
    asked: Pretrained | None,
    what: str,
) -> None:
    with pytest.raises(UsageError, match=what):
        (asked or Pretrained(whole=DOWNLOADED)).as_files(architecture, tmp_path / "first")
    assert not list(tmp_path.glob("first/*"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lost\.safetensors cannot be read \(No such file"):
        Pretrained(whole=tmp_path / "lost.safetensors").digests()


@pytest.mark.parametrize("part", ["cnn", "vt"])
def test_a_single_network_has_no_halves(tmp_path: Path, part: str) -> None:
    architecture = SingleNetwork(name="test_resnet")
    asked = Pretrained(cnn=DOWNLOADED) if part == "cnn" else Pretrained(vt=DOWNLOADED)
    with pytest.raises(UsageError, match=f"no part '{part}' for timm"):
        asked.as_files(architecture, tmp_path)


def test_a_folder_that_cannot_be_written_to_is_told(
    tmp_path: Path, hub: dict[str, nn.Module]
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot be written to"):
        Pretrained(whole=DOWNLOADED).as_files(SingleNetwork(name="test_resnet"), tmp_path / "file")


def test_files_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cnn.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    asked = Pretrained(cnn=path)
    assert asked.as_files(FUSION, tmp_path / "first") == asked
    monkeypatch.chdir(tmp_path)  # workers of Ray have a folder of their own
    assert Pretrained(cnn=Path(path.name)).as_files(FUSION, tmp_path / "first") == asked
    network = FUSION.build(3)
    asked.load(network)
    assert torch.equal(
        network.get_submodule("cnn").get_parameter("conv1.0.weight"),
        load_file(path)["conv1.0.weight"],
    )
