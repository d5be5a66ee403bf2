"""The benchmark of the driver measures what it says, on real runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def figures(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "jobs" / "benchmark.py"), "driver", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_measured(found: dict[str, Any], case: str, *names: str) -> None:
    assert {name for name in found if name.startswith(case)} == {f"{case}: {n}" for n in names}
    assert all(found[f"{case}: {name}"] > 0 for name in names)


def test_slides() -> None:
    found = figures("--part", "slides", "--slides", "30")
    assert_measured(
        found,
        "30 slides",
        "discovery_ms_each",
        "planning_ms_each",
        "finishing_ms_each",
        "cpu_ms_each",
        "leases",
        "peak_mib",
        "again_planning_ms_each",
        "again_cpu_ms_each",
        "again_command_seconds",
        "again_command_cpu_seconds",
    )


def test_leases() -> None:
    found = figures("--part", "leases", "--replicas", "2", "--leases", "50")
    assert_measured(found, "2 replicas", "leases_per_second", "driver_cpu_ms_each")
    waits = [value for name, value in found.items() if name.startswith("ray.wait")]
    assert len(waits) == 4
    assert min(waits) > 0


@pytest.mark.campaign
def test_memory() -> None:
    found = figures("--part", "memory", "--tiles", "1500")
    for case in ("1500 tiles, one slide", "1500 tiles, many slides"):
        assert_measured(found, case, "driver_peak_mib", "replica_peak_mib", "tiles_per_second")


@pytest.mark.campaign
def test_start() -> None:
    found = figures("--part", "start", "--rounds", "1")
    for executor in ("ray", "local"):
        steps = ("imports", "planning", "starting", "first_tile", "command")
        seconds = [found[f"{executor}: {step}"] for step in steps]
        assert 0 < sum(seconds[:3]) < seconds[3] < seconds[4]
