"""What every `JobsClient` does; the fake, and Ray's own on a real cluster."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from cvm_batch.cluster.jobs import JobRequest, JobsClient, JobSeen, JobState
from cvm_batch.cluster.submission import stop_request
from cvm_batch.errors import ClusterError, SubmissionTakenError


class JobsContract:
    """Subclasses give ``client``, and ``finishes`` for a client whose jobs do not run."""

    def finishes(self, client: JobsClient, request: JobRequest) -> None:
        """Let the job echo and end, where nothing runs it."""

    def test_a_job_runs_to_its_end(self, client: JobsClient) -> None:
        request = named("echo one; echo two", metadata={"out": "/data/ä", "cvm_batch_job": "x"})
        client.submit(request)
        self.finishes(client, request)
        ended = wait_for(client, request, lambda job: job.state.ended)
        assert ended.state is JobState.SUCCEEDED
        assert ended.metadata == request.metadata
        assert ended.began
        assert ended.ended
        assert ended.began <= ended.ended
        # Ray's own lines stand anywhere among them: they come from another process.
        lines = client.logs(request.submission_id).splitlines()
        assert [line for line in lines if line in ("one", "two")] == ["one", "two"]
        assert request.submission_id in {job.submission_id for job in client.jobs()}
        with pytest.raises(SubmissionTakenError):
            client.submit(request)

    def test_a_job_runs_beside_another(self, client: JobsClient) -> None:
        first = named("echo first", metadata={"out": "/data/results"})
        client.submit(first)
        self.finishes(client, first)
        ended = wait_for(client, first, lambda job: job.state.ended)
        request = replace(stop_request(ended), entrypoint="echo beside")
        client.submit(request)
        self.finishes(client, request)
        beside = wait_for(client, request, lambda job: job.state.ended)
        assert beside.state is JobState.SUCCEEDED
        assert ended.host
        assert beside.host == ended.host

    def test_a_job_is_stopped(self, client: JobsClient) -> None:
        request = named("sleep 600")
        client.submit(request)
        assert not client.seen(request.submission_id).state.ended
        client.stop(request.submission_id)
        ended = wait_for(client, request, lambda job: job.state.ended)
        assert ended.state is JobState.STOPPED

    def test_an_unknown_job(self, client: JobsClient) -> None:
        for ask in (client.seen, client.logs, client.stop):
            with pytest.raises(ClusterError):
                ask("cvm-batch-unheard-of")


def named(entrypoint: str, **more: object) -> JobRequest:
    name = f"contract-{secrets.token_hex(4)}"
    return JobRequest(submission_id=name, entrypoint=entrypoint, **more)  # type: ignore[arg-type]


def wait_for(
    client: JobsClient, request: JobRequest, true: Callable[[JobSeen], bool], *, seconds: float = 60
) -> JobSeen:
    deadline = time.monotonic() + seconds
    while not true(job := client.seen(request.submission_id)):
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    return job
