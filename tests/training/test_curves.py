"""Curves: each epoch once, also in a training that was interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvm_batch.training.curves import Curves
from cvm_batch.training.loop import Epoch


def epoch(number: int) -> Epoch:
    return Epoch(
        number=number,
        epochs=3,
        loss=1 / number,
        learning_rate=1e-3,
        images_per_second=10.0,
        seconds=1.0,
        validation_loss=0.5,
        validation_accuracy=0.5,
        validation_macro_f1=0.5,
        best=False,
    )


def test_epochs_from_before_an_interruption_are_there_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for numbers in ((1, 2), (1, 2, 3)):
        with Curves(tmp_path / "curves") as curves:
            for number in numbers:
                curves.add(epoch(number))
    found = EventAccumulator(str(tmp_path / "curves"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss/training")] == [1, 2, 3]
