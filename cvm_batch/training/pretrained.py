"""First weights from elsewhere: timm's, or local safetensors on machines without a network."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cvm_batch.errors import UsageError
from cvm_batch.model.architecture import Architecture, Backbone, Fusion, SingleNetwork
from cvm_batch.model.bundle import file_sha256

#: In place of a file: the weights that timm downloads, as a rule trained on ImageNet.
DOWNLOADED: Literal["timm"] = "timm"
#: In the metadata of a file that was made of them: which they are.
_WHICH = "downloaded"

First = Path | Literal["timm"]


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Where the first weights come from; each part is None where it begins at random.

    A part may be `DOWNLOADED`, until `as_files` has made a file of it.
    """

    whole: First | None = None
    """Safetensors of the whole network: a bundle's, say."""
    cnn: First | None = None
    """Of CVM-Cervix's CNN, with timm's names."""
    vt: First | None = None
    """Of its visual transformer, with timm's names."""

    def as_files(self, architecture: Architecture, folder: Path) -> Pretrained:
        """The same, with absolute paths, and all that is to be downloaded as files in ``folder``.

        What lies there already is taken: so a training goes on without a network. Raises
        UsageError where there are no such weights, or they cannot be had.
        """
        whole, cnn, vt = self.whole, self.cnn, self.vt
        if isinstance(architecture, Fusion):
            if whole == DOWNLOADED:
                whole, cnn, vt = None, cnn or DOWNLOADED, vt or DOWNLOADED
            if cnn == DOWNLOADED:
                cnn = _download(architecture.cnn, folder)
            if vt == DOWNLOADED:
                vt = _download(architecture.vt, folder)
        else:
            if DOWNLOADED in (cnn, vt):
                raise _no_such_part("cnn" if cnn else "vt", DOWNLOADED)
            if whole == DOWNLOADED:
                whole = _download(architecture, folder)
        return Pretrained(whole=_absolute(whole), cnn=_absolute(cnn), vt=_absolute(vt))

    def digests(self) -> dict[str, str]:
        """SHA-256 of each file, by the part of the network that it is for, and by what it was
        downloaded from where it was; of none at random.

        Raises UsageError where one cannot be read.
        """
        parts = {"whole": self.whole, "cnn": self.cnn, "vt": self.vt}
        try:
            return {
                part + _origin(Path(path)): file_sha256(Path(path))
                for part, path in parts.items()
                if path
            }
        except OSError as error:
            raise UsageError(
                f"{error.filename} cannot be read ({error.strerror}). Name safetensors with "
                "the first weights, or leave them out."
            ) from error

    def load(self, network: nn.Module) -> None:
        """Put the weights into ``network``. Raises UsageError where they do not fit."""
        for path, part in ((self.whole, ""), (self.cnn, "cnn"), (self.vt, "vt")):
            if path is None:
                continue
            target = getattr(network, part, None) if part else network
            if not isinstance(target, nn.Module):
                raise _no_such_part(part, path)
            _load(target, Path(path))


AT_RANDOM = Pretrained()


def _absolute(path: First | None) -> Path | None:
    """Workers of Ray have a working folder of their own."""
    return None if path is None else Path(path).absolute()


def _no_such_part(part: str, path: First) -> UsageError:
    return UsageError(
        f"The recipe's network has no part {part!r} for {path}: it is no CVM-Cervix. Give the "
        "weights of the whole network."
    )


def _origin(path: Path) -> str:
    try:
        with safe_open(path, "pt") as file:
            which = (file.metadata() or {}).get(_WHICH)
    except (OSError, SafetensorError):
        return ""  # who reads or loads it says what is wrong
    return f", {which}" if which else ""


def _download(network: Backbone | SingleNetwork, folder: Path) -> Path:
    """The file of the network's pretrained weights."""
    from safetensors.torch import save_file

    name, args = network.name, dict(network.args)
    shape = hashlib.sha256(json.dumps([name, args], sort_keys=True).encode()).hexdigest()
    path = folder / f"{name}-{shape[:8]}.safetensors"
    if path.is_file():
        return path
    try:
        (weights, which), (others, _) = (_built(network, seed) for seed in (0, 1))
    except UsageError:
        raise
    # Whatever a hub, a proxy or the network's own code raises.
    except Exception as error:
        raise UsageError(
            f"There are no weights for {name} from timm: {error}. Where they cannot be downloaded, "
            "or the recipe's network is of another shape, give safetensors, or begin at random."
        ) from error
    # timm says nothing of layers that it has no weights for: but those depend on the seed.
    random = [key for key in weights if not torch.equal(weights[key], others[key])]
    if lacking := [key for key in random if not _is_classifier(key)]:
        raise UsageError(
            f"timm has no weights for {len(lacking)} layers of {name} as the recipe shapes it, the "
            f"first {lacking[0]!r}. Give safetensors, or begin at random."
        )
    for key in random:
        del weights[key]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two that do it at once do it each for itself.
        building = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        save_file(weights, building, metadata={_WHICH: which})
        building.replace(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"The first weights cannot be written to {folder} ({error}). Make room, or name "
            "another --out."
        ) from error
    return path


def _built(network: Backbone | SingleNetwork, seed: int) -> tuple[dict[str, Tensor], str]:
    """Pretrained weights, and which they are."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        # A single network has a classifier: of one class, so that it fits nobody's.
        classes = () if isinstance(network, Backbone) else (1,)
        built = network.build(*classes, pretrained=True)
    known = getattr(built, "pretrained_cfg", None)
    which = f"timm's {known['architecture']}.{known['tag']}" if known else "torchvision's"
    weights = {
        key: value.clone(memory_format=torch.contiguous_format)
        for key, value in built.state_dict().items()
    }
    return weights, which


def _load(network: nn.Module, path: Path) -> None:
    from safetensors.torch import load_file

    try:
        weights: Mapping[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"{path} cannot be read as safetensors ({error}). Weights of other formats can run "
            "code: convert them where you trust them."
        ) from error
    own = network.state_dict()
    # A classifier of other classes is left out, and begins at random.
    fitting = {
        name: tensor
        for name, tensor in weights.items()
        if name in own and own[name].shape == tensor.shape
    }
    missing = [name for name in own if name not in fitting and not _is_classifier(name)]
    if missing:
        raise UsageError(
            f"{path} lacks {len(missing)} weights of the network or has them in another shape, "
            f"the first {missing[0]!r}: it is of another architecture. Take weights that fit."
        )
    network.load_state_dict(fitting, strict=False)


def _is_classifier(name: str) -> bool:
    return name.startswith(("mlp.", "fc.", "head.", "classifier."))
