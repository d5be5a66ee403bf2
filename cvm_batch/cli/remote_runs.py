"""``status``, ``logs``, ``stop`` and ``list`` of runs on a cluster, seen through its Jobs API."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.table import Table

from cvm_batch.cli.cluster import follow_to_end, say_line
from cvm_batch.cli.console import STDOUT, print_json
from cvm_batch.cluster.ending import ending_of, is_ending
from cvm_batch.cluster.following import log_or
from cvm_batch.cluster.jobs import JobState
from cvm_batch.cluster.submission import ours, stop_request
from cvm_batch.errors import ClusterError, ClusterUnreachableError, ExitCode

if TYPE_CHECKING:
    from cvm_batch.cluster.jobs import JobsClient, JobSeen

_STOP_EVERY_SECONDS = 1.0
_MARKER_SECONDS = 120.0


def tell_status(client: JobsClient, submission_id: str | None, *, as_json: bool) -> None:
    job = _find(client, submission_id)
    log = log_or(client, job.submission_id, "")
    ending = ending_of(job, log) if job.state.ended else None
    if as_json:
        ended = {"exit_code": ending.exit_code, "summary": ending.summary} if ending else {}
        print_json({**_as_json(job), **ended})
        return
    STDOUT.print(f"{job.submission_id}: {_state(job)}, begun {_time(job.began)}", soft_wrap=True)
    if ending is not None:
        code = "unknown" if ending.exit_code is None else int(ending.exit_code)
        STDOUT.print(f"Ended {_time(job.ended)}, exit code {code}.")
        if ending.error:
            say_line(ending.error)
    elif lines := [line for line in log.splitlines() if line.strip()]:
        say_line(lines[-1])


def tell_list(client: JobsClient, *, as_json: bool) -> None:
    jobs = ours(client)
    if as_json:
        print_json([_as_json(job) for job in jobs])
        return
    table = Table("submission", "state", "begun", "ended", "results", box=None, pad_edge=False)
    for job in jobs:
        out = job.metadata.get("out", "")
        table.add_row(job.submission_id, _state(job), _time(job.began), _time(job.ended), out)
    STDOUT.print(table)


def tell_logs(client: JobsClient, submission_id: str | None, *, follow: bool) -> int:
    job = _find(client, submission_id)
    if follow:
        return follow_to_end(client, job.submission_id).known_code
    try:
        log = client.logs(job.submission_id)
    except ClusterUnreachableError:
        raise
    except ClusterError as error:
        raise ClusterError(
            f"The log of {job.submission_id} ({_state(job)}) cannot be read: it lies on the node "
            f"that its driver ran on, which may be gone. {error}"
        ) from error
    for line in log.splitlines():
        if not is_ending(line):
            say_line(line)
    return ExitCode.COMPLETE


def stop(client: JobsClient, submission_id: str | None, *, wait: bool, now: bool) -> None:
    """In order through the marker in the results folder, which a small job on the cluster
    leaves; ``now``, or where that cannot be, by Ray, which kills after some seconds."""
    job = _find(client, submission_id)
    if job.state.ended:
        raise ClusterError(f"{job.submission_id} has ended already: {_state(job)}.")
    # What has not begun holds no folder: a marker there would stop another run.
    at_once = now or job.state is JobState.PENDING or "out" not in job.metadata
    if at_once or not _left_a_marker(client, job):
        client.stop(job.submission_id)
    STDOUT.print(f"{job.submission_id} was asked to stop.")
    while wait and not client.seen(job.submission_id).state.ended:
        time.sleep(_STOP_EVERY_SECONDS)


def _left_a_marker(client: JobsClient, job: JobSeen) -> bool:
    """False where the run does not hold its folder yet, or the nodes lack cvm-batch."""
    request = stop_request(job)
    client.submit(request)
    deadline = time.monotonic() + _MARKER_SECONDS
    while time.monotonic() < deadline:
        asking = client.seen(request.submission_id)
        if asking.state.ended:
            return asking.state is JobState.SUCCEEDED
        time.sleep(_STOP_EVERY_SECONDS)
    return False


def _find(client: JobsClient, submission_id: str | None) -> JobSeen:
    if submission_id is not None:
        return client.seen(submission_id)
    jobs = ours(client)
    if not jobs:
        raise ClusterError("No run was ever submitted to this cluster.")
    return jobs[0]


def _as_json(job: JobSeen) -> dict[str, Any]:
    return {
        "submission_id": job.submission_id,
        "state": _state(job),
        "began": job.began,
        "ended": job.ended,
        "metadata": job.metadata,
    }


def _state(job: JobSeen) -> str:
    return job.state.lower()


def _time(moment: datetime | None) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" if moment else "-"
