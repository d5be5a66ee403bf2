"""The Jobs API through Ray's own client."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cvm_batch.cluster.jobs import JobRequest, JobSeen, JobState
from cvm_batch.errors import ClusterError, ClusterUnreachableError, SubmissionTakenError

# Ray reads its settings on import.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

Answer = TypeVar("Answer")

_NO_AGENT = "No available agent"
_PASSING = ("status code 502", "status code 503", "status code 504", _NO_AGENT)
#: From a head that answers to agents that do, on busy machines.
_AGENT_SECONDS = 90.0
_POLL_SECONDS = 2.0
_NEVER_AN_AGENT = (
    "The cluster at {address} has had no agent on its head for {seconds:.0f} s, which jobs are "
    "started by. dashboard_agent.log there says why; most often another program had its port, and "
    "`ray start --dashboard-agent-listen-port` names a free one."
)
_REFUSED = (
    "The cluster at {address} does not accept the token: {why}. Put its token into a file that "
    "only you can read and name that in RAY_AUTH_TOKEN_PATH (or ~/.ray/auth_token)."
)


class RayJobs:
    """A `JobsClient`."""

    def __init__(
        self, address: str, *, token: str | None = None, ca_file: Path | None = None
    ) -> None:
        """``address``: http:// or https://, of the dashboard. ``ca_file``: certificates to trust
        in place of the system's. Raises ClusterError."""
        self._address = address
        verify = str(ca_file) if ca_file else True
        # Handed over, since Ray itself looks for a token only where RAY_AUTH_MODE was set before
        # it was imported.
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = self._ask(
            lambda: JobSubmissionClient(address, verify=verify, headers=headers)
        )

    def submit(self, request: JobRequest) -> None:
        until = time.monotonic() + _AGENT_SECONDS
        while True:
            try:
                return self._ask(lambda: self._submit(request))
            except ClusterUnreachableError as error:
                # Nothing was handed over: no node is up yet that could bear a driver.
                if _NO_AGENT not in str(error):
                    raise
                if time.monotonic() > until:
                    told = _NEVER_AN_AGENT.format(address=self._address, seconds=_AGENT_SECONDS)
                    raise ClusterUnreachableError(told) from error
                time.sleep(_POLL_SECONDS)
            except ClusterError as error:
                if "already exists" in str(error):
                    raise SubmissionTakenError(str(error)) from error
                raise

    def _submit(self, request: JobRequest) -> None:
        self._client.submit_job(
            entrypoint=request.entrypoint,
            submission_id=request.submission_id,
            runtime_env=dict(request.runtime_env),
            metadata=dict(request.metadata),
            entrypoint_memory=request.memory_bytes or None,
            entrypoint_resources=dict(request.resources) or None,
        )

    def seen(self, submission_id: str) -> JobSeen:
        return _seen(self._ask(lambda: self._client.get_job_info(submission_id)))

    def logs(self, submission_id: str) -> str:
        return str(self._ask(lambda: self._client.get_job_logs(submission_id)))

    def stop(self, submission_id: str) -> None:
        self._ask(lambda: self._client.stop_job(submission_id))

    def jobs(self) -> Sequence[JobSeen]:
        listed = self._ask(lambda: self._client.list_jobs())
        return [_seen(job) for job in listed if job.submission_id]

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        """Ray's client raises whatever is at hand, most of it RuntimeError with the status."""
        try:
            return question()
        except AuthenticationError as error:
            why = str(error).partition("\n")[0].partition(". Ensure")[0]
            raise ClusterError(_REFUSED.format(address=self._address, why=why)) from error
        except OSError as error:  # as those of requests are, too
            raise ClusterUnreachableError(
                f"No answer from the cluster at {self._address}: {_root(error)}. Check the "
                "address, and that the way there (a tunnel, a proxy) is open."
            ) from error
        except (RuntimeError, ValueError) as error:
            told = str(error)
            # While its head is started again, a proxy before it answers for it; a little later
            # the head does, and has no node yet that could bear a driver.
            passing = any(sign in told for sign in _PASSING)
            kind = ClusterUnreachableError if passing else ClusterError
            raise kind(f"The cluster at {self._address} says: {_last_line(told)}") from error


def _seen(job: Any) -> JobSeen:
    return JobSeen(
        submission_id=job.submission_id,
        state=JobState(str(job.status.value)),
        message=job.message or "",
        began=_time(job.start_time),
        ended=_time(job.end_time),
        metadata=dict(job.metadata or {}),
        host=urlsplit(job.driver_agent_http_address or "").hostname,
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}"


def _last_line(text: str) -> str:
    """Ray's server answers with a traceback, whose last line says what was wrong."""
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    return lines[-1] if lines else "nothing"
