from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cvm_batch.cpus import usable_cpus

AFFINITY = 8


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(AFFINITY)))


def write_v1(cgroup: Path, quota: str, period: str) -> None:
    (cgroup / "cpu").mkdir()
    (cgroup / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
    (cgroup / "cpu/cpu.cfs_period_us").write_text(f"{period}\n")


@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset")
def test_follows_the_affinity_mask() -> None:
    cpu = str(min(os.sched_getaffinity(0)))
    script = "from cvm_batch.cpus import usable_cpus; print(usable_cpus())"
    command = ["taskset", "--cpu-list", cpu, sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_is_at_most_the_affinity_here() -> None:
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))


NOWHERE = Path("/nonexistent")


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000", AFFINITY),
        ("400000 100000", 4),
        ("150000 100000", 2),
        ("1000 100000", 1),
        ("50000 50000", 1),
        ("6400000 100000", AFFINITY),
        ("", AFFINITY),
        ("max", AFFINITY),
    ],
)
def test_cgroup_v2_quota(tmp_path: Path, quota: str, cpus: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cpus(tmp_path, NOWHERE) == cpus


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("quota", "period", "cpus"),
    [("-1", "100000", AFFINITY), ("250000", "100000", 3), ("20000", "100000", 1)],
)
def test_cgroup_v1_quota(tmp_path: Path, quota: str, period: str, cpus: int) -> None:
    write_v1(tmp_path, quota, period)
    assert usable_cpus(tmp_path, NOWHERE) == cpus


@pytest.mark.usefixtures("eight_cpus")
def test_the_tightest_group_around_the_process_counts(tmp_path: Path) -> None:
    """As under systemd or Slurm: the quota is on a group above the process's own."""
    membership = tmp_path / "membership"
    membership.write_text("0::/batch.slice/job-7/step-0\n")
    for group, quota in [("", "max"), ("batch.slice", "600000"), ("batch.slice/job-7", "300000")]:
        (tmp_path / group).mkdir(exist_ok=True)
        (tmp_path / group / "cpu.max").write_text(f"{quota} 100000\n")
    (tmp_path / "batch.slice/other").mkdir()
    (tmp_path / "batch.slice/other/cpu.max").write_text("100000 100000\n")
    assert usable_cpus(tmp_path, membership) == 3


@pytest.mark.usefixtures("eight_cpus")
def test_v1_groups(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("9:name=systemd:/\n4:cpu,cpuacct:/job\n3:memory:/other\n")
    write_v1(tmp_path, "-1", "100000")
    job = tmp_path / "cpu/job"
    job.mkdir()
    (job / "cpu.cfs_quota_us").write_text("200000\n")
    (job / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cpus(tmp_path, membership) == 2


@pytest.mark.usefixtures("eight_cpus")
def test_path_of_the_host_seen_from_a_container(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("0::/kubepods/pod-1/container-2\n")
    (tmp_path / "cpu.max").write_text("500000 100000\n")
    assert usable_cpus(tmp_path, membership) == 5


@pytest.mark.usefixtures("eight_cpus")
def test_without_a_cgroup(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path / "missing", NOWHERE) == AFFINITY
