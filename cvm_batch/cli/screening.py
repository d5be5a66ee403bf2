"""What ``submit`` and ``demo`` share: options, one run with its progress, its summary."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.table import Table

from cvm_batch.cli.console import STDERR, STDOUT
from cvm_batch.cli.notifying import notice_options, notices_for
from cvm_batch.cli.opening import opening_options
from cvm_batch.cli.priority import SlidePriority
from cvm_batch.cli.progress import STARTING_REPLICAS, describe_run, progress_on
from cvm_batch.cli.report import report_at_end
from cvm_batch.cli.until import Duration, Until
from cvm_batch.logs import log_event
from cvm_batch.logs import log_json as log_json_to
from cvm_batch.pseudonyms import Pseudonyms
from cvm_batch.results.schemas import Status
from cvm_batch.screening.policy import LeasePolicy
from cvm_batch.texts import printable

if TYPE_CHECKING:
    from cvm_batch.notices.sending import Notices
    from cvm_batch.screening.settings import Settings
    from cvm_batch.screening.summary import NotComplete, Progress, RunSummary

F = TypeVar("F", bound=Callable[..., Any])

_FAILURES_SHOWN = 20
_LOG_EVERY_SECONDS = 60.0


class Replicas(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """A number, or ``auto``, which converts to None."""

    name = "number"

    def convert(
        self, value: str, param: click.Parameter | None, context: click.Context | None
    ) -> int | None:
        if value == "auto":
            return None
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor auto.")


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
        click.option("--address", help="A running Ray cluster; default: Ray on this machine."),
        click.option(
            "--replicas",
            type=Replicas(),
            show_default="auto",
            help="How many in all; auto: one per GPU, else one per node, following the cluster.",
        ),
        click.option("--replicas-per-gpu", type=int, help="Replicas that share each GPU."),
        click.option(
            "--decode-on",
            type=click.Choice(["replica", "cluster"]),
            default="replica",
            show_default=True,
            help="Decode tiles beside the GPU, or on any node's free CPUs.",
        ),
        click.option(
            "--precision",
            type=click.Choice(["fp32", "fp16", "bf16"]),
            help="Default: fp16 on GPUs, bf16 on CPUs that are faster in it, else fp32.",
        ),
        click.option(
            "--backend",
            type=click.Choice(["torch-eager", "torch-compile", "openvino"]),
            help="What runs the network; default: the fastest, its preparation counted in.",
        ),
        click.option(
            "--priority",
            "priorities",
            multiple=True,
            type=SlidePriority(),
            help="Slides that match PATTERN get this priority; higher goes first. Repeatable.",
        ),
        click.option(
            "--until",
            type=Until(),
            help="End by then, exit code 4: 06:00, or 8h, 90m; or 20:00-06:00, outside of which "
            "nothing is begun. The rest is for the next submit.",
        ),
        click.option(
            "--report/--no-report",
            "with_report",
            default=True,
            show_default=True,
            help="Write the run's report at its end, for a browser: reports/RUN_ID/index.html.",
        ),
        click.option(
            "--log-json", is_flag=True, help="Log events as JSON lines, in place of progress."
        ),
        click.option(
            "--patience",
            "patience_seconds",
            type=click.FloatRange(min=1),
            default=LeasePolicy.patience_seconds,
            show_default=True,
            metavar="SECONDS",
            help="A replica that has work and gets on with nothing for so long is replaced.",
        ),
        click.option("--batch-size", type=int, help="Tiles per batch; default: the engine's."),
    ]
    for option in reversed(options):
        command = option(command)
    return opening_options(notice_options(command))


def which_slides_options(command: F) -> F:
    """Which of the slides that are found are taken, for what submits and what plans."""
    options = [
        click.option(
            "--settle",
            "settle_seconds",
            type=Duration(),
            help="Leave slides whose files changed in the last 5m, say, for the next run.",
        ),
        click.option(
            "--rehash",
            is_flag=True,
            help="Tell slides by what their files hold, all of which is read, not by their sizes "
            "and times.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def screen(
    *,
    notify_webhook: str | None,
    notify_mail: tuple[str, ...],
    log_json: bool,
    with_report: bool = True,
    **options: Any,
) -> RunSummary:
    """Run with a progress display; the first Ctrl-C or SIGTERM finishes what runs."""
    notices = notices_for(notify_webhook=notify_webhook, notify_mail=notify_mail)
    return run_settings(settings_of(**options), notices, log_json=log_json, with_report=with_report)


def settings_of(**options: Any) -> Settings:
    """What `screening_options` say, but for notices. Raises UsageError."""
    from cvm_batch.archives.opening import ArrayNames
    from cvm_batch.model.backends.choosing import Backend
    from cvm_batch.model.precision import Precision
    from cvm_batch.screening.settings import DecodeOn, ExecutorKind, Settings

    precision, backend = options.pop("precision"), options.pop("backend")
    arrays = ArrayNames(**options.pop("arrays"))
    return Settings(
        executor=ExecutorKind(options.pop("executor")),
        decode_on=DecodeOn(options.pop("decode_on")),
        arrays=arrays,
        precision=Precision(precision) if precision else None,
        backend=Backend(backend) if backend else None,
        **options,
    )


def run_settings(
    settings: Settings, notices: Notices, *, log_json: bool = False, with_report: bool = True
) -> RunSummary:
    """The same, of settings that are made already."""
    from cvm_batch.screening.run import run

    at_end = partial(report_at_end, settings.out) if with_report else _nothing
    shown = _logged() if log_json else progress_on(STDERR, describe_run, STARTING_REPLICAS)
    with _stop_requested() as stop, shown as report:
        return run(settings, report=report, should_stop=stop.is_set, notices=notices, at_end=at_end)


def _nothing(run_id: str) -> None:
    """What is done at the end of a run without a report."""


def for_the_log(summary: RunSummary, *, log_json: bool) -> RunSummary:
    """The summary as it may stand beside the run's log: where that names no slide, nor does it."""
    pseudonyms = Pseudonyms.from_environment() if log_json else None
    return summary.under(pseudonyms) if pseudonyms else summary


