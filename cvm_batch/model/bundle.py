"""The bundle: a trained model with all that is needed to use it.

    BUNDLE/
      bundle.json             what the model is, and the digests of the files beside it
      model.safetensors       weights, fp32 or fp16
      sentinels.safetensors   tiles uint8 [n, h, w, 3], probabilities float32 [n, classes]
      MODEL_CARD.md           for people

The sentinels' probabilities are those of the weights as stored, run in fp32: so a device
can be judged against them whatever its precision, also where the weights are fp16.

Reading a bundle loads no PyTorch, so that a run plans, and starts its replicas, without it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays

from cvm_batch.errors import BundleDigestError, BundleError, BundleNotFoundError
from cvm_batch.model.architecture import Architecture, architecture_from_json
from cvm_batch.model.precision import Precision
from cvm_batch.model.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch
    from torch import nn

SCHEMA_VERSION = 1
SPEC_FILE = "bundle.json"
WEIGHTS_FILE = "model.safetensors"
SENTINELS_FILE = "sentinels.safetensors"
CARD_FILE = "MODEL_CARD.md"


@dataclass(frozen=True, kw_only=True)
class BundleSpec:
    """The content of bundle.json, except the digests, which writing works out."""

    name: str
    architecture: Architecture
    class_names: tuple[str, ...]
    """In the order of the network's outputs."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Named sets of classes that the results count, as ``asc_us_plus``."""
    primary_group: str | None = None
    """The group that ``abnormal_count`` and ``slide_score`` follow."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    tile_um: float | None = None
    """Side of a tile in microns, where the training data had a known scale."""
    precision: Precision = Precision.FP32
    """Of the stored weights."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Training: data digests, recipe, code version, metrics."""

    def __post_init__(self) -> None:
        if len(set(self.class_names)) != len(self.class_names) or not self.class_names:
            raise ValueError("class_names must be distinct and at least one")
        if not all(isinstance(name, str) and name for name in self.class_names):
            raise ValueError("class_names must be strings that are not empty")
        if self.tile_um is not None and not 0 < self.tile_um < float("inf"):
            raise ValueError("tile_um must be above zero, in microns")
        for group, members in self.groups.items():
            if unknown := set(members) - set(self.class_names):
                raise ValueError(f"group {group!r} names unknown classes: {sorted(unknown)}")
        if self.primary_group is not None and self.primary_group not in self.groups:
            raise ValueError(f"primary_group {self.primary_group!r} is not among the groups")
        if self.precision is Precision.BF16:
            raise ValueError("bundles are stored in fp32 or fp16")

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "architecture": self.architecture.to_json(),
            "class_names": list(self.class_names),
            "groups": {group: list(members) for group, members in self.groups.items()},
            "primary_group": self.primary_group,
            "preprocessing": self.preprocessing.to_json(),
            "tile_um": self.tile_um,
            "precision": str(self.precision),
            "provenance": dict(self.provenance),
        }

    def tile_gflop(self) -> float:
        """Arithmetic of one tile; takes a third of a second to count, and loads PyTorch."""
        from cvm_batch.model.network import tile_gflop

        side = self.preprocessing.input_px
        return tile_gflop(self.architecture, len(self.class_names), side)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BundleSpec:
        """Raises KeyError, TypeError or ValueError where a field is missing or senseless."""
        if value["schema_version"] != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version {value['schema_version']!r}, this version reads {SCHEMA_VERSION}"
            )
        return cls(
            name=str(value["name"]),
            architecture=architecture_from_json(value["architecture"]),
            class_names=_names(value["class_names"]),
            groups={group: _names(members) for group, members in value["groups"].items()},
            primary_group=value["primary_group"],
            preprocessing=Preprocessing.from_json(value["preprocessing"]),
            tile_um=None if value["tile_um"] is None else float(value["tile_um"]),
            precision=Precision(value["precision"]),
            provenance=dict(value["provenance"]),
        )


@dataclass(frozen=True)
class Sentinels:
    """Tiles whose outputs are known, to judge a device before it serves."""

    tiles: NDArray[np.uint8]
    """[n, h, w, 3]"""
    probabilities: NDArray[np.float32]
    """[n, classes], from the stored weights in fp32."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose digests were verified. Make one with `load_bundle`."""

    path: Path
    spec: BundleSpec
    digest: str
    """SHA-256 of bundle.json, which itself names the digests of weights and sentinels."""

    @property
    def weights_bytes(self) -> int:
        """Size of the weights file."""
        return (self.path / WEIGHTS_FILE).stat().st_size

    def network(self) -> nn.Module:
        """The network in fp32 with the stored weights, in evaluation mode.

        Raises BundleError where the weights do not fit the architecture.
        """
        from safetensors.torch import load_file

        try:
            network = self.spec.architecture.build(len(self.spec.class_names))
            weights = load_file(self.path / WEIGHTS_FILE)
            network.load_state_dict(weights)
        except Exception as error:  # timm and torch raise whatever the architecture leads to
            raise BundleError(
                f"The weights in {self.path / WEIGHTS_FILE} do not fit the architecture that "
                f"{SPEC_FILE} describes: {error}. Fetch the bundle again or export it anew."
            ) from error
        return network.float().eval()

    def sentinels(self) -> Sentinels:
        """Raises BundleError where the file holds something else."""
        try:
            arrays = load_arrays(self.path / SENTINELS_FILE)
            return Sentinels(arrays["tiles"], arrays["probabilities"])
        except (SafetensorError, KeyError) as error:
            raise BundleError(
                f"{self.path / SENTINELS_FILE} holds no sentinels: {error!r}. "
                "Fetch the bundle again."
            ) from error


