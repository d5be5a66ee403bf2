"""Every command, thin: parse, call, print, exit code.

Each command is imported when it is asked for, and modules that load PyTorch or Ray when it
runs, so that ``--help`` and questions to the results are answered at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

import cvm_batch
from cvm_batch.cli.config import CONFIG_VARIABLE, Config
from cvm_batch.cli.loading import LazyGroup
from cvm_batch.errors import CvmBatchError, ExitCode, ReplicaHangsError
from cvm_batch.texts import printable
from cvm_batch.without import without

_COMMANDS = {
    "compare": "compare:compare",
    "config": "config:config_group",
    "demo": "demo:demo",
    "doctor": "doctor:doctor",
    "evaluate": "evaluate:evaluate",
    "export": "export:export",
    "inspect": "inspect:inspect",
    "job": "job:job",
    "list": "runs:list_runs",
    "logs": "runs:logs",
    "models": "models:models",
    "pack": "pack:pack",
    "plan": "plan:plan",
    "prioritise": "runs:prioritise",
    "query": "query:query",
    "report": "report:report",
    "results": "results:results_group",
    "retry": "runs:retry",
    "status": "runs:status",
    "stop": "runs:stop",
    "submit": "submit:submit",
    "train": "train:train",
    "verify": "verify:verify",
    "worklist": "worklist:worklist",
}


@click.group(
    cls=LazyGroup,
    lazy={name: f"cvm_batch.cli.{where}" for name, where in _COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(cvm_batch.__version__, prog_name="cvm-batch")
@click.option(
    "--config",
    "named",
    envvar=CONFIG_VARIABLE,
    type=click.Path(path_type=Path),
    help="A TOML file of options: see `config show`.",
)
@click.pass_context
def cli(context: click.Context, named: Path | None) -> None:
    """Screen archives of Pap-smear cells overnight with CVM-Cervix on Ray.

    Not a medical device: every result needs a qualified person's review.

    \b
    Exit codes: 0 all slides complete; 1 the run was aborted; 2 wrong use, configuration
    or a results folder in use; 3 finished, but some slides are not complete; 4 stopped
    before the end, the rest is left for the next run.
    """
    context.obj = Config.read(cli, named)
    context.default_map = context.obj.options


def main() -> None:
    """The console script: errors of this package become one sentence and an exit code."""
    without("pandas")
    if sys.argv[1:2] == ["query"]:
        without("numpy")
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:  # a second Ctrl-C
        click.echo("Stopped.", err=True)
        _leave_at_once(ExitCode.STOPPED)
    except click.ClickException as error:
        error.show()
        code = ExitCode.USAGE
    except CvmBatchError as error:
        click.echo(f"Error: {printable(str(error))}", err=True)
        code = error.exit_code
        if isinstance(error, ReplicaHangsError):
            _leave_at_once(code)
    sys.exit(code)


def _leave_at_once(code: ExitCode) -> NoReturn:
    """Not by sys.exit, which waits for threads: a decoder may hang in one of them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
