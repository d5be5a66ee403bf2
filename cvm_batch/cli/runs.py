"""``status``, ``list``, ``prioritise``, ``stop``, ``retry``: runs, seen through their folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from cvm_batch.archives.tables.slides import MOST_PRIORITY
from cvm_batch.cli import remote_runs
from cvm_batch.cli.cluster import connect, connecting_options
from cvm_batch.cli.console import STDOUT, print_json
from cvm_batch.cli.notifying import notice_options, notices_for
from cvm_batch.cli.results_root import ResultsRoot
from cvm_batch.cli.screening import print_summary, run_settings
from cvm_batch.cli.until import Until
from cvm_batch.errors import ExitCode, ResultsError
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.live import (
    RunSeen,
    ask_for_priority,
    ask_to_stop,
    is_running,
    planning_run,
    runs_seen,
)
from cvm_batch.results.manifest import RunState
from cvm_batch.results.stores.store import results_root

if TYPE_CHECKING:
    from cvm_batch.screening.settings import Settings

results_argument = click.argument("results", type=ResultsRoot())
#: A results folder, or with --address a submission ID, by default the newest.
run_argument = click.argument("target", metavar="RESULTS | [SUBMISSION]", required=False)
address_option = click.option(
    "--address", help="Of a Ray cluster's Jobs API: a run that was handed to it."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_STOP_EVERY_SECONDS = 0.5


@click.command()
@run_argument
@click.option("--run", "run_id", help="A run's identifier; default: the newest.")
@address_option
@connecting_options
@json_option
def status(
    target: str | None, run_id: str | None, address: str | None, as_json: bool, **connecting: Any
) -> ExitCode:
    """Say where the newest run in the folder RESULTS stands, or how it ended.

    Asks nobody: a run tells where it stands every two seconds, in its folder. With --address the
    cluster is asked for the job SUBMISSION.
    """
    if address is not None:
        remote_runs.tell_status(connect(address, **connecting), target, as_json=as_json)
        return ExitCode.COMPLETE
    root = _root(target)
    planning = planning_run(ResultsFolder(root))
    if planning is not None and run_id in (None, planning.run_id):
        seen = planning
    else:
        seen = _find(root, run_id)
    if as_json:
        print_json({"state": seen.state, "live": seen.live, "run": seen.manifest})
    else:
        for line in _told(seen):
            STDOUT.print(line, soft_wrap=True)
    return ExitCode.COMPLETE


@click.command("list")
@click.argument("target", metavar="RESULTS", required=False)
@address_option
@connecting_options
@json_option
def list_runs(
    target: str | None, address: str | None, as_json: bool, **connecting: Any
) -> ExitCode:
    """List the runs in the folder RESULTS, or at --address of a cluster, the newest first."""
    if address is not None:
        remote_runs.tell_list(connect(address, **connecting), as_json=as_json)
        return ExitCode.COMPLETE
    runs = runs_seen(ResultsFolder(_root(target)))
    if as_json:
        print_json([{"state": seen.state, "run": seen.manifest} for seen in runs])
        return ExitCode.COMPLETE
    table = Table(box=None, pad_edge=False)
    for column in ("run", "state", "slides", "complete", "not complete", "cells"):
        table.add_column(column, justify="left" if column in ("run", "state") else "right")
    for seen in runs:
        slides = seen.manifest["slides"]
        table.add_row(
            seen.run_id,
            seen.state,
            f"{slides['planned']:,}",
            f"{slides['complete']:,}",
            f"{slides['incomplete'] + slides['failed']:,}",
            f"{seen.manifest['cells']['classified']:,}",
        )
    STDOUT.print(table)
    return ExitCode.COMPLETE


@click.command()
@run_argument
@address_option
@click.option("--follow", is_flag=True, help="Stay until the end; the run's exit code.")
@connecting_options
def logs(target: str | None, address: str | None, follow: bool, **connecting: Any) -> int:
    """Print what the job SUBMISSION at --address has said, by default the newest."""
    if address is None:
        raise click.UsageError(
            "Give --address, of the cluster that has the run: a run of this machine prints its "
            "log where it was started."
        )
    return remote_runs.tell_logs(connect(address, **connecting), target, follow=follow)


@click.command()
@run_argument
@click.option("--wait", is_flag=True, help="Come back when the run has ended.")
@address_option
@click.option("--now", is_flag=True, help="With --address: do not wait for what runs.")
@connecting_options
def stop(
    target: str | None, wait: bool, address: str | None, now: bool, **connecting: Any
) -> ExitCode:
    """Let the run in the folder RESULTS, or the job SUBMISSION, finish what it has begun, and end.

    What is left is for the next submit; the run's exit code is 4.
    """
    if address is not None:
        remote_runs.stop(connect(address, **connecting), target, wait=wait, now=now)
        return ExitCode.COMPLETE
    folder = ResultsFolder(_root(target))
    run_id = ask_to_stop(folder)
    STDOUT.print(f"{run_id} was asked to stop.")
    while wait and is_running(folder, run_id):
        time.sleep(_STOP_EVERY_SECONDS)
    return ExitCode.COMPLETE


@click.command()
@results_argument
@click.argument("slides", nargs=-1, required=True)
@click.option(
    "--priority",
    type=click.IntRange(-MOST_PRIORITY, MOST_PRIORITY),
    default=100,
    show_default=True,
    help="Higher goes first; a slide without any has 0.",
)
def prioritise(results: Path | str, slides: tuple[str, ...], priority: int) -> ExitCode:
    """Let SLIDES go next in the run that runs in the folder RESULTS.

    SLIDES are slide_ids, or patterns of them such as 'urgent/*'. What is running is
    finished first: a few seconds of work.
    """
    folder = ResultsFolder(results)
    for pattern in slides:
        run_id = ask_for_priority(folder, pattern, priority)
    STDOUT.print(
        f"{run_id} was asked for priority {priority} for {len(slides)} slides or patterns."
    )
    return ExitCode.COMPLETE


@click.command()
@results_argument
@click.option("--until", type=Until(), help="As in submit.")
@notice_options
@json_option
def retry(results: Path | str, until: float | None, as_json: bool, **notify: Any) -> int:
    """Classify again what is not complete in the folder RESULTS, for whatever reason.

    With the inputs and settings of the newest run there. Complete slides, and slides that no
    run has seen yet, are left alone.
    """
    summary = run_settings(_again(results, until), notices_for(**notify))
    if as_json:
        print_json(summary.to_json())
    else:
        print_summary(summary, results)
    return summary.exit_code


def _root(target: str | None) -> Path | str:
    """A results folder that was named. Raises UsageError."""
    if target is None:
        raise click.UsageError("Name a results folder, or a cluster with --address.")
    return results_root(target)


def _again(results: Path | str, until: float | None) -> Settings:
    from cvm_batch.screening.settings import Settings

    earlier = _find(results, None).manifest["settings"]
    # Who copied a slide again and asks for it does not mean: later.
    return Settings.from_json(earlier, out=results, until=until, retry=True, settle_seconds=None)


def _find(results: Path | str, run_id: str | None) -> RunSeen:
    runs = runs_seen(ResultsFolder(results))
    found = [seen for seen in runs if run_id in (None, seen.run_id)]
    if not found:
        raise ResultsError(
            f"{results} holds no run {run_id}: `cvm-batch list {results}` shows which."
        )
    return found[0]


def _told(seen: RunSeen) -> list[str]:
    if seen.live is not None and "planning_since" in seen.live:
        if seen.state is RunState.INTERRUPTED:
            return [
                f"{seen.run_id}: {seen.state}",
                "The run's process is gone: it died while it looked at the slides. Submit again.",
            ]
        took = timedelta(seconds=round(time.time() - seen.live["planning_since"]))
        return [f"{seen.run_id}: {seen.state}; looks at the slides since {took}"]
    lines = [f"{seen.run_id}: {seen.state}, begun {seen.manifest['started_at']}"]
    if seen.live is not None:
        lines.append(_live_line(seen.live))
        if trouble := seen.live.get("trouble"):
            lines.append(f"The manifest as it is now cannot be used: {trouble}")
        return lines
    slides, cells = seen.manifest["slides"], seen.manifest["cells"]
    ended = ", ".join(
        f"{slides[status]:,} {status}"
        for status in ("complete", "incomplete", "failed")
        if slides[status]
    )
    lines.append(f"{slides['planned']:,} slides: {ended or 'none ended'}")
    if fresh := slides.get("fresh"):
        lines.append(f"{fresh:,} slides had just changed and were left. Submit again.")
    speed = seen.manifest["tiles_per_second"]
    lines.append(f"{cells['classified']:,} cells" + (f" ({speed:,.0f}/s)" if speed else ""))
    if by := seen.manifest.get("sealed_by"):
        lines.append(f"What was left went to a later run, {by}.")
    elif seen.state is RunState.INTERRUPTED:
        lines.append("The run's process is gone. Submit again to go on.")
    if seen.manifest["error"]:
        lines.append(str(seen.manifest["error"]))
    return lines


def _live_line(live: Mapping[str, Any]) -> str:
    parts = [
        f"{live['slides_done']:,}/{live['slides']:,} slides",
        f"{live['tiles_done']:,}/{live['tiles']:,} tiles",
        f"{live['replicas']} replicas",
    ]
    since, now = live["serving_since"], live["told_at"]
    if since and live["tiles_done"] and now > since:
        speed = live["tiles_done"] / (now - since)
        left = timedelta(seconds=round((live["tiles"] - live["tiles_done"]) / speed))
        parts += [f"{speed:,.0f} tiles/s", f"{left} left"]
    if live["not_complete"]:
        parts.append(f"{live['not_complete']} not complete")
    age = time.time() - now
    if age > 30:
        parts.append(f"as of {timedelta(seconds=round(age))} ago: does its driver hang?")
    return ", ".join(parts)
