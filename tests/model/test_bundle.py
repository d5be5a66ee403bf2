from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from cvm_batch.errors import BundleDigestError, BundleError, BundleNotFoundError
from cvm_batch.model import bundle as bundle_module
from cvm_batch.model.backends.starting import start_engine
from cvm_batch.model.bundle import (
    CARD_FILE,
    SENTINELS_FILE,
    SPEC_FILE,
    WEIGHTS_FILE,
    Bundle,
    BundleSpec,
    file_sha256,
    load_bundle,
    write_bundle,
)
from cvm_batch.model.network import CvmCervix
from cvm_batch.model.precision import Precision
from tests.conftest import CLASSES, coloured_tiles

CPU = torch.device("cpu")


@pytest.fixture
def copied(tmp_path: Path, tiny_bundle: Bundle) -> Path:
    """A bundle's folder that a test may damage."""
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "copied"))


def edit_spec(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((bundle / SPEC_FILE).read_text())
    edit(value)
    (bundle / SPEC_FILE).write_text(json.dumps(value))


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# Writing and loading


def test_fp32_round_trip(
    tiny_bundle: Bundle, tiny_spec: BundleSpec, tiny_network: CvmCervix
) -> None:
    loaded = load_bundle(tiny_bundle.path)
    assert loaded == tiny_bundle
    assert loaded.spec == tiny_spec
    assert loaded.digest == file_sha256(loaded.path / SPEC_FILE)
    network = loaded.network()
    assert not network.training
    for name, tensor in tiny_network.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    sentinels = loaded.sentinels()
    np.testing.assert_array_equal(sentinels.tiles, coloured_tiles(range(CLASSES), seed=1))
    np.testing.assert_array_equal(sentinels.probabilities.argmax(axis=1), range(CLASSES))
    assert (loaded.path / CARD_FILE).read_text() == "# tiny\n"


def test_fp16_sentinels_follow_the_stored_weights(
    tmp_path: Path, tiny_bundle: Bundle, tiny_spec: BundleSpec, tiny_network: CvmCervix
) -> None:
    spec = replace(tiny_spec, precision=Precision.FP16)
    tiles = coloured_tiles(range(CLASSES), seed=1)
    bundle = write_bundle(tmp_path / "half", spec, tiny_network, tiles, card="")

    stored = load_file(bundle.path / WEIGHTS_FILE)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int64}
    assert {parameter.dtype for parameter in bundle.network().parameters()} == {torch.float32}
    engine = start_engine(bundle, device=CPU, precision=Precision.FP32)
    assert engine.sentinel_difference <= 1e-5
    # The parent's outputs are other numbers: close, but not these.
    parent = tiny_bundle.sentinels().probabilities
    assert 1e-5 < np.abs(bundle.sentinels().probabilities - parent).max() < 0.02


def test_names_the_digests_of_its_files(tiny_bundle: Bundle) -> None:
    value = json.loads((tiny_bundle.path / SPEC_FILE).read_text())
    assert value["weights_sha256"] == file_sha256(tiny_bundle.path / WEIGHTS_FILE)
    assert value["sentinels_sha256"] == file_sha256(tiny_bundle.path / SENTINELS_FILE)


def test_two_writes_have_one_digest(
    tmp_path: Path, tiny_bundle: Bundle, tiny_spec: BundleSpec, tiny_network: CvmCervix
) -> None:
    tiles = coloured_tiles(range(CLASSES), seed=1)
    again = write_bundle(tmp_path / "again", tiny_spec, tiny_network, tiles, card="other\n")
    assert again.digest == tiny_bundle.digest


def test_an_existing_folder_is_not_overwritten(
    copied: Path, tiny_spec: BundleSpec, tiny_network: CvmCervix
) -> None:
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(copied, tiny_spec, tiny_network, coloured_tiles([0]), card="")
    load_bundle(copied)


@pytest.mark.parametrize("weight", [1e6, float("nan"), float("-inf")])
def test_weights_beyond_fp16_are_refused(
    tmp_path: Path, tiny_spec: BundleSpec, tiny_network: CvmCervix, weight: float
) -> None:
    network = deepcopy(tiny_network)
    with torch.no_grad():
        network.mlp[-1].get_parameter("bias")[0] = weight
    spec = replace(tiny_spec, precision=Precision.FP16)
    with pytest.raises(BundleError, match=r"mlp\.2\.bias is not finite in fp16"):
        write_bundle(tmp_path / "new", spec, network, coloured_tiles([0]), card="")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["save_file", "save_arrays", "file_sha256"])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_spec: BundleSpec,
    tiny_network: CvmCervix,
    step: str,
    interruption: type[BaseException],
) -> None:
    def interrupt(*_: object) -> None:
        raise interruption

    # Of the weights, the function is fetched where it is needed, with PyTorch.
    where = safetensors.torch if step == "save_file" else bundle_module
    monkeypatch.setattr(where, step, interrupt)
    with pytest.raises(interruption):
        write_bundle(tmp_path / "new", tiny_spec, tiny_network, coloured_tiles([0]), card="")
    assert list(tmp_path.iterdir()) == []


# What is refused


