"""The batch script on a real Slurm of one node, started by hand: a night, and an early end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cvm_batch.model.bundle import Bundle
from tests.cluster.real import ROOT
from tests.cluster.test_real_cluster import locally, write_slides
from tests.faults.comparing import assert_equal, read_night, rows_of

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        shutil.which("slurmctld") is None or os.geteuid() != 0,
        reason="needs Debian's slurm-wlm, and root to start it",
    ),
]
_CONFIG = """
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ReturnToService=2
NodeName={host} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass
class Slurm:
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "CVM_BATCH_PREFIX": sys.prefix,
            "CVM_BATCH_STATE": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "RAY_worker_niceness": "0",
        }

    def run(self, *command: object) -> str:
        ended = subprocess.run(
            [*map(str, command)],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return ended.stdout

    def submit(self, *arguments: object) -> str:
        script = ROOT / "cluster" / "slurm" / "cvm-batch.sbatch"
        return self.run("sbatch", "--parsable", script, *arguments).strip()

    def ended(self, job: str) -> tuple[str, str]:
        """Its exit code as Slurm tells it, and its log."""
        deadline = time.monotonic() + 300
        while True:
            told = dict(
                word.partition("=")[::2]
                for word in self.run("scontrol", "show", "job", job).split()
            )
            if told["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
                return told["ExitCode"], self.log(job)
            assert time.monotonic() < deadline, (told, self.log(job))
            time.sleep(0.5)

    def log(self, job: str) -> str:
        path = self.folder / f"cvm-batch-{job}.log"
        return path.read_text() if path.is_file() else ""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    folder = tmp_path_factory.mktemp("slurm")
    host = socket.gethostname().partition(".")[0]
    text = _CONFIG.format(host=host, folder=folder, cpus=os.cpu_count())
    (folder / "slurm.conf").write_text(text)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    Path("/run/munge").mkdir(exist_ok=True)
    slurm = Slurm(folder)
    daemons = [
        subprocess.Popen(command, env=slurm.environment, stdout=log, stderr=log)
        for command in (["munged", "--force", "-F"], ["slurmctld", "-D"], ["slurmd", "-D"])
        if (log := (folder / f"{command[0]}.out").open("wb"))
    ]
    deadline = time.monotonic() + 60
    while (
        subprocess.run(
            ["sinfo", "--noheader", "--states=idle", "--format=%N"],
            env=slurm.environment,
            capture_output=True,
            text=True,
        ).stdout.strip()
        != host
    ):
        assert time.monotonic() < deadline, (folder / "slurmd.log").read_text()
        time.sleep(0.5)
    yield slurm
    for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait()


def test_a_night(slurm: Slurm, tiny_bundle: Bundle, tmp_path: Path) -> None:
    slides, results = write_slides(tmp_path / "slides"), tmp_path / "results"
    night = (slides, "--model", tiny_bundle.path, "--out", results)
    job = slurm.submit(*night, "--precision", "fp32", "--backend", "torch-eager")
    code, log = slurm.ended(job)
    assert code == "0:0", log
    assert "3 slides: 3 complete" in log
    assert_equal(read_night(results), locally(slides, tiny_bundle, tmp_path / "local"))
    assert not list(slurm.folder.glob(".cvm-batch-*")), "the token is gone"


def test_a_job_that_is_ended_ends_in_order(
    slurm: Slurm, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    slides, results = write_slides(tmp_path / "slides", 100, 60), tmp_path / "results"
    night = (slides, "--model", tiny_bundle.path, "--out", results, "--batch-size", 1)
    job = slurm.submit(*night)
    deadline = time.monotonic() + 200
    while not any((results / "slides").rglob("*.parquet")):
        assert time.monotonic() < deadline, slurm.log(job)
        time.sleep(0.2)
    slurm.run("scancel", "--batch", "--signal=TERM", job)
    code, log = slurm.ended(job)
    assert code == "4:0", log
    assert "submit again to go on" in log
    assert 0 < len(rows_of(results)) < 100
