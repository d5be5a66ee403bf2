"""First weights from elsewhere: timm's, or local safetensors on machines without a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from cvm_batch.errors import UsageError
from cvm_batch.model.architecture import Architecture, Fusion
from cvm_batch.model.bundle import file_sha256

#: In place of a file: the weights that timm downloads, trained on ImageNet.
DOWNLOADED = Path("timm")


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Where the first weights come from; each part is None where it begins at random.

    A part may be `DOWNLOADED`, until `downloaded` has made a file of it.
    """

    whole: Path | None = None
    """Safetensors of the whole network: a bundle's, say."""
    cnn: Path | None = None
    """Of CVM-Cervix's CNN, with timm's names."""
    vt: Path | None = None
    """Of its visual transformer, with timm's names."""

    def downloaded(self, architecture: Architecture, folder: Path) -> Pretrained:
        """The same, with all that is to be downloaded as files in ``folder``.

        What lies there already is taken: so a training goes on without a network. Raises
        UsageError where there are no such weights, or they cannot be had.
        """
        whole, cnn, vt = self.whole, self.cnn, self.vt
        if isinstance(architecture, Fusion):
            if whole == DOWNLOADED:
                whole, cnn, vt = None, cnn or DOWNLOADED, vt or DOWNLOADED
            if cnn == DOWNLOADED:
                cnn = _download(architecture.cnn.name, architecture.cnn.build, folder)
            if vt == DOWNLOADED:
                vt = _download(architecture.vt.name, architecture.vt.build, folder)
        elif whole == DOWNLOADED:
            # Of one class, so that the classifier fits nobody's.
            whole = _download(architecture.name, partial(architecture.build, 1), folder)
        return Pretrained(whole=whole, cnn=cnn, vt=vt)

    def digests(self) -> dict[str, str]:
        """SHA-256 of each file, by the part of the network that it is for; of none at random.

        Raises UsageError where one cannot be read.
        """
        parts = {"whole": self.whole, "cnn": self.cnn, "vt": self.vt}
        try:
            return {part: file_sha256(path) for part, path in parts.items() if path}
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
                raise UsageError(
                    f"The recipe's network has no part {part!r} for {path}: it is no CVM-Cervix. "
                    "Give the weights of the whole network."
                )
            _load(target, path)


AT_RANDOM = Pretrained()


def _download(name: str, build: Callable[..., nn.Module], folder: Path) -> Path:
    """The file of the pretrained weights of the network that ``build`` makes."""
    from safetensors.torch import save_file

    path = folder / f"{name}.safetensors"
    if path.is_file():
        return path
    try:
        weights, others = (_built(build, seed) for seed in (0, 1))
    except (OSError, RuntimeError) as error:
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
    folder.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    save_file(weights, beside)
    beside.rename(path)
    return path


def _built(build: Callable[..., nn.Module], seed: int) -> dict[str, Tensor]:
    """Weights of the pretrained network."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = build(pretrained=True)
    return {key: value.contiguous() for key, value in network.state_dict().items()}


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
