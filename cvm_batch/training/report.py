"""One self-contained page on what a classifier does on labelled cells.

Curves, figures with intervals, confusion (paper, Fig. 6), calibration, the fused features in
three dimensions (Fig. 12 a), misclassified cells and what the network saw in them
(Fig. 12 b to f). No request leaves the page.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cvm_batch.errors import UsageError
from cvm_batch.model.bundle import Bundle
from cvm_batch.training.card import how_split
from cvm_batch.training.datasets import LabelledCells
from cvm_batch.training.evaluation import Evaluation
from cvm_batch.training.images import load_images
from cvm_batch.training.loop import Epoch
from cvm_batch.training.pages import write_page
from cvm_batch.training.paper import paper_figures
from cvm_batch.training.plots import calibration, confusion, curves, feature_cloud, plotly_script

_NEEDED = ("plotly", "sklearn")
_MOST_POINTS = 600
_MOST_MISTAKES = 40
_MOST_MAPS = 6
_STAGES = 5
_THUMBNAIL_PX = 64


def check_installed() -> None:
    """Raises UsageError where a library of the report is missing."""
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UsageError(
            f"The report needs {', '.join(missing)}: pip install 'cvm-batch[train]', "
            "or leave it out: `train` does with --no-report."
        )


def write_report(
    path: Path,
    bundle: Bundle,
    sides: Mapping[str, tuple[Evaluation, NDArray[np.int64]]],
    cells: LabelledCells,
    *,
    epochs: Sequence[Epoch] = (),
) -> None:
    """Write the page to ``path``. ``sides`` are evaluations by name, the one that counts
    first, with the positions of their cells in ``cells``; ``epochs`` those of the training."""
    evaluation, positions = next(iter(sides.values()))
    recipe = bundle.spec.provenance.get("recipe", {})
    network = bundle.network()
    images = load_images(cells, positions, bundle.spec.preprocessing, torch.device("cpu"))
    wrong = np.flatnonzero(evaluation.predicted != evaluation.labels)
    # The surest mistakes first: they say most about labels and about the network.
    wrong = wrong[np.argsort(-evaluation.probabilities[wrong].max(axis=1), kind="stable")]
    view = _View(bundle, network, evaluation, positions, cells, images)
    write_page(
        path,
        "report.html.j2",
        bundle=bundle,
        recipe=recipe,
        sides={name: side for name, (side, _) in sides.items()},
        split=how_split(bundle.spec.provenance) if epochs else None,
        first=next(iter(sides)),
        epochs=epochs,
        paper={name: paper_figures(recipe, evaluation.class_names, name) for name in sides},
        plots={
            "curves": curves(epochs) if epochs else None,
            "confusion": confusion(evaluation),
            "calibration": calibration(evaluation),
            "cloud": view.cloud(),
        },
        mistakes=[view.mistake(int(at)) for at in wrong[:_MOST_MISTAKES]],
        mistakes_in_all=len(wrong),
        maps=[view.maps(int(at)) for at in wrong[:_MOST_MAPS]],
        plotly=plotly_script(),
    )


@dataclass(frozen=True)
class _View:
    """What the page shows of single cells. Positions are within the evaluation."""

    bundle: Bundle
    network: nn.Module
    evaluation: Evaluation
    positions: NDArray[np.int64]
    cells: LabelledCells
    images: Tensor

    def mistake(self, at: int) -> dict[str, Any]:
        names, row = self.evaluation.class_names, self.evaluation.probabilities[at]
        return {
            "image": png(_pixels(self.images[at])),
            "name": self.cells.images[self.positions[at]].name,
            "truth": names[self.evaluation.labels[at]],
            "taken_for": names[int(row.argmax())],
            "confidence": float(row.max()),
        }

    def maps(self, at: int) -> dict[str, Any]:
        """Where the CNN's stages respond: mean absolute activation, from input to output."""
        found: list[NDArray[np.float32]] = []

        def keep(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
                found.append(output[0].abs().mean(dim=0).numpy())

        convolutions = [m for m in self.network.modules() if isinstance(m, nn.Conv2d)]
        hooks = [module.register_forward_hook(keep) for module in convolutions]
        try:
            self._features(self.images[at : at + 1])
        finally:
            for hook in hooks:
                hook.remove()
        chosen = [found[int(i)] for i in np.linspace(0, len(found) - 1, min(_STAGES, len(found)))]
        return self.mistake(at) | {"stages": [png(_heat(stage)) for stage in chosen]}

    def cloud(self) -> dict[str, Any] | None:
        """The features of a sample of cells, brought to three dimensions by t-SNE."""
        rng = np.random.default_rng(0)
        count = len(self.images)
        # Mistakes first: they are what the picture is looked at for.
        drawn = rng.permutation(count)
        right = self.evaluation.predicted[drawn] == self.evaluation.labels[drawn]
        drawn = np.concatenate([drawn[~right][: _MOST_POINTS // 2], drawn[right]])
        chosen = np.sort(drawn[:_MOST_POINTS])
        if len(chosen) < 10:
            return None
        from sklearn.manifold import TSNE

        features = torch.cat(
            [
                self._features(part)
                for part in torch.split(self.images[torch.from_numpy(chosen)], 64)
            ]
        )
        perplexity = min(30.0, (len(chosen) - 1) / 3)
        spread = TSNE(n_components=3, perplexity=perplexity, init="pca", random_state=0)
        return feature_cloud(
            spread.fit_transform(features.numpy()),
            self.evaluation,
            chosen,
            [png(_pixels(self.images[int(at)], _THUMBNAIL_PX)) for at in chosen],
        )

    @torch.inference_mode()
    def _features(self, images: Tensor) -> Tensor:
        """[n, c] of what the classifier works on; logits where a network keeps them to itself."""
        normalised = self.bundle.spec.preprocessing.normalise(images, torch.float32)
        features = getattr(self.network, "features", None)
        found: Tensor = (
            features(normalised)
            if callable(features) and not isinstance(features, nn.Module)
            else self.network(normalised)
        )
        return found


def png(pixels: NDArray[np.uint8]) -> str:
    """A data URL of an image uint8 [h, w, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _pixels(image: Tensor, side: int = 96) -> NDArray[np.uint8]:
    array = image.permute(1, 2, 0).contiguous().numpy()
    return np.asarray(Image.fromarray(array).resize((side, side), Image.Resampling.BILINEAR))


def _heat(activation: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Black to yellow, scaled to the map's own range."""
    low, high = float(activation.min()), float(activation.max())
    level = (activation - low) / max(high - low, 1e-12)
    colour = np.stack([level, level**2, 0.3 * level**4], axis=2)
    pixels = Image.fromarray((255 * colour).astype(np.uint8))
    return np.asarray(pixels.resize((96, 96), Image.Resampling.NEAREST))
