"""First weights from elsewhere: timm's, or local safetensors on machines without a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from cvm_batch.errors import UsageError
from cvm_batch.model.bundle import file_sha256


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Where the first weights come from; each part is None where it begins at random."""

    whole: Path | None = None
    """Safetensors of the whole network: a bundle's, say."""
    cnn: Path | None = None
    """Of CVM-Cervix's CNN, with timm's names."""
    vt: Path | None = None
    """Of its visual transformer, with timm's names."""

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
