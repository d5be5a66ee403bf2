"""Follow a job to its end, also over connections that drop."""

from __future__ import annotations

import time
from collections.abc import Callable

from cvm_batch.cluster.ending import is_ending
from cvm_batch.cluster.jobs import JobsClient, JobSeen
from cvm_batch.errors import ClusterError, ClusterUnreachableError, LostSightError

_EVERY_SECONDS = 2.0
#: The whole log comes each time: of a long one less often.
_CHARACTERS_PER_SECOND = 200_000
_MOST_SECONDS = 30.0
#: State and log come from different places, so that the last line is waited for a little. A job
#: that was killed has none.
_LATE_READS = 3
#: Ray's own, before a job says anything; the command is long, and nobody typed it.
_OF_RAY = ("Running entrypoint for job", "job_manager.py")


def follow(
    client: JobsClient,
    submission_id: str,
    *,
    say: Callable[[str], None],
    patience_seconds: float = 900.0,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> tuple[JobSeen, str]:
    """The ended job and its log, of which ``say`` got each line once.

    The log is as whole as it could be had: Ray reads it on the driver's node, so that it goes with
    that node, while the head still knows the job. Not by Ray's `tail_job_logs`, which ends with
    the connection. Raises LostSightError where the cluster has not answered for
    ``patience_seconds``, and ClusterError where it knows no such job.
    """
    log, told, answered, lost, late = "", 0, now(), False, 0
    while True:
        wait = _EVERY_SECONDS
        try:
            job = client.seen(submission_id)  # before the log, which then is the later one
            log = log_or(client, submission_id, log)
        except ClusterUnreachableError as error:
            if now() - answered > patience_seconds:
                raise LostSightError(
                    f"{error} Nothing was heard of {submission_id} for {now() - answered:.0f} s, "
                    "which may still run: `cvm-batch logs --follow`, with the same --address, "
                    "follows it again."
                ) from error
            if not lost:
                say(f"{error} The run goes on there; trying again.")
            lost = True
        else:
            if lost:
                say("The connection is back.")
            answered, lost = now(), False
            if job.state.ended and late < _LATE_READS and not _says_how_it_ended(log):
                late += 1
                sleep(wait)
                continue
            told = _tell(log, told, job.state.ended, say)
            if job.state.ended:
                return job, log
            wait = min(max(wait, len(log) / _CHARACTERS_PER_SECOND), _MOST_SECONDS)
        sleep(wait)


def log_or(client: JobsClient, submission_id: str, earlier: str) -> str:
    """A job's log, or what was read of it ``earlier`` where its node does not answer any more.

    Raises ClusterUnreachableError.
    """
    try:
        return client.logs(submission_id)
    except ClusterUnreachableError:
        raise
    except ClusterError:  # with Ray's traceback, of the connection to a node that is gone
        return earlier


def _says_how_it_ended(log: str) -> bool:
    return any(map(is_ending, log.splitlines()[-3:]))


def _tell(log: str, told: int, whole: bool, say: Callable[[str], None]) -> int:
    """Say what is new in the log, in whole lines; return how many characters were told."""
    end = len(log) if whole else log.rfind("\n") + 1
    for line in log[told:end].splitlines():
        if not is_ending(line) and not any(noise in line for noise in _OF_RAY):
            say(line)
    return max(told, end)
