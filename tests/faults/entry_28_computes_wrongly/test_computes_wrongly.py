"""Damaged: the device computes wrongly, here by one bit of a weight in its memory.

Expected: the replica refuses to serve, the run ends, and no slide gets a row.
"""

from __future__ import annotations

import pytest
import torch

from cvm_batch.errors import ExitCode, SentinelError
from cvm_batch.model.backends.choosing import Backend, openvino_installed
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.network import CvmCervix
from tests.archives.making import write_folder
from tests.faults.night import Night, slide_of

BACKENDS = [Backend.EAGER, *([Backend.OPENVINO] if openvino_installed() else [])]
TOP_EXPONENT_BIT = 30


@pytest.mark.parametrize("backend", BACKENDS)
def test_refuses_to_serve(night: Night, monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    sound = Bundle.network

    def damaged(bundle: Bundle) -> CvmCervix:
        network = sound(bundle)
        bits = network.mlp[-1].weight.data.view(torch.int32)
        bits[3, 5] ^= 1 << TOP_EXPONENT_BIT
        return network

    write_folder(night.slides / "slide", slide_of().tiles)
    monkeypatch.setattr(Bundle, "network", damaged)
    with pytest.raises(SentinelError, match="computes wrongly") as refusal:
        night.submit(backend=backend)
    assert refusal.value.exit_code is ExitCode.USAGE
    assert not list((night.results / "slides").rglob("*.parquet"))
    monkeypatch.undo()
    assert night.submit(backend=backend).exit_code is ExitCode.COMPLETE
