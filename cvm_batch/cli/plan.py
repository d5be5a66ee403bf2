"""``cvm-batch plan``: what a submit would do, and about how long it would take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cvm_batch.cli.console import STDOUT, print_json
from cvm_batch.cli.opening import opened_for_model, opening_options
from cvm_batch.cli.results_root import ResultsRoot
from cvm_batch.cli.screening import which_slides_options
from cvm_batch.errors import ExitCode
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.manifest import manifests
from cvm_batch.texts import printable

if TYPE_CHECKING:
    from cvm_batch.screening.plan import Plan

_SHOWN = 20
#: Past runs whose speed counts.
_RUNS = 5


@click.command()
@click.argument("slides", nargs=-1, required=True)
@click.option("--model", required=True, help="A bundle's folder, or the name of a known one.")
@click.option("--out", required=True, type=ResultsRoot(), help="The results folder, if any.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Default: what this machine would choose.",
)
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    help="For the estimate; default: as many as the last such run had on average.",
)
@which_slides_options
@opening_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    slides: tuple[str, ...],
    model: str,
    out: Path | str,
    precision: str | None,
    replicas: int | None,
    settle_seconds: float | None,
    rehash: bool,
    as_json: bool,
    **options: Any,
) -> ExitCode:
    """Say what `submit` would classify of SLIDES, and what is done. Reads no pixels (unless with
    --rehash), writes nothing.

    The time is estimated from what replicas did in the newest runs in --out with the same
    bundle and precision.
    """
    from cvm_batch.model.precision import Precision, choose_precision
    from cvm_batch.model.registry import find_bundle
    from cvm_batch.results.slides import History
    from cvm_batch.screening.executor import hardware_here
    from cvm_batch.screening.planning import make_plan, plan_slides

    bundle, results = find_bundle(model), ResultsFolder(out)
    device = hardware_here().device_type
    # A machine without a GPU may be a desk, from which nights on others are planned.
    before = _chosen_before(results, bundle.digest) if device == "cpu" else None
    told = precision or before
    chosen = Precision(told) if told else choose_precision(device, None)
    planner = partial(
        plan_slides,
        bundle=bundle,
        precision=chosen,
        history=History.read(results),
        options=opened_for_model(bundle.spec, options),
        rehash=rehash,
        quiet_since=None if settle_seconds is None else time.time() - settle_seconds,
    )
    found = make_plan(slides, planner)
    speed = _speed(results, bundle.digest, str(chosen), replicas)
    if as_json:
        print_json(_as_json(found, str(chosen), speed))
    else:
        _print(found, str(chosen), speed)
    return ExitCode.COMPLETE


def _chosen_before(results: ResultsFolder, digest: str) -> str | None:
    """The precision of the newest run of this bundle that was left to choose: replicas may be on
    other machines than this one."""
    for run in manifests(results):
        settings = run.get("settings", {})
        if run.get("bundle", {}).get("digest") == digest and not settings.get("precision"):
            return str(run["precision"])
    return None


class _Speed(NamedTuple):
    tiles_per_second: float
    """Of all replicas together."""
    replicas: float


def _speed(
    results: ResultsFolder, digest: str, precision: str, replicas: int | None
) -> _Speed | None:
    """Of so many replicas, or as many as the newest comparable run had, by each one's speed in
    the newest of them."""
    found = list(islice(_comparable(results, digest, precision), _RUNS))
    if not found:
        return None
    each = sum(run["cells"]["classified"] for run in found) / sum(map(_serving, found))
    newest = found[0]
    count = replicas or max(1.0, _serving(newest) / newest["seconds"]["classifying"])
    return _Speed(each * count, count)


def _comparable(results: ResultsFolder, digest: str, precision: str) -> Iterator[Mapping[str, Any]]:
    for run in manifests(results):
        same = run.get("bundle", {}).get("digest") == digest and run.get("precision") == precision
        if same and run.get("tiles_per_second") and _serving(run):
            yield run


def _serving(run: Mapping[str, Any]) -> float:
    """Seconds that its replicas served, added up; 0 where an earlier version did not say."""
    return float(run["seconds"].get("serving", 0))


def _settled(plan: Plan) -> Counter[str]:
    return Counter(str(slide.found.status) for slide in plan.settled)


def _as_json(plan: Plan, precision: str, speed: _Speed | None) -> dict[str, Any]:
    return {
        "precision": precision,
        "slides": len(plan.slides),
        "tiles": plan.tiles,
        "settled": dict(_settled(plan)),
        "cannot_be_opened": [
            {"slide_id": slide.slide_id, "reason": slide.failure and str(slide.failure.reason)}
            for slide in plan.failed
        ],
        "fresh": [slide._asdict() for slide in plan.fresh],
        "ignored": len(plan.ignored),
        "tiles_per_second": speed and speed.tiles_per_second,
        "replicas": speed and speed.replicas,
        "seconds": plan.tiles / speed.tiles_per_second if speed else None,
    }


def _print(plan: Plan, precision: str, speed: _Speed | None) -> None:
    STDOUT.print(f"To classify: {len(plan.slides):,} slides, {plan.tiles:,} tiles, in {precision}.")
    if speed:
        took = timedelta(seconds=round(plan.tiles / speed.tiles_per_second))
        STDOUT.print(
            f"About {took} at {speed.tiles_per_second:,.0f} tiles/s, with {speed.replicas:.3g} "
            "replicas as fast as in earlier runs."
        )
    elif plan.tiles:
        STDOUT.print("How long that takes is not known: no run with this bundle has finished here.")
    if plan.settled:
        told = ", ".join(f"{count:,} {status}" for status, count in sorted(_settled(plan).items()))
        STDOUT.print(f"Settled by earlier runs: {told}.")
    if plan.failed:
        STDOUT.print(f"Cannot be opened: {len(plan.failed):,}.")
    for slide in plan.failed[:_SHOWN]:
        assert slide.failure is not None
        line = f"  {slide.slide_id}: {slide.failure.reason}: {slide.failure.detail}"
        STDOUT.print(printable(line), soft_wrap=True)
    if plan.fresh:
        STDOUT.print(f"Changed a moment ago, and left until they settle: {len(plan.fresh):,}.")
    for left in plan.fresh[:_SHOWN]:
        changed = datetime.fromtimestamp(left.changed_at)
        STDOUT.print(printable(f"  {left.slide_id}: {changed:%H:%M:%S}"), soft_wrap=True)
    if plan.ignored:
        STDOUT.print(f"Files and folders without a slide: {len(plan.ignored):,}.")
