"""Threads follow the CPUs that the process may use, whatever the machine has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch

from cvm_batch.model.backends.starting import start_engine
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision

SCRIPT = """
import json, os, sys
from pathlib import Path
if len(sys.argv) > 2:
    Path(sys.argv[2]).write_text(str(os.getpid()))
import torch
from cvm_batch.model.backends.starting import start_engine
from cvm_batch.model.bundle import load_bundle
from cvm_batch.model.precision import Precision
cpu = torch.device("cpu")
engine = start_engine(load_bundle(Path(sys.argv[1])), device=cpu, precision=Precision.FP32)
each = engine._pool.submit(torch.get_num_threads).result()
print(json.dumps({"lanes": engine.lanes, "threads_each": each}))
"""
CPU_GROUPS = Path("/sys/fs/cgroup/cpu")


def started(bundle: Bundle, prefix: Sequence[str] = (), *arguments: str) -> dict[str, Any]:
    command = [*prefix, sys.executable, "-c", SCRIPT, str(bundle.path), *arguments]
    # An explicit number of OpenMP threads must not win either.
    environment = os.environ | {"OMP_NUM_THREADS": "7"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, timeout=120
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_one_lane_a_cpu(tiny_bundle: Bundle) -> None:
    expected = {"lanes": min(16, len(os.sched_getaffinity(0))), "threads_each": 1}
    if len(os.sched_getaffinity(0)) <= 16:
        assert started(tiny_bundle) == expected


@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset")
def test_under_taskset(tiny_bundle: Bundle) -> None:
    cpu = str(min(os.sched_getaffinity(0)))
    found = started(tiny_bundle, ["taskset", "--cpu-list", cpu])
    assert found == {"lanes": 1, "threads_each": 1}


@pytest.fixture
def one_cpu_group() -> Iterator[Path]:
    """A cgroup with one CPU's worth of time."""
    group = CPU_GROUPS / f"cvm-batch-test-{uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("100000")
    except OSError as error:
        pytest.skip(f"may not make cgroups here: {error}")
    yield group
    group.rmdir()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_under_a_cgroup_limit(tiny_bundle: Bundle, one_cpu_group: Path) -> None:
    found = started(tiny_bundle, (), str(one_cpu_group / "tasks"))
    assert found == {"lanes": 1, "threads_each": 1}


@pytest.mark.parametrize(("threads", "lanes", "each"), [(1, 1, 1), (16, 16, 1), (40, 16, 2)])
def test_many_cpus_share_lanes(tiny_bundle: Bundle, threads: int, lanes: int, each: int) -> None:
    cpu = torch.device("cpu")
    engine = start_engine(tiny_bundle, device=cpu, precision=Precision.FP32, threads=threads)
    try:
        assert engine.lanes == lanes
        assert engine._pool.submit(torch.get_num_threads).result() == each
    finally:
        engine.close()
