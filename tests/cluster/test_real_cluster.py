"""A real cluster of a head and two workers, with tokens: runs handed over from outside.

One night is in every test run; kills, stops and nights in a row are for campaigns, since each
start of a job and its replicas takes a minute on two cores.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cvm_batch.cluster.ending import ending_of
from cvm_batch.cluster.jobs import JobsClient, JobState
from cvm_batch.errors import ClusterError, ClusterUnreachableError
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings
from tests.archives import making
from tests.cluster.contract import JobsContract, named, wait_for
from tests.cluster.real import ROOT, TokenCluster
from tests.cluster.relay import Relay
from tests.faults.comparing import Found, assert_equal, assert_tidy, read_night, rows_of
from tests.faults.kill_night import slide_of
from tests.screening.test_run import flip_byte_in_member

pytestmark = pytest.mark.timeout(600)

AS_LOCAL = ("--precision", "fp32", "--backend", "torch-eager")


class TestRayJobs(JobsContract):
    @pytest.fixture
    def client(self, cluster: TokenCluster) -> JobsClient:
        from cvm_batch.cluster.ray_jobs import RayJobs

        return RayJobs(cluster.address, token=cluster.token_file.read_text())


def write_slides(folder: Path, count: int = 3, cells: int = 40) -> Path:
    for number in range(count):
        making.write_zip(folder / f"{number:02d}.zip", slide_of(cells, seed=number).tiles)
    return folder


def locally(slides: Path, bundle: Bundle, results: Path) -> dict[str, Found]:
    settings = Settings(
        inputs=(str(slides),),
        model=str(bundle.path),
        out=results,
        precision=Precision.FP32,
        executor=ExecutorKind.LOCAL,
    )
    assert run(settings).exit_code == 0
    return read_night(results)


def test_a_night_from_outside_equals_a_local_one(
    cluster: TokenCluster, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """The bundle is shipped, the log followed, the exit code a submit's; status and list tell."""
    slides, results = write_slides(tmp_path / "slides"), tmp_path / "results"
    night = ("submit", slides, "--model", tiny_bundle.path, "--ship-bundle", "--out", results)
    ended = cluster.run(*night, *AS_LOCAL, "--address", cluster.address, "--json")
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout)
    assert (summary["exit_code"], summary["slides"]["complete"]) == (0, 3)
    assert "3 slides: 3 complete" in ended.stderr, "the job's log was followed"
    assert_equal(read_night(results), locally(slides, tiny_bundle, tmp_path / "local"))
    assert_tidy(results)

    listed = json.loads(cluster.run("list", "--address", cluster.address, "--json").stdout)
    (job,) = [one for one in listed if one["metadata"]["out"] == str(results)]
    assert job["state"] == "succeeded"
    name = job["submission_id"]
    told = json.loads(cluster.run("status", name, "--address", cluster.address, "--json").stdout)
    assert (told["submission_id"], told["exit_code"]) == (name, 0)


def test_a_head_whose_agent_lost_its_port_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    from cvm_batch.cluster import ray_jobs

    monkeypatch.setattr(ray_jobs, "_AGENT_SECONDS", 0.0)  # besides the ten that Ray waits itself
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        head = TokenCluster.start(0, head_agent=taken.getsockname()[1])
        try:
            client = ray_jobs.RayJobs(head.address, token=head.token_file.read_text())
            with pytest.raises(ClusterUnreachableError, match=r"dashboard_agent\.log"):
                client.submit(named("echo one"))
        finally:
            head.stop()


