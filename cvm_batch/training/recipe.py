"""Recipes: named, complete descriptions of one training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from cvm_batch.errors import UsageError
from cvm_batch.model.architecture import CVM_CERVIX_MINI, Architecture
from cvm_batch.model.precision import Precision
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.training.splits import DEFAULT_SHARES


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
    """Random changes of training images that leave their class as it is."""

    flips: bool = True
    """Left-right and up-down, each with probability 0.5."""
    quarter_turns: bool = True
    """By 0, 90, 180 or 270 degrees: a cell has no up."""
    shift_px: int = 0
    """Up to so many input pixels in x and y; the border is mirrored."""
    jitter: float = 0.0
    """Brightness and contrast, and the colour channels' balance at half of it: each is
    scaled by up to this share up or down."""

    def __post_init__(self) -> None:
        if self.shift_px < 0 or not 0 <= self.jitter < 1:
            raise ValueError("shift_px must not be negative, and jitter lies in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides a training, except the data and the machine."""

    name: str
    architecture: Architecture
    preprocessing: Preprocessing
    epochs: int
    batch_size: int
    learning_rate: float
    """Of AdamW, at its highest."""
    weight_decay: float = 0.01
    warmup: float = 0.0
    """Share of all steps in which the learning rate rises linearly from zero."""
    schedule: Schedule = Schedule.CONSTANT
    clip_norm: float | None = None
    """Largest norm of the gradient, where it is clipped."""
    augmentation: Augmentation = Augmentation()
    class_weighting: ClassWeighting = ClassWeighting.NONE
    label_smoothing: float = 0.0
    ema_decay: float | None = None
    """Of the running average of the weights, which is what is kept; None keeps the last."""
    stored: Precision = Precision.FP16
    """Precision of the weights in the bundle."""
    split_seed: int = 0
    shares: tuple[float, float, float] = DEFAULT_SHARES
    """Of training, validation and test."""
    seed: int = 0
    """Of the first weights, the order of images and the augmentation; not of the split,
    so that repeated trainings hold the same frames back."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1 or not 0 < self.learning_rate < math.inf:
            raise ValueError("epochs, batch_size and learning_rate must be above zero")
        if self.weight_decay < 0 or (self.clip_norm is not None and self.clip_norm <= 0):
            raise ValueError("weight_decay must not be negative, and clip_norm above zero")
        if not 0 <= self.warmup < 1 or not 0 <= self.label_smoothing < 1:
            raise ValueError("warmup and label_smoothing lie in [0, 1)")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError("ema_decay lies between 0 and 1, or is None")
        if min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError("shares must be above zero and add up to 1")
        if self.stored is Precision.BF16:
            raise ValueError("bundles are stored in fp32 or fp16")
        self._check_input_size()

    def _check_input_size(self) -> None:
        # A timm transformer has one input size, 224 where none is given; its convolutional
        # partner takes any, so that only the transformer can contradict.
        takes = int(self.architecture.vt.args.get("img_size", 224))
        if takes != self.preprocessing.input_px:
            raise ValueError(
                f"the transformer takes {takes} px, and preprocessing gives "
                f"{self.preprocessing.input_px} px"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "architecture": self.architecture.to_json(),
            "preprocessing": self.preprocessing.to_json(),
            "shares": list(self.shares),
        }


#: Six classes of CRIC, for 100 px crops, in half an hour on two CPU cores.
CVM_CERVIX_MINI_CRIC6 = Recipe(
    name="cvm-cervix-mini-cric6",
    architecture=CVM_CERVIX_MINI,
    preprocessing=Preprocessing(input_px=96),
    epochs=30,
    batch_size=32,
    learning_rate=6e-4,
    weight_decay=0.05,
    warmup=0.1,
    schedule=Schedule.COSINE,
    clip_norm=1.0,
    augmentation=Augmentation(shift_px=6, jitter=0.15),
    class_weighting=ClassWeighting.INVERSE_SQRT,
    label_smoothing=0.05,
    ema_decay=0.995,
)

RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in (CVM_CERVIX_MINI_CRIC6,)}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises UsageError."""
    if name not in RECIPES:
        raise UsageError(f"No recipe called {name!r}. Known: {', '.join(sorted(RECIPES))}.")
    return RECIPES[name]
