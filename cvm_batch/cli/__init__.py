"""Every command, thin: parse, call, print, exit code.

Modules that load PyTorch or Ray are imported inside the commands, so that ``--help``
answers at once.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import click

import cvm_batch
from cvm_batch.cli.compare import compare
from cvm_batch.cli.config import CONFIG_VARIABLE, Config, config_group
from cvm_batch.cli.console import printable
from cvm_batch.cli.demo import demo
from cvm_batch.cli.doctor import doctor
from cvm_batch.cli.evaluate import evaluate
from cvm_batch.cli.export import export
from cvm_batch.cli.inspect import inspect
from cvm_batch.cli.job import job
from cvm_batch.cli.models import models
from cvm_batch.cli.pack import pack
from cvm_batch.cli.plan import plan
from cvm_batch.cli.query import query
from cvm_batch.cli.results import results_group
from cvm_batch.cli.runs import list_runs, logs, prioritise, retry, status, stop
from cvm_batch.cli.submit import submit
from cvm_batch.cli.train import train
from cvm_batch.cli.verify import verify
from cvm_batch.cli.worklist import worklist
from cvm_batch.errors import CvmBatchError, ExitCode


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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


_RUNS = (demo, plan, submit, status, list_runs, logs, prioritise, stop, retry, job)
_SLIDES = (pack, inspect, verify)
_RESULTS = (worklist, query, results_group)
_MODELS = (models, train, evaluate, compare, export)
_SETUP = (config_group, doctor)
for command in (*_RUNS, *_SLIDES, *_RESULTS, *_MODELS, *_SETUP):
    cli.add_command(command)


class _WithoutPandas(MetaPathFinder):
    """pyarrow imports pandas where it is installed: a second in which nothing is answered."""

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("No command needs pandas.", name=fullname)


def main() -> None:
    """The console script: errors of this package become one sentence and an exit code."""
    if sys.argv[1:2] in (["query"], ["worklist"], ["results"]):
        sys.meta_path.insert(0, _WithoutPandas())
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:  # a second Ctrl-C
        click.echo("Stopped.", err=True)
        # Not sys.exit, which waits for threads: a decoder may hang in one of them.
        os._exit(ExitCode.STOPPED)
    except click.ClickException as error:
        error.show()
        code = ExitCode.USAGE
    except CvmBatchError as error:
        click.echo(f"Error: {printable(str(error))}", err=True)
        code = error.exit_code
    sys.exit(code)
