"""timm is imported without PyTorch's compiler, which is there for whoever compiles."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import sys
from cvm_batch.model.bundle import load_bundle
from cvm_batch.model.registry import find_bundle

import torch

network = load_bundle(find_bundle("cvm-cervix-mini-cric6").path).network()
with torch.inference_mode():
    assert network(torch.zeros(1, 3, 96, 96)).shape == (1, 6)
assert "torch._dynamo" not in sys.modules and "pandas" not in sys.modules

from torchvision.ops import roi_align

boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
assert roi_align(torch.ones(1, 1, 8, 8), boxes, 2).shape == (1, 1, 2, 2)

compiled = torch.compile(lambda x: x + 1, backend="eager")
assert compiled(torch.ones(1)).item() == 2.0
assert hasattr(sys.modules["torch._dynamo"], "optimize")
"""


def test_a_network_is_built_without_the_compiler_and_can_be_compiled() -> None:
    subprocess.run([sys.executable, "-c", _SCRIPT], check=True)


def test_what_the_stand_in_does_not_have_is_the_compilers_own() -> None:
    script = """
import sys, torch
from cvm_batch.model import timm_import

stand_in = timm_import._StandIn("torch._dynamo")
sys.modules["torch._dynamo"] = stand_in
assert stand_in.optimize is sys.modules["torch._dynamo"].optimize
assert sys.modules["torch._dynamo"] is not stand_in
"""
    subprocess.run([sys.executable, "-c", script], check=True)