def test_a_stranger_is_told_what_is_missing(cluster: TokenCluster, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("0" * 64)
    refused = cluster.run(
        *("list", "--address", cluster.address), RAY_AUTH_TOKEN_PATH=str(tmp_path / "wrong")
    )
    assert refused.returncode == 2
    assert "RAY_AUTH_TOKEN_PATH" in refused.stderr
    assert cluster.token_file.read_text() not in refused.stderr + refused.stdout


def test_no_secret_in_lists_of_processes_and_logs(cluster: TokenCluster) -> None:
    token = cluster.token_file.read_text()
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert token not in commands.stdout
    for log in cluster.folder.rglob("*.log"):
        assert token not in log.read_text(errors="replace"), log


class Outside:
    """A submit that is followed by a process of its own."""

    def __init__(
        self, cluster: TokenCluster, *arguments: object, address: str | None = None
    ) -> None:
        self.cluster = cluster
        command = ["submit", *arguments, *AS_LOCAL, "--address", address or cluster.address]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cvm_batch", *map(str, command)],
            env=cluster.client_environment,
            cwd=cluster.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for_rows(self, results: Path) -> None:
        deadline = time.monotonic() + 240
        while not any((results / "slides").rglob("*.parquet")):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def ended(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=400)
        return self.process.returncode, output


@pytest.mark.campaign
def test_kill_a_worker_stop_and_resubmit(
    cluster: TokenCluster, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    slides, results = write_slides(tmp_path / "slides", 300, 60), tmp_path / "results"
    undisturbed = locally(slides, tiny_bundle, tmp_path / "local")
    night = (slides, "--model", tiny_bundle.path, "--out", results, "--batch-size", 1)

    first = Outside(cluster, *night)
    first.wait_for_rows(results)
    cluster.lose("worker-1")  # bears a replica, perhaps the driver
    stopped = cluster.run("stop", "--address", cluster.address)
    code, output = first.ended()
    assert code in (1, 4), output  # 1 where the driver died with the node
    assert code == 1 or stopped.returncode == 0, stopped.stderr
    done = {row["slide_id"] for row in rows_of(results)}
    assert 0 < len(done) < 300, "some were done, and some were left"

    cluster.add_node("worker-1")
    cluster.wait_for_nodes(3)
    code, output = Outside(cluster, *night).ended()
    assert code == 0, output
    assert_equal(read_night(results), undisturbed)
    assert_tidy(results)


@pytest.mark.campaign
def test_nights_over_a_growing_folder(
    cluster: TokenCluster, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """The second night classifies only what is new; a damaged slide does not fail the job; an
    overlapping start refuses."""
    slides, results = write_slides(tmp_path / "slides", 4), tmp_path / "results"
    config = tmp_path / "night.toml"
    config.write_text(
        f'[submit]\nslides = ["{slides}"]\nmodel = "{tiny_bundle.path}"\nout = "{results}"\n'
        f'address = "{cluster.address}"\n'
    )
    first = cluster.run("--config", config, "submit", "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["slides"]["complete"] == 4

    making.write_zip(slides / "new.zip", slide_of(3000, seed=50).tiles)
    making.write_zip(slides / "bad.zip", slide_of(30, seed=51).tiles)
    flip_byte_in_member(slides / "bad.zip")
    second = Outside(
        cluster, slides, "--model", tiny_bundle.path, "--out", results, "--batch-size", 1
    )
    second.wait_for_rows(results) if not results.exists() else _wait_for_claim(results)
    # The same command is the same configuration; another one meets the results folder's lock.
    again = cluster.run(
        *("submit", slides, "--model", tiny_bundle.path, "--out", results, "--batch-size", 1),
        *(*AS_LOCAL, "--address", cluster.address),
    )
    assert again.returncode == 2
    assert "running already" in again.stderr
    other = cluster.run("--config", config, "submit", "--batch-size", 2)
    assert other.returncode == 2, other.stdout + other.stderr
    assert "Another run is writing" in other.stdout + other.stderr
    code, output = second.ended()
    assert code == 3, output
    rows = [(row["slide_id"], row["status"]) for row in rows_of(results)]
    assert sorted(rows) == [
        *((f"{number:02d}.zip", "complete") for number in range(4)),
        ("bad.zip", "failed"),
        ("new.zip", "complete"),
    ]
    told = json.loads(cluster.run("list", "--address", cluster.address, "--json").stdout)
    states = {job["state"] for job in told if job["metadata"]["out"] == str(results)}
    assert states == {"succeeded", "failed"}, "the refused one failed, that with a bad slide not"


def _wait_for_claim(results: Path) -> None:
    deadline = time.monotonic() + 120
    before = len(list((results / "lock").glob("*.json")))
    while len(list((results / "lock").glob("*.json"))) == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.campaign
@pytest.mark.skipif(os.geteuid() != 0, reason="a node that sees another disk takes a mount")
def test_a_node_that_does_not_see_the_slides_is_named(
    cluster: TokenCluster, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    slides, results = write_slides(tmp_path / "slides"), tmp_path / "results"
    results.mkdir()
    cluster.add_node("blind", hidden=[slides, results])
    cluster.wait_for_nodes(4)
    try:
        refused = cluster.run(
            *("submit", slides, "--model", tiny_bundle.path, "--out", results),
            *("--address", cluster.address),
        )
        assert refused.returncode == 2
        told = refused.stdout + refused.stderr
        assert "node blind" in told
        assert f"no {slides / '00.zip'}" in told
        assert f"another folder at {results}" in told
        assert "worker-0" not in told
        assert not any((results / "runs").iterdir()) if (results / "runs").exists() else True
    finally:
        cluster.lose("blind")


@pytest.mark.campaign
def test_the_code_is_shipped(cluster: TokenCluster, tiny_bundle: Bundle, tmp_path: Path) -> None:
    """From an installation that says another version than the nodes'."""
    other = tmp_path / "other"
    root = Path(__file__).parents[2]
    shutil.copytree(
        root / "cvm_batch", other / "cvm_batch", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(root / "jobs", other / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    (other / "cvm_batch" / "__init__.py").write_text('"""Newer."""\n\n__version__ = "9.9.9"\n')
    slides = write_slides(tmp_path / "slides", 1)
    night: tuple[Any, ...] = ("submit", slides, "--model", tiny_bundle.path)
    night += ("--address", cluster.address, "--out", tmp_path / "results")
    refused = cluster.run(*night, PYTHONPATH=str(other))
    assert refused.returncode == 2
    assert "--ship-code" in refused.stdout + refused.stderr
    ended = cluster.run(*night, "--ship-code", PYTHONPATH=str(other))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (row,) = rows_of(tmp_path / "results")
    assert row["versions"]["cvm_batch"] == "9.9.9"


@pytest.mark.campaign
def test_stopped_at_once_by_ray(cluster: TokenCluster, tiny_bundle: Bundle, tmp_path: Path) -> None:
    slides, results = write_slides(tmp_path / "slides", 200, 60), tmp_path / "results"
    night = Outside(
        cluster, slides, "--model", tiny_bundle.path, "--out", results, "--batch-size", 1
    )
    night.wait_for_rows(results)
    assert cluster.run("stop", "--now", "--address", cluster.address).returncode == 0
    code, output = night.ended()
    assert code == 4, output


def test_a_job_that_is_not_there(cluster: TokenCluster) -> None:
    ended = cluster.run("status", "cvm-batch-no", "--address", cluster.address)
    assert ended.returncode == ClusterError.exit_code
    assert "cvm-batch-no" in ended.stderr


@pytest.mark.campaign
def test_the_command_of_kubernetes_nights(
    cluster: TokenCluster, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """What rayjob.yaml runs, with a configuration file of its kind; a damaged slide is in order."""
    from cvm_batch.cluster.ray_jobs import RayJobs

    slides, results = write_slides(tmp_path / "slides", 2), tmp_path / "results"
    flip_byte_in_member(slides / "01.zip")
    config = tmp_path / "config.toml"
    config.write_text(
        f'[submit]\nslides = ["{slides}"]\nmodel = "{tiny_bundle.path}"\nout = "{results}"\n'
        "log-json = true\n"
    )
    job = yaml.safe_load((ROOT / "cluster" / "kuberay" / "rayjob.yaml").read_text())["spec"]
    entrypoint = job["entrypoint"].replace("/etc/cvm-batch/config.toml", str(config))
    entrypoint = re.sub("--until .*", "--until 1h", entrypoint)  # at any time of the day
    client = RayJobs(cluster.address, token=cluster.token_file.read_text())
    request = named(entrypoint)
    client.submit(request)
    ended = wait_for(client, request, lambda job: job.state.ended, seconds=200)
    log = client.logs(request.submission_id)
    assert ended.state is JobState.SUCCEEDED, log
    assert ending_of(ended, log).exit_code == 3
    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    told = {event["slide_id"]: event["status"] for event in events if "slide_id" in event}
    assert told == {"00.zip": "complete", "01.zip": "failed"}


def test_only_who_trusts_the_certificate_asks_over_tls(
    cluster: TokenCluster, tmp_path: Path
) -> None:
    relay = Relay.with_tls(cluster.dashboard, tmp_path / "ca.pem")
    address = f"https://localhost:{relay.port}"
    listed = cluster.run("list", "--address", address, "--ca-file", tmp_path / "ca.pem", "--json")
    assert listed.returncode == 0, listed.stderr
    assert isinstance(json.loads(listed.stdout), list)
    strange = cluster.run("list", "--address", address)
    assert strange.returncode == ClusterError.exit_code
    assert "--ca-file" in strange.stderr
    relay.cut()


@pytest.mark.campaign
def test_a_night_over_tls_and_a_line_that_drops(
    cluster: TokenCluster, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Followed to the real end, each line said once, though nobody answered for a while."""
    slides, results = write_slides(tmp_path / "slides", 40, 60), tmp_path / "results"
    relay = Relay.with_tls(cluster.dashboard, tmp_path / "ca.pem")
    night = Outside(
        *(cluster, slides, "--model", tiny_bundle.path, "--out", results, "--batch-size", 1),
        *("--ca-file", tmp_path / "ca.pem"),
        address=f"https://localhost:{relay.port}",
    )
    night.wait_for_rows(results)
    before = relay.connections
    relay.cut()
    time.sleep(8)
    assert relay.connections == before > 0
    relay.restore()
    code, output = night.ended()
    relay.cut()
    assert code == 0, output
    assert output.count("The run goes on there; trying again.") == 1
    assert output.count("The connection is back.") == 1
    assert output.count("40 slides: 40 complete") == 1
    assert_equal(read_night(results), locally(slides, tiny_bundle, tmp_path / "local"))
