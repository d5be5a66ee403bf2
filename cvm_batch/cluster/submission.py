"""A run as a job: its name, its command, and what is sent along."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cvm_batch.cluster.jobs import JobRequest, JobsClient, JobSeen
from cvm_batch.errors import ClusterError, SubmissionTakenError

#: What decides when a run ends, not what it does: the same night's command has another each time.
_NOT_OF_THE_CONFIGURATION = ("until",)
_ID = re.compile(r"cvm-batch-(\w+)-(\d{8})-([0-9a-f]{8})-(\d+)")
#: Of one argument on Linux, less what is around it.
_MOST_CHARACTERS = 100_000
_ATTEMPTS = 5
#: Every node of Ray has 1 of the resource `node:ADDRESS`, by which it can be asked for.
_LITTLE = 0.001


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a job's driver runs, and with what."""

    python: str = "python"
    """The nodes' Python in which cvm-batch is installed, by name or full path."""
    memory_bytes: int = 2**30
    """Kept for the driver; with any, Ray may place it off the head node."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """That only nodes have which may bear the driver."""
    runtime_env: Mapping[str, Any] = field(default_factory=dict)


def submit_job(
    client: JobsClient,
    name: str,
    arguments: Sequence[str],
    configuration: Mapping[str, Any],
    *,
    placement: Placement,
    now: datetime,
    metadata: Mapping[str, str] | None = None,
    label: str | None = None,
) -> str:
    """Hand over the job ``name`` of jobs/; return its submission ID.

    The ID says ``label`` (the name, unless given), the date, the configuration's fingerprint, and
    which attempt it is. Raises ClusterError, also where the same configuration runs already.
    """
    command = [placement.python, "-m", "cvm_batch", "job", name, *arguments]
    entrypoint = shlex.join(command)
    if len(entrypoint) > _MOST_CHARACTERS:
        raise ClusterError(
            f"{len(entrypoint):,} characters of arguments are too long for a command. Name "
            "folders, or a manifest table that lists the slides."
        )
    label = label or name
    of = fingerprint({"job": label, **configuration})
    earlier = [found for job in client.jobs() if (found := _parsed(job)) and found[1] == of]
    running = [job for job, _, _, _ in earlier if not job.state.ended]
    if running:
        raise ClusterError(
            f"The same is running already: {running[0].submission_id}. `cvm-batch logs --address "
            "URL --follow` follows it, `cvm-batch stop --address URL` ends it."
        )
    date = f"{now:%Y%m%d}"
    attempt = 1 + max((number for _, _, day, number in earlier if day == date), default=0)
    for number in range(attempt, attempt + _ATTEMPTS):  # another may submit at this moment, too
        submission_id = f"cvm-batch-{label}-{date}-{of}-{number}"
        request = JobRequest(
            submission_id=submission_id,
            entrypoint=entrypoint,
            runtime_env=placement.runtime_env,
            metadata={"cvm_batch_job": label, "python": placement.python, **(metadata or {})},
            memory_bytes=placement.memory_bytes,
            resources=placement.resources,
        )
        try:
            client.submit(request)
        except SubmissionTakenError:
            if number == attempt + _ATTEMPTS - 1:
                raise
        else:
            break
    return submission_id


def stop_request(job: JobSeen) -> JobRequest:
    """A small job that asks a run to end in order, through its results folder on the cluster.

    Beside the run's driver, which sees that folder: the head, on which Ray starts what demands
    nothing, need not.
    """
    python = shlex.quote(job.metadata.get("python", "python"))
    out = shlex.quote(job.metadata["out"])
    return JobRequest(
        submission_id=f"{job.submission_id}-stop-{secrets.token_hex(3)}",
        entrypoint=f"{python} -m cvm_batch stop {out}",
        metadata={"cvm_batch_stops": job.submission_id},
        resources={f"node:{job.host}": _LITTLE} if job.host else {},
    )


def fingerprint(configuration: Mapping[str, Any]) -> str:
    """Eight digits that stand for a configuration."""
    decisive = {k: v for k, v in configuration.items() if k not in _NOT_OF_THE_CONFIGURATION}
    text = json.dumps(decisive, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def ours(client: JobsClient) -> list[JobSeen]:
    """The jobs that cvm-batch submitted, the newest first."""
    found = [job for job in client.jobs() if "cvm_batch_job" in job.metadata]
    return sorted(
        found, key=lambda job: job.began or datetime.max.replace(tzinfo=UTC), reverse=True
    )


def _parsed(job: JobSeen) -> tuple[JobSeen, str, str, int] | None:
    """Fingerprint, date and attempt of a job of ours."""
    match = _ID.fullmatch(job.submission_id)
    return (job, match[3], match[2], int(match[4])) if match else None