def load_bundle(path: Path) -> Bundle:
    """Read and verify the bundle in folder ``path``.

    Raises BundleNotFoundError, BundleDigestError, or BundleError for anything else.
    """
    if not (path / SPEC_FILE).is_file():
        raise BundleNotFoundError(
            f"No bundle at {path}: a bundle is a folder with {SPEC_FILE} in it. "
            "`cvm-batch models` lists the bundles that are known by name."
        )
    if not (path / WEIGHTS_FILE).is_file():
        raise BundleError(
            f"{path} has no {WEIGHTS_FILE}. Weights are read from safetensors only, "
            "since other formats can run code: export the model anew."
        )
    raw = (path / SPEC_FILE).read_bytes()
    try:
        value = json.loads(raw)
        spec = BundleSpec.from_json(value)
        recorded = {
            WEIGHTS_FILE: str(value["weights_sha256"]),
            SENTINELS_FILE: str(value["sentinels_sha256"]),
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{path / SPEC_FILE} cannot be read as a bundle: {error!r}. Fetch the bundle again."
        ) from error
    for name, digest in recorded.items():
        _verify_digest(path / name, digest)
    return Bundle(path.resolve(), spec, hashlib.sha256(raw).hexdigest())


def write_bundle(
    path: Path,
    spec: BundleSpec,
    network: nn.Module,
    sentinel_tiles: NDArray[np.uint8],
    *,
    card: str,
) -> Bundle:
    """Write a bundle to the new folder ``path``; it appears whole or not at all.

    The weights are stored in ``spec.precision``. ``sentinel_tiles`` is uint8 [n, h, w, 3].
    Raises BundleError where ``path`` exists, or a weight does not fit fp16.
    """
    from safetensors.torch import save_file

    if path.exists():
        raise BundleError(f"{path} exists already. Name another folder, or remove it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        weights = _stored_weights(network, spec.precision)
        save_file(weights, building / WEIGHTS_FILE)
        as_stored = spec.architecture.build(len(spec.class_names)).eval()
        as_stored.load_state_dict(weights)
        probabilities = reference_probabilities(as_stored, spec.preprocessing, sentinel_tiles)
        save_arrays(
            {"tiles": np.ascontiguousarray(sentinel_tiles), "probabilities": probabilities},
            building / SENTINELS_FILE,
        )
        value = spec.to_json() | {
            "weights_sha256": file_sha256(building / WEIGHTS_FILE),
            "sentinels_sha256": file_sha256(building / SENTINELS_FILE),
        }
        (building / SPEC_FILE).write_text(json.dumps(value, indent=2) + "\n")
        (building / CARD_FILE).write_text(card)
        building.chmod(0o755)  # mkdtemp and safetensors make them for their owner alone
        for file in building.iterdir():
            file.chmod(0o644)
        building.rename(path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return load_bundle(path)


def reference_probabilities(
    network: nn.Module, preprocessing: Preprocessing, tiles: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Probabilities [n, classes] of uint8 tiles [n, h, w, 3], in fp32 on the CPU."""
    import torch

    device = torch.device("cpu")
    with torch.inference_mode():
        images = preprocessing.normalise(preprocessing.resize(tiles, device), torch.float32)
        probabilities: NDArray[np.float32] = network(images).softmax(dim=1).numpy()
    return probabilities


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"a list of names, not {value!r}")
    return tuple(value)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stored_weights(network: nn.Module, precision: Precision) -> dict[str, torch.Tensor]:
    weights = {}
    for name, tensor in network.state_dict().items():
        stored = tensor.to(precision.dtype) if tensor.is_floating_point() else tensor
        if not stored.isfinite().all():
            raise BundleError(
                f"Weight {name} is not finite in {precision}. Train again, or store fp32."
            )
        weights[name] = stored.cpu().contiguous()
    return weights


def _verify_digest(path: Path, recorded: str) -> None:
    try:
        actual = file_sha256(path)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}). Fetch the bundle again."
        ) from error
    if actual != recorded:
        raise BundleDigestError(
            f"{path} differs from the digest recorded in {SPEC_FILE} "
            f"(SHA-256 {actual[:12]}…, recorded {recorded[:12]}…): the file is damaged or was "
            "exchanged. Fetch the bundle again."
        )
