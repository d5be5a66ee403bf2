"""How a job ends: with its exit code on the log's last line, whatever came in between."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from cvm_batch.cluster.ending import Ending
from cvm_batch.errors import CvmBatchError, ExitCode


def told(work: Callable[[], Ending]) -> int:
    """Do ``work``, and say how it ended; return the exit code of the job's process."""
    try:
        ending = work()
    except (CvmBatchError, click.ClickException) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        code = ExitCode.USAGE if isinstance(error, click.ClickException) else error.exit_code
        click.echo(f"Error: {message}", err=True)
        ending = Ending(exit_code=code, error=message)
    sys.stderr.flush()
    click.echo(ending.line())
    return ending.process_code
