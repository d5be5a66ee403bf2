"""OpenVINO on the CPU: the fastest there, where it is installed."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cvm_batch.model.backends.classifier import Classifier
from cvm_batch.model.backends.cpu import CPU
from cvm_batch.model.precision import Precision
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.tiles import Tiles


def _openvino() -> Any:
    """The package, kept from calling home.

    Its converter reports its use over the network unless ``openvino_telemetry`` cannot be
    imported (openvino.tools.ovc.telemetry_utils). A laboratory's machine calls nobody.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


ov = _openvino()

_HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16"}


class OpenVinoLane:
    """One infer request of a model that is compiled for one batch size."""

    def __init__(self, request: Any, preprocessing: Preprocessing, batch_size: int) -> None:
        self.batch_size = batch_size
        self._request = request
        self._preprocessing = preprocessing
        side = preprocessing.input_px
        self._images = np.zeros((batch_size, side, side, 3), np.uint8)
        request.set_input_tensor(ov.Tensor(self._images, shared_memory=True))

    def probabilities(self, tiles: Tiles) -> NDArray[np.float32]:
        # What earlier batches left in the rest of a small one costs time and changes nothing.
        self._images[: len(tiles)] = self._preprocessing.resize(tiles, CPU).permute(0, 2, 3, 1)
        self._request.infer()
        found: NDArray[np.float32] = self._request.get_output_tensor().data[: len(tiles)].copy()
        return found

    def shrink(self, batch_size: int) -> None:
        self.batch_size = batch_size


class _ChannelsLast(nn.Module):
    """Takes images as they lie in memory."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self._classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self._classifier(images.permute(0, 3, 1, 2))
        return found


def openvino_lanes(
    classifier: Classifier,
    preprocessing: Preprocessing,
    precision: Precision,
    *,
    batch_size: int,
    lanes: int,
    threads: int,
) -> list[OpenVinoLane]:
    """Lanes over one compiled model. ``classifier`` is in fp32, on the CPU.

    ``threads``: of all lanes together.
    """
    side = preprocessing.input_px
    example = torch.zeros((batch_size, side, side, 3), dtype=torch.uint8)
    with torch.no_grad():
        exported = torch.export.export(_ChannelsLast(classifier).eval(), (example,))
    compiled = ov.Core().compile_model(
        ov.convert_model(exported),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": lanes,
            "INFERENCE_NUM_THREADS": threads,
            # Two replicas on one machine would pin their threads to the same cores.
            "ENABLE_CPU_PINNING": False,
        },
    )
    return [
        OpenVinoLane(compiled.create_infer_request(), preprocessing, batch_size)
        for _ in range(lanes)
    ]
