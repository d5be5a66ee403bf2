"""The seam to a cluster's Jobs API: what is asked of it, and what it tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol


class JobState(StrEnum):
    """As Ray names them."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def ended(self) -> bool:
        return self not in (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """One job as it is handed over. Whoever reads the dashboard reads it all: no secrets."""

    submission_id: str
    """Unique on the cluster."""
    entrypoint: str
    """A shell command."""
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    """As Ray takes it; folders in it are uploaded."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int = 0
    """That the driver is given. Any such demand lets Ray place it off the head node."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Of the node for the driver."""


@dataclass(frozen=True, kw_only=True)
class JobSeen:
    """One job as the cluster tells of it."""

    submission_id: str
    state: JobState
    message: str
    """Ray's own sentence about the state."""
    began: datetime | None
    ended: datetime | None
    metadata: Mapping[str, str]
    host: str | None = None
    """The address of the machine whose node bears the driver; None before there is one."""


class JobsClient(Protocol):
    """Every call raises ClusterUnreachableError where no answer came, and ClusterError."""

    def submit(self, request: JobRequest) -> None:
        """Raises SubmissionTakenError."""
        ...

    def seen(self, submission_id: str) -> JobSeen:
        """Raises ClusterError where there is no such job."""
        ...

    def logs(self, submission_id: str) -> str:
        """All that the job's driver has written so far."""
        ...

    def stop(self, submission_id: str) -> None:
        """SIGTERM, and SIGKILL a few seconds later; returns at once."""
        ...

    def jobs(self) -> Sequence[JobSeen]:
        """All jobs that were submitted to the cluster."""
        ...
