"""``python -m cvm_batch job``: what a cluster is told to run."""

from __future__ import annotations

import runpy
import sys

import click

from cvm_batch.errors import UsageError
from cvm_batch.jobfiles import job_file, jobs_folder


@click.command(
    hidden=True,
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
@click.argument("name")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def job(name: str, arguments: tuple[str, ...]) -> None:
    """Run the script NAME of jobs/, found in a checkout and where cvm-batch is installed."""
    script = job_file(f"{name}.py")
    if not name.isidentifier() or not script.is_file():
        known = ", ".join(sorted(path.stem for path in jobs_folder().glob("*.py")))
        raise UsageError(f"There is no job {name!r}; there are {known}.")
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")
