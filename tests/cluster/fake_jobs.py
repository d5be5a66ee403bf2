"""A `JobsClient` in memory, beside the real one in one contract suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from cvm_batch.cluster.jobs import JobRequest, JobSeen, JobState
from cvm_batch.errors import ClusterError, ClusterUnreachableError, SubmissionTakenError

#: Of the machine on which all drivers run.
HOST = "10.0.0.11"


class FakeJobs:
    """Jobs that do what a test says, and a connection that drops when a test says."""

    def __init__(self) -> None:
        self.requests: dict[str, JobRequest] = {}
        self._seen: dict[str, JobSeen] = {}
        self._logs: dict[str, str] = {}
        self.drops = 0
        """So many of the next calls find no connection."""
        self.node_is_gone = False
        """Of the drivers: the head knows the jobs, and nobody has their logs."""

    def submit(self, request: JobRequest) -> None:
        self._connect()
        if request.submission_id in self._seen:
            raise SubmissionTakenError(f"Job {request.submission_id} already exists.")
        self.requests[request.submission_id] = request
        self._seen[request.submission_id] = JobSeen(
            submission_id=request.submission_id,
            state=JobState.PENDING,
            message="Job has not started yet.",
            began=datetime.now(UTC),
            ended=None,
            metadata=dict(request.metadata),
            host=HOST,
        )
        self._logs[request.submission_id] = ""

    def seen(self, submission_id: str) -> JobSeen:
        self._connect()
        if submission_id not in self._seen:
            raise ClusterError(f"There is no job {submission_id}.")
        return self._seen[submission_id]

    def logs(self, submission_id: str) -> str:
        self.seen(submission_id)
        if self.node_is_gone:
            raise ClusterError("The cluster says: aiohttp.ClientConnectorError: no node.")
        return self._logs[submission_id]

    def stop(self, submission_id: str) -> None:
        if not self.seen(submission_id).state.ended:
            self.becomes(submission_id, JobState.STOPPED, "Job was intentionally stopped.")

    def jobs(self) -> Sequence[JobSeen]:
        self._connect()
        return list(self._seen.values())

    def becomes(self, submission_id: str, state: JobState, message: str = "") -> None:
        ended = datetime.now(UTC) if state.ended else None
        job = self._seen[submission_id]
        self._seen[submission_id] = replace(job, state=state, message=message, ended=ended)

    def writes(self, submission_id: str, text: str) -> None:
        self._logs[submission_id] += text

    def _connect(self) -> None:
        if self.drops:
            self.drops -= 1
            raise ClusterUnreachableError("No answer from the cluster.")
