"""``cvm-batch plan``: what a submit would do, and about how long it would take."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cvm_batch.cli.console import STDOUT, print_json
from cvm_batch.cli.opening import opened_for_model, opening_options
from cvm_batch.cli.results_root import ResultsRoot
from cvm_batch.errors import ExitCode
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.manifest import manifests
from cvm_batch.texts import printable

if TYPE_CHECKING:
    from cvm_batch.screening.plan import Plan

_SHOWN = 20


@click.command()
@click.argument("slides", nargs=-1, required=True)
@click.option("--model", required=True, help="A bundle's folder, or the name of a known one.")
@click.option("--out", required=True, type=ResultsRoot(), help="The results folder, if any.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Default: what this machine would choose.",
)
@opening_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    slides: tuple[str, ...],
    model: str,
    out: Path | str,
    precision: str | None,
    as_json: bool,
    **options: Any,
) -> ExitCode:
    """Say what `submit` would classify of SLIDES, and what is done. Reads no pixels, writes
    nothing.

    The time is estimated from the newest finished run in --out with the same bundle and
    precision.
    """
    from cvm_batch.model.precision import Precision, choose_precision
    from cvm_batch.model.registry import find_bundle
    from cvm_batch.results.slides import History
    from cvm_batch.screening.executor import hardware_here
    from cvm_batch.screening.plan import make_plan, plan_slides

    bundle, results = find_bundle(model), ResultsFolder(out)
    wanted = Precision(precision) if precision else None
    chosen = choose_precision(hardware_here().device_type, wanted)
    planner = partial(
        plan_slides,
        bundle=bundle,
        precision=chosen,
        history=History.read(results),
        options=opened_for_model(bundle.spec, options),
    )
    found = make_plan(slides, planner)
    speed = _speed(results, bundle.digest, str(chosen))
    if as_json:
        print_json(_as_json(found, str(chosen), speed))
    else:
        _print(found, str(chosen), speed)
    return ExitCode.COMPLETE


def _speed(results: ResultsFolder, digest: str, precision: str) -> float | None:
    """Tiles per second of the newest run that is comparable."""
    for run in manifests(results):
        same = run.get("bundle", {}).get("digest") == digest and run.get("precision") == precision
        if same and run.get("tiles_per_second"):
            return float(run["tiles_per_second"])
    return None


def _settled(plan: Plan) -> Counter[str]:
    return Counter(str(slide.found.status) for slide in plan.settled)


def _as_json(plan: Plan, precision: str, speed: float | None) -> dict[str, Any]:
    return {
        "precision": precision,
        "slides": len(plan.slides),
        "tiles": plan.tiles,
        "settled": dict(_settled(plan)),
        "cannot_be_opened": [
            {"slide_id": slide.slide_id, "reason": slide.failure and str(slide.failure.reason)}
            for slide in plan.failed
        ],
        "ignored": len(plan.ignored),
        "tiles_per_second": speed,
        "seconds": plan.tiles / speed if speed else None,
    }


def _print(plan: Plan, precision: str, speed: float | None) -> None:
    STDOUT.print(f"To classify: {len(plan.slides):,} slides, {plan.tiles:,} tiles, in {precision}.")
    if speed:
        took = timedelta(seconds=round(plan.tiles / speed))
        STDOUT.print(f"About {took} at {speed:,.0f} tiles/s, as the last such run had.")
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
    if plan.ignored:
        STDOUT.print(f"Files and folders without a slide: {len(plan.ignored):,}.")
