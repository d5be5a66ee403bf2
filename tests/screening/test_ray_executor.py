"""Replicas as real Ray actors; tests/faults/ kills them, and the nodes that they run on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from safetensors.numpy import load_file, save_file

from cvm_batch.errors import ExitCode, SentinelError, UsageError
from cvm_batch.model.bundle import SENTINELS_FILE, SPEC_FILE, Bundle, file_sha256
from cvm_batch.screening.executor import Executor
from cvm_batch.screening.ray_executor import RayExecutor, _shares
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings
from cvm_batch.screening.summary import RunSummary
from tests.screening.test_run import comparable, many_slides, undisturbed

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def settings(tmp_path: Path, tiny_bundle: Bundle) -> Settings:
    many_slides(tmp_path / "slides", 30)
    return Settings(
        inputs=(str(tmp_path / "slides"),),
        model=str(tiny_bundle.path),
        out=tmp_path / "results",
        batch_size=8,
        executor=ExecutorKind.LOCAL,  # the tests bring their own Ray executor
    )


def replica_processes() -> list[int]:
    """Process IDs of the replicas of this test's own Ray."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::ReplicaActor") and os.getpid() in ancestors(folder.name):
            found.append(int(folder.name))
    return sorted(found)


def ancestors(process: str) -> Iterator[int]:
    while process != "0":
        try:
            stat = Path(f"/proc/{process}/stat").read_text()
        except OSError:
            return
        process = stat.rpartition(")")[2].split()[1]
        yield int(process)


def run_on(executor: Executor, settings: Settings) -> RunSummary:
    try:
        return run(settings, executor=executor)
    finally:
        ray.shutdown()


def test_a_run_on_ray_equals_a_local_one(settings: Settings, tmp_path: Path) -> None:
    summary = run_on(RayExecutor(replicas=2), settings)
    assert summary.exit_code is ExitCode.COMPLETE
    assert comparable(settings) == undisturbed(settings, tmp_path / "local")
    assert replica_processes() == []


def test_a_bundle_that_fails_its_sentinels_stops_the_run(
    settings: Settings, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(tiny_bundle.path, bad)
    arrays = load_file(bad / SENTINELS_FILE)
    arrays["probabilities"] = np.roll(arrays["probabilities"], 1, axis=1)
    save_file(arrays, bad / SENTINELS_FILE)
    spec = json.loads((bad / SPEC_FILE).read_text())
    spec["sentinels_sha256"] = file_sha256(bad / SENTINELS_FILE)
    (bad / SPEC_FILE).write_text(json.dumps(spec))
    with pytest.raises(SentinelError, match="does not reproduce"):
        run_on(RayExecutor(), replace(settings, model=str(bad)))


def test_an_address_where_nothing_answers_is_told(settings: Settings) -> None:
    with pytest.raises(UsageError, match="Ray could not be reached"):
        run_on(RayExecutor(address="127.0.0.1:1"), settings)


def node(cpus: int, gpus: int = 0, *, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}}


def test_one_replica_per_gpu_with_its_share_of_the_cpus() -> None:
    shares = _shares([node(16, 4), node(8, 1), node(64)], None)
    assert [(share.gpus, share.cpus, share.threads) for share in shares] == [
        (1, 1, 4),
        (1, 1, 4),
        (1, 1, 4),
        (1, 1, 4),
        (1, 1, 8),
    ]


def test_without_gpus_one_replica_per_node() -> None:
    shares = _shares([node(4), node(2), node(8, alive=False)], None)
    assert [(share.gpus, share.cpus, share.threads) for share in shares] == [(0, 4, 4), (0, 2, 2)]


def test_more_replicas_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(UsageError, match="the cluster has 1 GPUs"):
        _shares([node(4, 1)], 2)
    with pytest.raises(UsageError, match="the cluster has 2 CPUs"):
        _shares([node(2)], 3)


def test_replicas_share_nodes_of_different_size() -> None:
    assert [share.cpus for share in _shares([node(4), node(2)], 2)] == [2, 2]
    assert [share.cpus for share in _shares([node(4), node(2)], 3)] == [2, 2, 2]
