"""From a trained network to a bundle that says where it comes from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import cvm_batch
from cvm_batch.errors import BundleError
from cvm_batch.model.bundle import Bundle, BundleSpec, load_bundle, write_bundle
from cvm_batch.model.classes import PRIMARY_GROUP, cervical_groups
from cvm_batch.model.engine import default_device
from cvm_batch.model.precision import Precision
from cvm_batch.training.card import model_card
from cvm_batch.training.checking import Fp16, check_served
from cvm_batch.training.datasets import LabelledCells
from cvm_batch.training.evaluation import Evaluation, evaluate_cells
from cvm_batch.training.images import load_images
from cvm_batch.training.loop import Trained
from cvm_batch.training.recipe import Recipe
from cvm_batch.training.sources import source_of
from cvm_batch.training.splits import Split

SENTINELS = 16
#: Large tiles are fewer, though one of each class, since a bundle travels with every run.
_SENTINEL_BYTES = 1_500_000
#: Cells of a class that are looked at for each sentinel.
_LOOKED_AT = 4
#: Test cells on which fp16 is compared with fp32, at most.
_COMPARED = 256


@dataclass(frozen=True, kw_only=True)
class Published:
    """A bundle on disk, and what the weights in it do."""

    bundle: Bundle
    validation: Evaluation
    test: Evaluation
    fp16: Fp16


def publish(
    path: Path,
    trained: Trained,
    recipe: Recipe,
    cells: LabelledCells,
    split: Split,
    *,
    fingerprint: str,
    first_weights: Mapping[str, str],
) -> Published:
    """Measure the network, and write it as a bundle to ``path``, where it is not there yet.

    The figures are those of the weights as stored, run in fp32. ``fingerprint`` of the
    training; ``first_weights``: SHA-256 of their files, empty where they were random. Raises
    BundleError, DataSetError, and SentinelError where this
    device does not reproduce what was written.
    """
    stored = _as_stored(trained.network, recipe.stored)
    validation, test = (
        _evaluate(stored, cells, positions, recipe) for positions in (split.validation, split.test)
    )
    groups, primary = _groups(recipe, cells.class_names)
    spec = BundleSpec(
        name=path.name,
        architecture=recipe.architecture,
        class_names=cells.class_names,
        groups=groups,
        primary_group=primary,
        preprocessing=recipe.preprocessing,
        precision=recipe.stored,
        tile_um=recipe.tile_um,
        provenance={
            "recipe": recipe.to_json(),
            "data": _data_json(cells),
            "split": _split_json(cells, split, recipe),
            "training": {
                "fingerprint": fingerprint,
                "first_weights": dict(first_weights),
                "best_epoch": trained.best.number,
                "device": trained.device,
                "precision": trained.precision,
            },
            "versions": {
                "cvm_batch": cvm_batch.__version__,
                "torch": torch.__version__,
                "timm": timm.__version__,
            },
            "metrics": {"validation": validation.to_json(), "test": test.to_json()},
        },
    )
    if path.exists():
        # Written before an interruption. By this training, or by one beside it to the same folder.
        bundle = load_bundle(path)
        if bundle.spec.provenance.get("training", {}).get("fingerprint") != fingerprint:
            raise BundleError(
                f"Another training has written {path} meanwhile. Move that bundle away, and give "
                "this command again: it goes on from its last checkpoint."
            )
    else:
        bundle = write_bundle(
            path,
            spec,
            trained.network,
            choose_sentinels(cells, split.validation),
            card=model_card(spec, test.metrics),
        )
    tiles = [cells.read(at) for at in split.test[:_COMPARED]]
    fp16 = check_served(bundle, trained.network, tiles)
    return Published(bundle=bundle, validation=validation, test=test, fp16=fp16)


def choose_sentinels(
    cells: LabelledCells, positions: NDArray[np.int64], count: int = SENTINELS
) -> NDArray[np.uint8]:
    """Tiles uint8 [count or fewer, h, w, 3], the classes taking turns.

    All are of the commonest size among the first cells of each class at ``positions``: those
    that have it as they are, and where there are too few of them, others stretched to it. Raises
    DataSetError.
    """
    queues: list[list[NDArray[np.uint8]]] = [[] for _ in cells.class_names]
    for position in positions:
        queue = queues[cells.labels[position]]
        if len(queue) < _LOOKED_AT * count:
            queue.append(cells.read(position))
    shape = Counter(tile.shape for tile in chain(*queues)).most_common(1)[0][0]
    classes = sum(1 for queue in queues if queue)
    count = min(count, max(classes, _SENTINEL_BYTES // math.prod(shape)))
    for queue in queues:
        queue.sort(key=lambda tile: tile.shape != shape)  # otherwise as they came
    turns = chain.from_iterable(zip_longest(*(queue[:count] for queue in queues)))
    return np.stack(
        [_stretched(tile, shape) for tile in islice((t for t in turns if t is not None), count)]
    )


def _stretched(tile: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if tile.shape == shape:
        return tile
    height, width = shape[:2]
    return np.asarray(Image.fromarray(tile).resize((width, height), Image.Resampling.BILINEAR))


def _as_stored(network: nn.Module, precision: Precision) -> nn.Module:
    """The network in fp32, with the weights rounded as the bundle rounds them."""
    rounded = deepcopy(network).to(precision.dtype).float()
    return rounded.to(default_device()).eval()


def _evaluate(
    network: nn.Module, cells: LabelledCells, positions: NDArray[np.int64], recipe: Recipe
) -> Evaluation:
    images = load_images(cells, positions, recipe.preprocessing, default_device())
    return evaluate_cells(network, images, recipe.preprocessing, cells, positions)


def _groups(
    recipe: Recipe, class_names: Sequence[str]
) -> tuple[dict[str, tuple[str, ...]], str | None]:
    """The bundle's groups of classes, and the primary one."""
    own, cervical = dict(recipe.groups), cervical_groups(class_names)
    primary = next(iter(own), PRIMARY_GROUP if PRIMARY_GROUP in cervical else None)
    return own | cervical | own, primary  # one of its own that is called as a cervical one stays


def _data_json(cells: LabelledCells) -> Mapping[str, Any]:
    return {
        "digest": cells.digest,
        "source": source_of(cells.digest),
        "cells": len(cells),
        "groups": len(set(cells.groups)),
        "grouped_by": cells.grouped_by,
    }


def _split_json(cells: LabelledCells, split: Split, recipe: Recipe) -> Mapping[str, Any]:
    return {
        "kind": str(split.kind),
        "seed": split.seed,
        "shares": list(recipe.shares),
        "test_cells_seen": _seen(cells, split),
        "sides": {
            side: {
                "cells": len(positions),
                "groups": len({cells.groups[position] for position in positions}),
                "per_class": {
                    name: _class_json(cells, positions[cells.labels[positions] == label])
                    for label, name in enumerate(cells.class_names)
                },
            }
            for side, positions in split.sides().items()
        },
    }


def _seen(cells: LabelledCells, split: Split) -> int:
    """Test cells whose image is also one of training or validation, under another name."""
    seen = {cells.pixel_digests[at] for side in (split.train, split.validation) for at in side}
    return sum(cells.pixel_digests[at] in seen for at in split.test)


def _class_json(cells: LabelledCells, positions: NDArray[np.int64]) -> Mapping[str, int]:
    return {
        "cells": len(positions),
        "groups": len({cells.groups[position] for position in positions}),
    }