def print_summary(summary: RunSummary, out: Path | str) -> None:
    """What a person wants to know at once: what is done, what is wrong, where it lies."""
    ended = summary.by_status.total()
    lines = []
    if ended:
        lines.append(_ended_line(summary))
    if summary.settled:
        lines.append(_settled_line(summary))
    if not ended and not summary.left and not summary.fresh:
        lines.append("Nothing to classify.")
    if summary.left:
        lines.append(f"Stopped: {summary.left} slides are left; submit again to go on.")
    if summary.fresh:
        lines.append(
            f"Changed a moment ago: {summary.fresh} slides are left until they have settled; "
            "submit again."
        )
    if summary.ignored:
        listed = f"runs/{summary.run_id}.json"
        lines.append(f"Files and folders without a slide: {summary.ignored}; {listed} lists them.")
    for line in lines:
        STDOUT.print(line, soft_wrap=True)
    _print_failures("Not complete", summary.not_complete)
    _print_failures("Not complete since an earlier run", summary.settled_not_complete)
    STDOUT.print(f"Results: {out}  (run {summary.run_id})", soft_wrap=True)


def _ended_line(summary: RunSummary) -> str:
    counts = ", ".join(
        f"{summary.by_status[status]} {status}" for status in Status if summary.by_status[status]
    )
    speed = f" ({summary.tiles_per_second:,.0f}/s)" if summary.tiles_per_second else ""
    return (
        f"{summary.by_status.total()} slides: {counts}. {summary.cells:,} cells in "
        f"{summary.seconds_classifying:.1f} s{speed}, after {summary.seconds_starting:.1f} s "
        f"of start-up. {summary.bundle}, {summary.precision}, {summary.backend}."
    )


def _settled_line(summary: RunSummary) -> str:
    complete, kept = summary.settled[Status.COMPLETE], len(summary.settled_not_complete)
    told = [f"{complete} slides were complete already"] if complete else []
    told += [f"{kept} were not complete after an earlier run"] if kept else []
    return f"{', '.join(told)} and were left as they are."


def _print_failures(title: str, slides: Sequence[NotComplete]) -> None:
    """A table on a terminal; elsewhere a line each, for grep."""
    shown = [
        [printable(str(value or "")) for value in asdict(slide).values()]
        for slide in slides[:_FAILURES_SHOWN]
    ]
    more = len(slides) - len(shown)
    if not shown:
        return
    if STDOUT.is_terminal:
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for column in ("slide", "status", "reason", "detail"):
            table.add_column(column, overflow="fold")
        for row in shown:
            table.add_row(*row)
        STDOUT.print(table)
    else:
        STDOUT.print(f"{title}:")
        for slide_id, status, reason, detail in shown:
            STDOUT.print(f"  {slide_id}: {status}, {reason}: {detail}", soft_wrap=True)
    if more > 0:
        STDOUT.print(f"  and {more} more")


@contextmanager
def _logged() -> Iterator[Callable[[Progress], None]]:
    """Events on stderr; where a run stands is an event each minute."""
    last = time.monotonic()
    logger = logging.getLogger(__name__)

    def report(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= _LOG_EVERY_SECONDS:
            last = time.monotonic()
            log_event(logger, "progress", **asdict(progress))

    with log_json_to(sys.stderr, Pseudonyms.from_environment()):
        yield report


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM; a second one stops at once."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, frame: FrameType | None) -> None:
        signal.alarm(0)  # by which Ray would abort soon, where it saw the signal first
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
