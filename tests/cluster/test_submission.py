"""A run as a job: names, attempts, and what stands in the open."""

from __future__ import annotations

import runpy
import shlex
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import CliRunner

from cvm_batch.cli.job import job
from cvm_batch.cluster.jobs import JobState
from cvm_batch.cluster.submission import Placement, fingerprint, ours, stop_request, submit_job
from cvm_batch.errors import ClusterError
from cvm_batch.jobfiles import job_file
from tests.cluster.fake_jobs import HOST, FakeJobs

NIGHT = datetime(2026, 3, 1, 22, tzinfo=UTC)
SETTINGS = {"inputs": ["/data/a b"], "model": "nightly", "until": 1.0}


def submit(client: FakeJobs, now: datetime = NIGHT, **settings: Any) -> str:
    configuration = {**SETTINGS, **settings}
    return submit_job(
        client,
        "screen",
        ["--settings", "it's {}"],
        configuration,
        placement=Placement(python="/opt/py thon", resources={"driver": 1.0}),
        metadata={"out": "/data/results"},
        now=now,
    )


def test_the_id_says_date_configuration_and_attempt() -> None:
    client = FakeJobs()
    first = submit(client)
    client.becomes(first, JobState.SUCCEEDED)
    again = submit(client, until=2.0)
    client.becomes(again, JobState.FAILED)
    other = submit(client, model="new")
    next_day = submit(client, now=NIGHT.replace(day=2))
    of = first.split("-")[4]
    assert first == f"cvm-batch-screen-20260301-{of}-1"
    assert again == f"cvm-batch-screen-20260301-{of}-2"
    assert other.split("-")[4] != of
    assert next_day == f"cvm-batch-screen-20260302-{of}-1"
    assert [job.submission_id for job in ours(client)] == [next_day, other, again, first]


def test_the_same_is_not_submitted_twice_at_once() -> None:
    client = FakeJobs()
    running = submit(client)
    with pytest.raises(ClusterError, match=running):
        submit(client, now=NIGHT.replace(day=2), until=3.0)
    submit(client, model="other")


def test_the_command_survives_a_shell_and_asks_for_a_place() -> None:
    client = FakeJobs()
    request = client.requests[submit(client)]
    assert shlex.split(request.entrypoint) == [
        *("/opt/py thon", "-m", "cvm_batch", "job", "screen", "--settings", "it's {}")
    ]
    assert (request.memory_bytes, request.resources) == (2**30, {"driver": 1.0})


def test_too_many_arguments_are_refused() -> None:
    with pytest.raises(ClusterError, match="manifest table"):
        submit_job(FakeJobs(), "screen", ["x" * 200_000], {}, placement=Placement(), now=NIGHT)


def test_stopping_names_the_results_folder() -> None:
    client = FakeJobs()
    job = client.seen(submit(client))
    request = stop_request(job)
    assert shlex.split(request.entrypoint) == [
        *("/opt/py thon", "-m", "cvm_batch", "stop", "/data/results")
    ]
    assert request.resources == {f"node:{HOST}": 0.001}, "the head may see other folders"
    client.submit(request)
    assert [one.submission_id for one in ours(client)] == [job.submission_id]
    assert stop_request(replace(job, host=None)).resources == {}


def test_a_fingerprint_is_of_what_is_done_not_of_when_it_ends() -> None:
    assert fingerprint(SETTINGS) == fingerprint({**SETTINGS, "until": None})
    assert fingerprint(SETTINGS) != fingerprint({**SETTINGS, "inputs": ["/data"]})


def test_a_handed_over_command_keeps_its_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through two commands, of which the first takes the "--" for its own."""
    words = ["train", "--data", "/cells", "--recipe", "smoke", "--workers", "2"]
    given = ["command", "--see", "/cells", "--write", "/models", "--", *words]
    passed: list[str] = []
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(runpy, "run_path", lambda *_, **__: passed.extend(sys.argv[1:]))
    result = CliRunner().invoke(job, given, catch_exceptions=False)
    assert result.exit_code == 0
    monkeypatch.undo()
    main = runpy.run_path(str(job_file("command.py")))["main"]
    with main.make_context("command", passed) as context:
        assert context.params["command"] == tuple(words)
        assert context.params["inputs"] == ("/cells",)
        assert context.params["write"] == "/models"
