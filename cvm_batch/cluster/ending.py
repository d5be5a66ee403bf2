"""How a job on a cluster tells the one who follows it how it ended: the last line of its log.

Ray knows only whether a job's process ended with 0, and Kubernetes tries again what did not. So
a job ends with 0 once its run has ended in order, and this line has the exit code for the client.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cvm_batch.cluster.jobs import JobSeen, JobState
from cvm_batch.errors import ExitCode

_MARK = "cvm-batch-ended "
#: Ended in order: what is left, or not complete, is told, and the next night's.
_IN_ORDER = (ExitCode.COMPLETE, ExitCode.NOT_ALL_COMPLETE, ExitCode.STOPPED)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What a submit on this machine would have ended with."""

    exit_code: int
    summary: Mapping[str, Any] | None = None
    """As `RunSummary.to_json`."""
    error: str | None = None

    @property
    def process_code(self) -> int:
        """Of the job itself."""
        return 0 if self.exit_code in _IN_ORDER else self.exit_code

    def line(self) -> str:
        return _MARK + json.dumps(asdict(self))


def is_ending(line: str) -> bool:
    return line.startswith(_MARK)


def ending_of(job: JobSeen, log: str) -> Ending:
    """How a job ended, by its log's last line, or by its state where it could not write one."""
    for line in reversed(log.splitlines()):
        if is_ending(line):
            try:
                return Ending(**json.loads(line.removeprefix(_MARK)))
            except (ValueError, TypeError):
                break  # cut off: the node ended in the middle of it
    if job.state is JobState.STOPPED:
        return Ending(exit_code=ExitCode.STOPPED)
    if job.state is JobState.SUCCEEDED:  # not one of our jobs that tell
        return Ending(exit_code=ExitCode.COMPLETE)
    return Ending(
        exit_code=ExitCode.ABORTED,
        error=f"The job {job.submission_id} ended without a word of its own: {job.message} What "
        "was committed stays; submit again to go on.",
    )
