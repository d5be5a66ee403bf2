"""What a process does without is not there, and nothing breaks by that."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import sys
from importlib.util import find_spec

from cvm_batch.without import without

assert find_spec("pandas") is not None, "it is installed"
without("pandas")
try:
    import pandas
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("it is there")

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet

assert pa.compute.field("a").isin([1]) is not None
assert pa.array(np.arange(3)).to_pylist() == [0, 1, 2]

import ray
import torch
import torch._dynamo  # asks for the specification of a hundred packages

assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
assert "pandas" not in sys.modules
"""


def test_pandas_is_not_there_and_all_else_works() -> None:
    subprocess.run([sys.executable, "-c", _SCRIPT], check=True)
