"""Another command of cvm-batch on a Ray cluster, from within: `train` and `compare` come this way.

    python jobs/command.py --see DATA --see OUT -- train --data DATA --out OUT --workers 4 ...

Asks every node whether it sees what each --see names, or may write to it where nothing is there
yet, and runs the command with this cluster as its --address. The log's last line has its exit code.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import click

# What lies beside this file, under whichever name Python runs it (docs/decisions/0002).
sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from cvm_batch.cli import cli
from cvm_batch.cluster.ending import Ending
from cvm_batch.errors import ExitCode
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.screening.visibility import Needs
from nodes import check_nodes
from telling import told


# What follows the command's name is the command's, whether or not a "--" has come through.
@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--see", "inputs", multiple=True, help="A path that every node must see.")
@click.option("--write", help="A folder below which every node must see what others write.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def main(inputs: tuple[str, ...], write: str, command: tuple[str, ...]) -> int:
    """Run COMMAND, and say on the last line how it ended."""
    return told(lambda: _run(inputs, Path(write), command))


def _run(inputs: tuple[str, ...], write: Path, command: tuple[str, ...]) -> Ending:
    _check(inputs, write)
    try:
        code = cli.main([*command, "--address", "auto"], standalone_mode=False)
    except SystemExit as error:
        return Ending(exit_code=error.code if isinstance(error.code, int) else ExitCode.ABORTED)
    return Ending(exit_code=code if isinstance(code, int) else ExitCode.COMPLETE)


def _check(inputs: tuple[str, ...], folder: Path) -> None:
    ray.init(address="auto", log_to_driver=False, logging_level="error")
    results = ResultsFolder(folder)
    results.prepare()
    probe = RunName.new(datetime.now(UTC)).run_id
    try:
        check_nodes(Needs.of(inputs, None, None, results, probe))
    finally:
        ray.shutdown()  # the command connects anew, in processes of its own
        with suppress(OSError):  # somebody else's results lie there
            (folder / ".tmp").rmdir()


if __name__ == "__main__":
    sys.exit(main(standalone_mode=False))
