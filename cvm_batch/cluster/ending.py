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

    exit_code: int | None
    """None where the job ended in order, but nobody can read with which: 0, 3 or 4."""
    summary: Mapping[str, Any] | None = None
    """As `RunSummary.to_json`."""
    error: str | None = None

    @property
    def process_code(self) -> int:
        """Of the job itself."""
        return 0 if self.exit_code in (None, *_IN_ORDER) else self.exit_code

    @property
    def known_code(self) -> int:
        """Of the one who followed: what is not known is not called complete."""
        return ExitCode.ABORTED if self.exit_code is None else self.exit_code

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
    if job.state is JobState.SUCCEEDED:  # its log went with its node
        return Ending(
            exit_code=None,
            error=f"The job {job.submission_id} ended in order, but the end of its log, which has "
            "the exit code, cannot be read any more. `cvm-batch status RESULTS` and the report "
            "say how the run ended.",
        )
    return Ending(
        exit_code=ExitCode.ABORTED,
        error=f"The job {job.submission_id} ended without a word of its own: {job.message} What "
        "was committed stays; submit again to go on.",
    )