@pytest.mark.parametrize("name", [WEIGHTS_FILE, SENTINELS_FILE])
@pytest.mark.parametrize("position", [0, 20, -1])
def test_a_flipped_bit_is_found(copied: Path, name: str, position: int) -> None:
    flip_byte(copied / name, position)
    with pytest.raises(BundleDigestError, match=rf"{name} differs from the digest"):
        load_bundle(copied)


def test_truncated_weights_are_found(copied: Path) -> None:
    content = (copied / WEIGHTS_FILE).read_bytes()
    (copied / WEIGHTS_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleDigestError):
        load_bundle(copied)


def test_an_edited_spec_is_another_bundle(copied: Path, tiny_bundle: Bundle) -> None:
    edit_spec(copied, lambda value: value.update(name="other"))
    assert load_bundle(copied).digest != tiny_bundle.digest


def test_a_folder_without_a_bundle(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(BundleNotFoundError, match="cvm-batch models"):
            load_bundle(path)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, SENTINELS_FILE])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(copied)


def test_pickled_weights_beside_are_no_fallback(copied: Path, tiny_network: CvmCervix) -> None:
    (copied / WEIGHTS_FILE).unlink()
    torch.save(tiny_network.state_dict(), copied / "model.pt")
    with pytest.raises(BundleError, match="safetensors only"):
        load_bundle(copied)


class Exploit:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("the pickle was executed",)


@pytest.mark.parametrize(
    ("name", "key", "read"),
    [
        (WEIGHTS_FILE, "weights_sha256", Bundle.network),
        (SENTINELS_FILE, "sentinels_sha256", Bundle.sentinels),
    ],
)
def test_a_pickle_called_safetensors_is_not_executed(
    copied: Path, name: str, key: str, read: Callable[[Bundle], object]
) -> None:
    (copied / name).write_bytes(pickle.dumps(Exploit()))
    edit_spec(copied, lambda value: value.update({key: file_sha256(copied / name)}))
    bundle = load_bundle(copied)
    with pytest.raises(BundleError, match=name):
        read(bundle)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"schema_version": 1}', b"\xff\xfe"], ids=repr
)
def test_a_spec_that_is_none(copied: Path, content: bytes) -> None:
    (copied / SPEC_FILE).write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read as a bundle"):
        load_bundle(copied)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_foreign_schema_version_is_refused(copied: Path, version: object) -> None:
    edit_spec(copied, lambda value: value.update(schema_version=version))
    with pytest.raises(BundleError, match="schema_version"):
        load_bundle(copied)


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": []},
        {"class_names": ["NILM", "NILM"]},
        {"groups": {"abnormal": ["no such class"]}},
        {"primary_group": "no such group"},
        {"precision": "bf16"},
        {"precision": "int4"},
        {"tile_um": "small"},
        {"tile_um": -1.0},
        {"tile_um": float("nan")},
        {"class_names": "NILM"},
        {"class_names": [1, 2]},
        {"provenance": None},
        {"architecture": {"kind": "resnet"}},
        {"preprocessing": {}},
    ],
    ids=repr,
)
def test_a_senseless_spec_is_refused(copied: Path, change: dict[str, object]) -> None:
    edit_spec(copied, lambda value: value.update(change))
    with pytest.raises(BundleError, match="cannot be read as a bundle"):
        load_bundle(copied)


@pytest.mark.parametrize("field", ["name", "architecture", "class_names", "weights_sha256"])
def test_a_spec_without_a_field_is_refused(copied: Path, field: str) -> None:
    edit_spec(copied, lambda value: value.pop(field))
    with pytest.raises(BundleError, match=field):
        load_bundle(copied)


def other_width(value: dict[str, Any]) -> None:
    value["architecture"]["hidden"] += 1


def fewer_classes(value: dict[str, Any]) -> None:
    value.update(class_names=["NILM"], groups={}, primary_group=None)


def unknown_backbone(value: dict[str, Any]) -> None:
    value["architecture"]["cnn"]["name"] = "no_such_model"


def division_by_zero(value: dict[str, Any]) -> None:
    value["architecture"]["vt"]["args"]["patch_size"] = 0


def unknown_argument(value: dict[str, Any]) -> None:
    value["architecture"]["vt"]["args"]["no_such_argument"] = 1


@pytest.mark.parametrize(
    "edit",
    [other_width, fewer_classes, unknown_backbone, unknown_argument, division_by_zero],
)
def test_weights_of_another_architecture_are_refused(
    copied: Path, edit: Callable[[dict[str, Any]], None]
) -> None:
    edit_spec(copied, edit)
    with pytest.raises(BundleError, match="do not fit the architecture"):
        load_bundle(copied).network()


def test_sentinels_without_probabilities_are_refused(copied: Path) -> None:
    save_file({"tiles": torch.zeros(1, 32, 32, 3, dtype=torch.uint8)}, copied / SENTINELS_FILE)
    digest = file_sha256(copied / SENTINELS_FILE)
    edit_spec(copied, lambda value: value.update(sentinels_sha256=digest))
    with pytest.raises(BundleError, match="holds no sentinels"):
        load_bundle(copied).sentinels()
