"""What ``submit`` and ``demo`` share: options, one run with its progress, its summary."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.table import Table

from cvm_batch.cli.console import STDERR, STDOUT, printable
from cvm_batch.cli.progress import progress_on
from cvm_batch.results.schemas import Status

if TYPE_CHECKING:
    from cvm_batch.screening.summary import RunSummary

F = TypeVar("F", bound=Callable[..., Any])

_FAILURES_SHOWN = 20


def screening_options(command: F) -> F:
    """The options of a run that every command that starts one takes."""
    options = [
        click.option(
            "--executor",
            type=click.Choice(["ray", "local"]),
            default="ray",
            show_default=True,
            help="Replicas as Ray actors, or in this process.",
        ),
        click.option("--replicas", type=int, help="Default: one per GPU, else one per node."),
        click.option("--address", help="A running Ray cluster; default: Ray on this machine."),
        click.option(
            "--precision",
            type=click.Choice(["fp32", "fp16", "bf16"]),
            help="Default: fp16 on GPUs, bf16 on CPUs that have it, else fp32.",
        ),
        click.option("--batch-size", type=int, help="Tiles per batch; default: the engine's."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def screen(*, inputs: tuple[Path, ...], model: str, out: Path, **options: Any) -> RunSummary:
    """Run with a progress display; the first Ctrl-C or SIGTERM finishes what runs."""
    from cvm_batch.model.precision import Precision
    from cvm_batch.screening.run import run
    from cvm_batch.screening.settings import ExecutorKind, Settings

    precision = options.pop("precision")
    settings = Settings(
        inputs=inputs,
        model=model,
        out=out,
        executor=ExecutorKind(options.pop("executor")),
        precision=Precision(precision) if precision else None,
        **options,
    )
    with _stop_requested() as stop, progress_on(STDERR) as report:
        return run(settings, report=report, should_stop=stop.is_set)


def print_summary(summary: RunSummary, out: Path) -> None:
    """What a person wants to know at once: what is done, what is wrong, where it lies."""
    ended = summary.by_status.total()
    settled = summary.settled.total()
    if ended:
        STDOUT.print(_ended_line(summary))
    if settled:
        kept = settled - summary.settled[Status.COMPLETE]
        STDOUT.print(
            f"{summary.settled[Status.COMPLETE]} slides were complete already"
            + (f", {kept} had failed for a lasting reason" if kept else "")
            + " and were left as they are."
        )
    if not ended and not summary.left:
        STDOUT.print("Nothing to classify.")
    if summary.left:
        STDOUT.print(f"Stopped: {summary.left} slides are left; submit again to go on.")
    if summary.ignored:
        STDOUT.print(
            f"{summary.ignored} files or folders hold no slide; runs/{summary.run_id}.json "
            "lists them."
        )
    if summary.not_complete:
        STDOUT.print(_failures(summary))
    STDOUT.print(f"Results: {out}  (run {summary.run_id})", soft_wrap=True)


def _ended_line(summary: RunSummary) -> str:
    counts = ", ".join(
        f"{summary.by_status[status]} {status}" for status in Status if summary.by_status[status]
    )
    speed = f" ({summary.tiles_per_second:,.0f}/s)" if summary.tiles_per_second else ""
    return (
        f"{summary.by_status.total()} slides: {counts}. {summary.cells:,} cells in "
        f"{summary.seconds_classifying:.1f} s{speed}, after {summary.seconds_starting:.1f} s "
        f"of start-up. {summary.bundle}, {summary.precision}."
    )


def _failures(summary: RunSummary) -> Table:
    table = Table(title="Not complete", title_justify="left", box=None, pad_edge=False)
    for column in ("slide", "status", "reason", "detail"):
        table.add_column(column, overflow="fold")
    for row in summary.not_complete[:_FAILURES_SHOWN]:
        cells = (row.slide_id, row.status, row.reason, row.detail)
        table.add_row(*(printable(str(cell or "")) for cell in cells))
    more = len(summary.not_complete) - _FAILURES_SHOWN
    if more > 0:
        table.add_row(f"and {more} more", "", "", "")
    return table


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM; a second one stops at once."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        STDERR.print("Stopping: running leases are finished first. Once more stops at once.")

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
