"""Learning curves for TensorBoard, where it is installed."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from cvm_batch.training.loop import Epoch


class Curves:
    def __init__(self, folder: Path) -> None:
        """Begins ``folder`` anew: a training that goes on tells of its first epochs again."""
        self._writer: Any = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            shutil.rmtree(folder, ignore_errors=True)
            self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> Curves:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, epoch: Epoch) -> None:
        if self._writer is None:
            return
        for name, value in (
            ("loss/training", epoch.loss),
            ("loss/validation", epoch.validation_loss),
            ("validation/accuracy", epoch.validation_accuracy),
            ("validation/macro_f1", epoch.validation_macro_f1),
            ("learning_rate", epoch.learning_rate),
            ("images_per_second", epoch.images_per_second),
        ):
            self._writer.add_scalar(name, value, epoch.number)
