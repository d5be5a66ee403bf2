"""What commands share that hand work to a Ray cluster by its Jobs API, or ask for it there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from cvm_batch.cli.console import STDERR, STDOUT
from cvm_batch.cluster.doors import check_dashboard, check_driver_address, is_jobs_address
from cvm_batch.cluster.ending import Ending, ending_of
from cvm_batch.cluster.following import follow
from cvm_batch.errors import ExitCode, UsageError
from cvm_batch.remote.addresses import absolute
from cvm_batch.texts import printable

if TYPE_CHECKING:
    from cvm_batch.cluster.jobs import JobsClient
    from cvm_batch.cluster.submission import Placement

F = TypeVar("F", bound=Callable[..., Any])


def connecting_options(command: F) -> F:
    """Of every command that takes ``--address``, and may find a Jobs API behind it."""
    options = [
        click.option(
            "--ca-file",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="With https://: certificates to trust in place of the system's.",
        ),
        click.option(
            "--allow-open-cluster",
            is_flag=True,
            help="Use a cluster without token authentication, or with a dashboard open to all.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def handing_over_options(command: F) -> F:
    """Of commands that submit; `Handing.of` takes them."""
    options = [
        click.option(
            "--follow/--detach",
            default=True,
            help="With --address http(s)://: stay until the end (the default), or come back once "
            "it is handed over.",
        ),
        click.option(
            "--ship-code",
            is_flag=True,
            help="Take this installation's cvm-batch along, where the nodes have another version.",
        ),
        click.option(
            "--remote-python",
            default="python",
            show_default=True,
            metavar="PATH",
            help="The nodes' Python in which cvm-batch is installed.",
        ),
        click.option(
            "--driver-memory",
            type=click.FloatRange(min=0),
            default=1.0,
            show_default=True,
            metavar="GIB",
            help="Memory kept for the driver; with 0 it runs on the head node.",
        ),
        click.option(
            "--driver-resource",
            metavar="NAME",
            help="The driver goes to a node with this resource (ray start --resources).",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return connecting_options(command)


@dataclass(frozen=True, kw_only=True)
class Handing:
    """How work is handed over: the values of `handing_over_options`."""

    follow: bool
    ship_code: bool
    remote_python: str
    driver_memory: float
    driver_resource: str | None
    ca_file: Path | None
    allow_open_cluster: bool

    @classmethod
    def of(cls, options: dict[str, Any]) -> Handing:
        """Take them out of a command's options."""
        return cls(**{name: options.pop(name) for name in cls.__dataclass_fields__})

    def placement(self, runtime_env: Mapping[str, Any]) -> Placement:
        from cvm_batch.cluster.submission import Placement

        return Placement(
            python=self.remote_python,
            memory_bytes=int(self.driver_memory * 2**30),
            resources={self.driver_resource: 1.0} if self.driver_resource else {},
            runtime_env=runtime_env,
        )


def connect(address: str, *, ca_file: Path | None, allow_open_cluster: bool) -> JobsClient:
    """The cluster's Jobs API, once its door was found shut. Raises ClusterError."""
    if not is_jobs_address(address):
        raise UsageError(
            f"--address {address} is not the Jobs API's: give http://HOST:8265 or https://."
        )
    if not allow_open_cluster:
        check_dashboard(address, ca_file=ca_file)
    from cvm_batch.cluster.ray_jobs import RayJobs
    from cvm_batch.cluster.token import read_token

    return RayJobs(address, token=read_token(), ca_file=ca_file)


def check_direct(address: str | None, handing: Handing) -> None:
    """Before a driver of this machine connects to a cluster. Raises OpenClusterError.

    A driver that a cluster itself started (``auto``) is inside already.
    """
    if address not in (None, "auto") and not handing.allow_open_cluster:
        check_driver_address(address)


def follow_to_end(
    client: JobsClient, submission_id: str, say: Callable[[str], None] | None = None
) -> Ending:
    """Show a job's log until it ends. Ctrl-C ends the following, not the job."""
    try:
        job, log = follow(client, submission_id, say=say or say_line)
    except KeyboardInterrupt:
        STDERR.print(
            f"No longer followed; {submission_id} goes on. `cvm-batch logs --follow` takes it up "
            "again, `cvm-batch stop` ends it, both with --address."
        )
        return Ending(exit_code=ExitCode.STOPPED)
    ending = ending_of(job, log)
    if ending.error and ending.error not in log:  # the job could not say it itself
        STDERR.print(printable(ending.error), soft_wrap=True)
    return ending


def say_line(line: str) -> None:
    STDOUT.print(printable(line), soft_wrap=True)


def hand_over(
    address: str,
    handing: Handing,
    job: str,
    arguments: Sequence[str],
    configuration: Mapping[str, Any],
    *,
    bundle: Path | None = None,
    **about: Any,
) -> tuple[JobsClient, str]:
    """Submit the ``job`` of jobs/; the cluster, and the job's submission ID there.

    ``bundle`` is shipped along; ``about`` goes to `submit_job`. Raises ClusterError.
    """
    from cvm_batch.cluster.shipping import shipped
    from cvm_batch.cluster.submission import submit_job

    client = connect(
        address, ca_file=handing.ca_file, allow_open_cluster=handing.allow_open_cluster
    )
    with shipped(bundle=bundle, code=handing.ship_code) as runtime_env:
        submission_id = submit_job(
            client,
            job,
            arguments,
            configuration,
            placement=handing.placement(runtime_env),
            now=datetime.now().astimezone(),
            **about,
        )
    STDERR.print(f"Submitted to {address} as {submission_id}", soft_wrap=True)
    return client, submission_id


def hand_over_command(
    context: click.Context, address: str, handing: Handing, *, see: Sequence[Path], write: Path
) -> int:
    """Let a cluster run this very command with what it was given; its exit code.

    ``see``: what every node must see, ``write``: the folder in which it must see what others write.
    """
    command = context.command.name or ""
    words = [command, *_words_of(context)]
    arguments = [word for path in see for word in ("--see", absolute(str(path)))]
    arguments += ["--write", absolute(str(write)), "--", *words]
    client, submission_id = hand_over(
        address, handing, "command", arguments, {"words": words}, label=command
    )
    if not handing.follow:
        STDOUT.print(submission_id)
        return ExitCode.COMPLETE
    return follow_to_end(client, submission_id).known_code


def _words_of(context: click.Context) -> list[str]:
    """The command line that says what the context holds, but for how it is handed over."""
    words: list[str] = []
    ours = {"address", *Handing.__dataclass_fields__}
    for option in context.command.params:
        value = context.params.get(option.name or "")
        source = context.get_parameter_source(option.name or "")
        if option.name in ours or source is ParameterSource.DEFAULT:
            continue
        name = max(option.opts, key=len)
        if isinstance(option, click.Option) and option.is_flag:
            words += [name] * bool(value)
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += [name, absolute(str(one)) if isinstance(one, Path) else str(one)]
    return words
