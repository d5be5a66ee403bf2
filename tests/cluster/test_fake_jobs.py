"""The double keeps the contract that the real client is held to in test_real_cluster.py."""

from __future__ import annotations

import pytest

from cvm_batch.cluster.jobs import JobRequest, JobsClient, JobState
from tests.cluster.contract import JobsContract
from tests.cluster.fake_jobs import FakeJobs


class TestFakeJobs(JobsContract):
    @pytest.fixture
    def client(self) -> FakeJobs:
        return FakeJobs()

    def finishes(self, client: JobsClient, request: JobRequest) -> None:
        assert isinstance(client, FakeJobs)
        client.writes(request.submission_id, "one\ntwo\n")
        client.becomes(request.submission_id, JobState.SUCCEEDED)
