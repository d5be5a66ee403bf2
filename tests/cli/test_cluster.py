"""Commands against a cluster that a double stands for: what is handed over, and what comes back."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cvm_batch.cli import cli
from cvm_batch.cluster.ending import Ending
from cvm_batch.cluster.jobs import JobRequest, JobState
from cvm_batch.errors import CvmBatchError
from cvm_batch.model.bundle import Bundle
from cvm_batch.screening.settings import Settings
from tests.cluster.fake_jobs import FakeJobs

URL = "http://localhost:8265"


class Cluster(FakeJobs):
    """Whatever is submitted ends at once, as a test wants it to."""

    ends: Ending | None = None
    marks = JobState.SUCCEEDED
    """How jobs end that ask others to stop."""

    def submit(self, request: JobRequest) -> None:
        super().submit(request)
        if "cvm_batch_stops" in request.metadata:
            self.becomes(request.submission_id, self.marks)
        if self.ends is not None:
            state = JobState.FAILED if self.ends.process_code else JobState.SUCCEEDED
            self.writes(request.submission_id, f"0/3 slides\n{self.ends.line()}\n")
            self.becomes(request.submission_id, state)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster()
    monkeypatch.setattr("cvm_batch.cluster.ray_jobs.RayJobs", lambda *_, **__: found)
    monkeypatch.setattr("cvm_batch.cli.cluster.check_dashboard", lambda *_, **__: None)
    return found


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [*map(str, arguments)], standalone_mode=False)
    if isinstance(result.exception, CvmBatchError):
        raise result.exception
    return result


def handed_over(there: Cluster) -> tuple[JobRequest, list[str]]:
    (request,) = there.requests.values()
    return request, shlex.split(request.entrypoint)


def test_a_run_is_handed_over_as_the_nodes_will_read_it(
    there: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(
        *("submit", "slides", "s3://bucket/more", "--model", "nightly", "--out", "results"),
        *("--address", URL, "--detach", "--mpp", "0.25", "--priority", "urgent/*=5"),
        *("--remote-python", "/opt/bin/python", "--driver-resource", "calm", "--log-json"),
        *("--notify-mail", "lab@example.org"),
    )
    request, words = handed_over(there)
    assert result.return_value == 0
    assert result.stdout.strip() == request.submission_id
    assert words[:5] == ["/opt/bin/python", "-m", "cvm_batch", "job", "screen"]
    settings = Settings.from_json(json.loads(words[words.index("--settings") + 1]))
    assert settings == Settings(
        inputs=(str(tmp_path / "slides"), "s3://bucket/more"),
        model="nightly",
        out=tmp_path / "results",
        mpp=(0.25, 0.25),
        priorities=(("urgent/*", 5),),
    )
    assert words[-3:] == ["--notify-mail", "lab@example.org", "--log-json"]
    assert (request.resources, request.runtime_env) == ({"calm": 1.0}, {})
    assert request.metadata["out"] == str(tmp_path / "results")


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
def test_the_exit_code_is_the_runs(there: Cluster, tmp_path: Path, code: int) -> None:
    error = "A sentence." if code in (1, 2) else None
    summary = {"run_id": "r"} if error is None else None
    there.ends = Ending(exit_code=code, summary=summary, error=error)
    result = run("submit", tmp_path, "--model", "m", "--out", tmp_path, "--address", URL, "--json")
    assert result.return_value == code
    assert "0/3 slides" in result.stderr
    assert (json.loads(result.stdout) if summary else result.stdout) == (summary or "")
    told = json.loads(run("status", "--address", URL, "--json").stdout)
    assert (told["exit_code"], told["summary"]) == (code, summary)
    assert run("logs", "--address", URL).stdout == "0/3 slides\n"
    assert run("logs", "--address", URL, "--follow").return_value == code


def test_a_job_whose_node_is_gone_is_told_of(there: Cluster, tmp_path: Path) -> None:
    there.ends = Ending(exit_code=3)
    run("submit", tmp_path, "--model", "m", "--out", tmp_path, "--address", URL, "--detach")
    there.node_is_gone = True
    assert "exit code unknown" in run("status", "--address", URL).stdout
    assert json.loads(run("status", "--address", URL, "--json").stdout)["exit_code"] is None
    with pytest.raises(CvmBatchError, match="may be gone"):
        run("logs", "--address", URL)


def test_a_shipped_bundle_is_another_configuration(
    there: Cluster, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    night = ("submit", tmp_path, "--out", tmp_path, "--address", URL, "--detach", "--ship-bundle")
    run(*night, "--model", tiny_bundle.path)
    run(*night, "--model", "cvm-cervix-mini-cric6")
    assert len({name.split("-")[4] for name in there.requests}) == 2
    assert all("shipped-bundle" in one.entrypoint for one in there.requests.values())


def test_no_secret_is_handed_over(there: Cluster, tmp_path: Path) -> None:
    with pytest.raises(CvmBatchError, match="CVM_BATCH_NOTIFY_WEBHOOK on the nodes"):
        run(
            *("submit", tmp_path, "--model", "m", "--out", tmp_path, "--address", URL),
            *("--notify-webhook", "https://hooks.example.org/secret"),
        )
    assert not there.requests


@pytest.mark.parametrize("option", ["--ship-bundle", "--ship-code", "--detach"])
def test_options_of_another_way_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(CvmBatchError, match="--address"):
        run("submit", tmp_path, "--model", "m", "--out", tmp_path, option)


def test_a_driver_of_this_machine_needs_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(CvmBatchError, match="RAY_AUTH_MODE"):
        run("submit", tmp_path, "--model", "m", "--out", tmp_path, "--address", "10.0.0.1:6379")


def test_stop_goes_by_the_results_folder_or_by_ray(there: Cluster, tmp_path: Path) -> None:
    night = ("submit", tmp_path, "--model", "m", "--out", tmp_path, "--address", URL, "--detach")
    name = run(*night).stdout.strip()
    there.becomes(name, JobState.RUNNING)
    run("stop", "--address", URL)
    marker = [one for one in there.requests.values() if one.submission_id != name]
    assert shlex.split(marker[0].entrypoint)[-2:] == ["stop", str(tmp_path)]
    assert there.seen(name).state is JobState.RUNNING, "it ends by itself"
    there.marks = JobState.FAILED
    run("stop", name, "--address", URL, "--wait")
    assert there.seen(name).state is JobState.STOPPED
    with pytest.raises(CvmBatchError, match="has ended already"):
        run("stop", name, "--address", URL)
    assert "stopped" in run("list", "--address", URL).stdout


def test_stop_of_a_run_that_has_not_begun_leaves_no_marker(there: Cluster, tmp_path: Path) -> None:
    """Another run may hold the folder, and would find it."""
    night = ("submit", tmp_path, "--model", "m", "--out", tmp_path, "--address", URL, "--detach")
    name = run(*night).stdout.strip()
    run("stop", "--address", URL)
    assert there.seen(name).state is JobState.STOPPED
    assert list(there.requests) == [name]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("train", "--recipe", "r", "--workers", 2, "--no-report"), "--workers 2 --no-report"),
        (("compare", "--recipe", "r", "--at-once", 2, "--models", "a,b"), "--at-once 2"),
    ],
)
def test_trainings_are_handed_over_as_they_were_typed(
    there: Cluster, tmp_path: Path, command: tuple[Any, ...], said: str
) -> None:
    there.ends = Ending(exit_code=0)
    data, out = tmp_path / "cells", tmp_path / "made" / "out"
    result = run(*command, "--data", data, "--out", out, "--set", "epochs=3", "--address", URL)
    assert result.return_value == 0, result.output
    request, words = handed_over(there)
    assert request.submission_id.startswith(f"cvm-batch-{command[0]}-")
    assert words[4:9] == ["command", "--see", str(data), "--write", str(out.parent)]
    typed = " ".join(words[10:])
    assert typed.startswith(f"{command[0]} --data {data}")
    assert all(part in typed for part in (said, f"--out {out}", "--set epochs=3"))
    assert "--address" not in typed


def test_the_nodes_download_what_is_to_be_downloaded(there: Cluster, tmp_path: Path) -> None:
    there.ends = Ending(exit_code=0)
    data, out = tmp_path / "cells", tmp_path / "out"
    command = ("train", "--recipe", "r", "--workers", 2, "--data", data, "--out", out)
    run(*command, "--pretrained-cnn", "timm", "--address", URL)
    _, words = handed_over(there)
    assert words[5:7] == ["--see", str(data)]
    assert words.count("--see") == 1
    assert words[words.index("--pretrained-cnn") + 1] == "timm"


def test_the_nodes_are_asked_for_the_first_weights(there: Cluster, tmp_path: Path) -> None:
    """Which need not lie on the desk."""
    there.ends = Ending(exit_code=0)
    data, out, weights = tmp_path / "cells", tmp_path / "out", tmp_path / "first.safetensors"
    command = ("train", "--recipe", "r", "--workers", 2, "--data", data, "--out", out)
    run(*command, "--pretrained", weights, "--address", URL)
    _, words = handed_over(there)
    assert words[5:9] == ["--see", str(data), "--see", str(weights)]
    assert words[words.index("--pretrained") + 1] == str(weights)
    here = run("train", "--recipe", "r", "--data", data, "--out", out, "--pretrained", weights)
    assert f"There is no file {weights}" in str(here.exception)
