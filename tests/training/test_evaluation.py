from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.training.augment import in_attitudes
from cvm_batch.training.evaluation import Evaluation, evaluate


def made(right: int, wrong: int, groups: int) -> Evaluation:
    """Two classes; whole groups are right or wrong together."""
    cells = right + wrong
    labels = np.arange(cells) % 2
    predicted = np.where(np.arange(cells) < right, labels, 1 - labels)
    probabilities = np.full((cells, 2), 0.2, np.float32)
    probabilities[np.arange(cells), predicted] = 0.8
    return Evaluation(
        probabilities=probabilities,
        labels=labels,
        class_names=("a", "b"),
        groups=tuple(f"g{at * groups // cells}" for at in range(cells)),
    )


def test_intervals_hold_the_figure_and_widen_with_groups() -> None:
    by_cell, by_frame = made(80, 20, 100), made(80, 20, 10)
    assert by_cell.metrics.accuracy == by_frame.metrics.accuracy == 0.8
    for evaluation in (by_cell, by_frame):
        low, high = evaluation.intervals()["accuracy"]
        assert low < 0.8 < high
        assert evaluation.intervals() == evaluation.intervals()
    narrow, wide = (e.intervals()["accuracy"] for e in (by_cell, by_frame))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    # Of 100 independent cells: 0.8 and 1.96 standard deviations of 0.04.
    assert narrow == pytest.approx([0.72, 0.88], abs=0.025)


def test_calibration_by_hand() -> None:
    evaluation = made(60, 40, 10)
    assert evaluation.calibration() == [{"cells": 100, "confidence": 0.8, "right": 0.6}]
    assert evaluation.calibration_error == pytest.approx(0.2, abs=1e-6)


def test_a_class_without_cells_has_no_interval_of_its_own_to_spoil() -> None:
    evaluation = Evaluation(
        probabilities=np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.3, 0.7, 0]], np.float32),
        labels=np.array([0, 0, 1]),
        class_names=("a", "b", "never"),
        groups=("1", "2", "3"),
    )
    assert evaluation.metrics.accuracy == 1
    assert evaluation.intervals()["accuracy"] == [1.0, 1.0]


class _LeftHalf(nn.Module):
    """How bright the left half is, against the right."""

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[3] // 2
        left, right = images[..., :half].mean((1, 2, 3)), images[..., half:].mean((1, 2, 3))
        return torch.stack([left, right], dim=1)


def test_flips_average_the_four_attitudes() -> None:
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    images[..., :4] = 255
    common = {"labels": np.array([0]), "class_names": ("left", "right"), "groups": ("g",)}
    plain = evaluate(_LeftHalf(), images, Preprocessing(input_px=8), **common)
    flipped = evaluate(_LeftHalf(), images, Preprocessing(input_px=8), flips=True, **common)
    assert plain.probabilities[0, 0] > 0.95
    assert flipped.probabilities[0].tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


def test_the_four_attitudes_are_the_papers() -> None:
    image = torch.arange(27, dtype=torch.uint8).view(1, 3, 3, 3)
    found = in_attitudes(image.expand(4, -1, -1, -1), torch.arange(4))
    expected = [image, image.rot90(2, (2, 3)), image.flip(3), image.flip(2)]
    assert torch.equal(found, torch.cat(expected))
