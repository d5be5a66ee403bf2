"""Recipes: complete descriptions of one training."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from cvm_batch.model.architecture import Architecture
from cvm_batch.model.precision import Precision
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.training.datasets import LabelledCells
from cvm_batch.training.splits import DEFAULT_SHARES, Split, SplitKind, make_split


class Schedule(StrEnum):
    """How the learning rate goes on after the warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"


class ClassWeighting(StrEnum):
    """What a class's images weigh in the loss, by the class's frequency in training."""

    NONE = "none"
    INVERSE_SQRT = "inverse_sqrt"
    INVERSE = "inverse"


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Changes of training images that leave their class as it is."""

    horizontal_flip: bool = True
    """Left-right with probability 0.5: the paper's only random one."""
    vertical_flip: bool = True
    """Up-down with probability 0.5."""
    quarter_turns: bool = True
    """By 0, 90, 180 or 270 degrees, with both flips: a cell has no up."""
    shift_px: int = 0
    """Up to so many input pixels in x and y; the border is mirrored."""
    rotate: bool = False
    """By any angle; the border is mirrored."""
    zoom: float = 0.0
    """Sides are scaled by up to this share up or down, each on its own."""
    jitter: float = 0.0
    """Brightness and contrast, and the colour channels' balance at half of it: each is
    scaled by up to this share up or down."""
    fourfold: bool = False
    """The training set holds each image four times: as it is, turned by 180 degrees, flipped
    left-right, flipped up-down (paper, section 4.7.2)."""

    def __post_init__(self) -> None:
        if self.shift_px < 0 or not 0 <= self.jitter < 1 or not 0 <= self.zoom < 1:
            raise ValueError("shift_px must not be negative; jitter and zoom lie in [0, 1)")
        if self.quarter_turns and not (self.horizontal_flip and self.vertical_flip):
            raise ValueError("quarter_turns come with both flips: without one, set it to false too")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides a training, except the data and the machine."""

    name: str
    architecture: Architecture
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    epochs: int
    batch_size: int
    """Images of one step, over all workers and accumulated parts."""
    accumulate: int = 1
    """Parts that each worker's share of a batch is taken in, one after the other. Batch
    normalisation sees a part at a time."""
    learning_rate: float
    """Of AdamW, at its highest."""
    weight_decay: float = 0.01
    warmup: float = 0.0
    """Share of all steps in which the learning rate rises linearly from zero."""
    schedule: Schedule = Schedule.CONSTANT
    mixed_precision: bool = True
    """Convolutions and matrix products in bf16, on devices that are faster in it; else all in
    fp32."""
    clip_norm: float | None = None
    """Largest norm of the gradient, where it is clipped."""
    augmentation: Augmentation = Augmentation()
    class_weighting: ClassWeighting = ClassWeighting.NONE
    balanced_sampling: bool = False
    """Images are drawn with replacement, every class as often as every other."""
    label_smoothing: float = 0.0
    ema_decay: float | None = None
    """Of the running average of the weights, which is what is kept; None keeps the last."""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The bundle's classes, and which of the data's each takes in; empty: the data's own."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Groups of the bundle's classes beside the cervical ones; the first is then the primary."""
    tile_um: float | None = None
    """Side of the cells' images in microns, where all have one: slides are then screened at the
    scale that was trained on. None: not known, and slides without tiles cannot be screened."""
    stored: Precision = Precision.FP16
    """Precision of the weights in the bundle."""
    split: SplitKind = SplitKind.GROUPED
    split_seed: int = 0
    shares: tuple[float, float, float] = DEFAULT_SHARES
    """Of training, validation and test."""
    seed: int = 0
    """Of the first weights, the order of images and the augmentation; not of the split,
    so that repeated trainings hold the same cells back."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.accumulate) < 1:
            raise ValueError("epochs, batch_size and accumulate must be above zero")
        if self.batch_size % self.accumulate:
            raise ValueError("batch_size must be a multiple of accumulate")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError("learning_rate must be above zero")
        if self.weight_decay < 0 or (self.clip_norm is not None and self.clip_norm <= 0):
            raise ValueError("weight_decay must not be negative, and clip_norm above zero")
        if not 0 <= self.warmup < 1 or not 0 <= self.label_smoothing < 1:
            raise ValueError("warmup and label_smoothing lie in [0, 1)")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError("ema_decay lies between 0 and 1, or is None")
        if min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError("shares must be above zero and add up to 1")
        if self.balanced_sampling and self.class_weighting is not ClassWeighting.NONE:
            raise ValueError(
                "balanced_sampling and class_weighting both make up for rare classes: take one"
            )
        if self.tile_um is not None and not 0 < self.tile_um < math.inf:
            raise ValueError("tile_um must be above zero, in microns")
        if self.stored is Precision.BF16:
            raise ValueError("bundles are stored in fp32 or fp16")
        self._check_classes()
        self._check_input_size()

    def _check_classes(self) -> None:
        taken = [name for members in self.classes.values() for name in members]
        if len(taken) != len(set(taken)):
            raise ValueError("classes: one of the data's classes is taken twice")
        for group, members in self.groups.items():
            if self.classes and (unknown := set(members) - set(self.classes)):
                raise ValueError(f"group {group!r} names unknown classes: {sorted(unknown)}")

    def _check_input_size(self) -> None:
        takes, given = self.architecture.input_px, self.preprocessing.input_px
        if takes is not None and takes != given:
            raise ValueError(f"the network takes {takes} px, and preprocessing gives {given} px")

    def split_of(self, cells: LabelledCells) -> Split:
        """The split of ``cells`` that this recipe asks for. Raises DataSetError."""
        return make_split(
            self.split, cells.labels, cells.groups, seed=self.split_seed, shares=self.shares
        )

    def splits_otherwise(self, other: Recipe) -> bool:
        """Whether the other divides the same cells in another way."""
        return (self.split, self.shares) != (other.split, other.shares)

    @property
    def fingerprint(self) -> str:
        """12 hex digits over all fields but the name: equal recipes train alike."""
        fields = self.to_json() | {"name": None}
        text = json.dumps(fields, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "architecture": self.architecture.to_json(),
            "preprocessing": self.preprocessing.to_json(),
            "shares": list(self.shares),
            "classes": {name: list(members) for name, members in self.classes.items()},
            "groups": {name: list(members) for name, members in self.groups.items()},
        }
