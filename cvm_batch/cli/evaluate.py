"""`cvm-batch evaluate`: what a bundle does on labelled cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cvm_batch.cli.console import print_json
from cvm_batch.cli.results_root import ResultsRoot, results_option
from cvm_batch.texts import printable

if TYPE_CHECKING:
    from cvm_batch.results.roc import Roc
    from cvm_batch.results.validation import Agreement, Share
    from cvm_batch.results.worklist import Worklist

_SHOWN = 20


@click.command()
@click.option("--model", metavar="BUNDLE", help="A bundle's folder or name; with --data.")
@click.option(
    "--data",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Labelled cells, in any layout that `train` takes; several are taken together.",
)
@click.option("--flips", is_flag=True, help="Classify each cell in four attitudes and average.")
@click.option(
    "--report",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page with figures, confusion and galleries.",
)
@click.option(
    "--slides",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Instead: labelled slides, a CSV with slide_id and label (positive, negative).",
)
@results_option()
@click.option(
    "--against",
    type=ResultsRoot(),
    metavar="DIR",
    help="With --slides: results of another model on the same slides, to compare with.",
)
@click.option(
    "--threshold",
    "thresholds",
    type=click.FloatRange(0, 1),
    multiple=True,
    default=[round(0.1 * n, 1) for n in range(1, 10)],
    show_default=True,
    help="Slide score from which on a slide is called positive. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    model: str | None,
    data: tuple[Path, ...],
    flips: bool,
    report: Path | None,
    slides: Path | None,
    results: Path | str | None,
    against: Path | str | None,
    thresholds: tuple[float, ...],
    as_json: bool,
) -> None:
    """Say how well a bundle does: on labelled cells, or on labelled slides.

    With --model and --data labelled cells are classified, in fp32, with the weights as stored.
    Finer folders are mapped to the bundle's classes where its recipe says how (Herlev's seven to
    two).

    With --slides and --results the slides were submitted before: sensitivity and specificity at
    each --threshold, with 95 % intervals, and agreement with the results in --against.
    """
    if slides is not None:
        if results is None or model is not None or data:
            raise click.UsageError("--slides goes with --results, without --model and --data.")
        _evaluate_slides(slides, results, against, sorted(thresholds), as_json)
        return
    if model is None or not data:
        raise click.UsageError("Give --model and --data, or --slides and --results.")
    from cvm_batch.model.registry import find_bundle
    from cvm_batch.training.judging import judge
    from cvm_batch.training.report import check_installed

    if report is not None:
        check_installed()
    bundle = find_bundle(model)
    judged = judge(bundle, data, flips=flips)
    if report is not None:
        from cvm_batch.training.report import write_report

        write_report(
            report, bundle, {"all cells": (judged.evaluation, judged.positions)}, judged.cells
        )
    if as_json:
        judged_by = {"bundle": bundle.spec.name, "digest": bundle.digest}
        told = judged.cells.to_json() | {"trained_on": judged.trained_on}
        print_json(judged_by | judged.evaluation.to_json() | {"data": told})
        return
    for line in (*judged.cells.report(), *judged.evaluation.metrics.lines()):
        click.echo(line)
    if judged.trained_on:
        click.echo(
            f"{bundle.spec.name} was trained on most of these very cells. Its figures on those "
            "that were held back are in its MODEL_CARD.md."
        )
    low, high = judged.evaluation.intervals_95["accuracy"]
    click.echo(f"95 % interval of the accuracy, over {judged.cells.grouped_by}s: {low} to {high}")


def _evaluate_slides(
    labels: Path,
    results: Path | str,
    against: Path | str | None,
    thresholds: Sequence[float],
    as_json: bool,
) -> None:
    from cvm_batch.results.reading import Results
    from cvm_batch.results.roc import read_labels, rocs
    from cvm_batch.results.validation import Agreement, Validation
    from cvm_batch.results.worklist import SLIDE_SCORE, Worklist

    labelled = read_labels(labels)
    with Results(results) as opened:
        now = Worklist.read(opened, SLIDE_SCORE)
    found = Validation.of(now, labelled, thresholds)
    curve = next((roc for roc in _curves(rocs, now, labelled)), None)
    agreements: list[Agreement] = []
    if against is not None:
        with Results(against) as opened:
            before = Worklist.read(opened, SLIDE_SCORE)
        agreements = [Agreement.of(before, now, threshold) for threshold in thresholds]
    if as_json:
        told = {"validation": found.to_json(), "roc": curve and curve.to_json()}
        print_json(told | {"agreement": [one.to_json() for one in agreements]})
        return
    click.echo("threshold  sensitivity              specificity")
    for point in found.points:
        both = "  ".join(_share(one) for one in (point.sensitivity, point.specificity))
        click.echo(f"{point.threshold:9.2f}  {both}")
    if curve is not None:
        low, high = curve.auc_interval
        click.echo(f"Area under the ROC curve: {curve.auc:.3f} ({low:.3f} to {high:.3f})")
    for title, slide_ids in (
        ("Not complete, and in no figure", found.not_complete),
        ("Not in the results", found.missing),
    ):
        if slide_ids:
            shown = printable(", ".join(slide_ids[:_SHOWN]))
            click.echo(f"{title}: {len(slide_ids)}: {shown}{_more(len(slide_ids))}")
    if agreements:
        _print_agreements(agreements, against)


def _print_agreements(agreements: Sequence[Agreement], against: Path | str | None) -> None:
    """At each threshold; then the slides whose call changed at any, the largest change first."""
    first = agreements[0]
    click.echo(
        f"Against {against}: {first.slides} slides in both; scores differ by "
        f"{first.median_difference:.3f} (median), at most {first.largest_difference:.3f}"
    )
    click.echo("threshold  the same call            kappa  changed")
    for one in agreements:
        kappa = "    -" if one.kappa is None else f"{one.kappa:5.2f}"
        share = _share(one.same_call)
        click.echo(f"{one.threshold:9.2f}  {share}  {kappa}  {len(one.changed):7d}")
    changed = {slide_id: (old, new) for one in agreements for slide_id, old, new in one.changed}
    if changed:
        click.echo(f"Another call at one of them: {len(changed)} slides{_more(len(changed))}")
    largest = sorted(changed.items(), key=lambda one: -abs(one[1][0] - one[1][1]))
    for slide_id, (old, new) in largest[:_SHOWN]:
        click.echo(f"  {printable(slide_id)}: {old:.2f} before, {new:.2f} now")


def _more(count: int) -> str:
    return f" ({_SHOWN} are shown; --json lists all)" if count > _SHOWN else ""


def _curves(
    rocs: Callable[..., list[Roc]], worklist: Worklist, labels: Mapping[str, bool]
) -> list[Roc]:
    """None where the labels are of one kind."""
    from cvm_batch.errors import UsageError

    try:
        return rocs(worklist, labels)
    except UsageError:
        return []


def _share(share: Share) -> str:
    if share.value is None:
        return f"{'none labelled so':23}"
    low, high = share.interval
    return f"{share.value:.3f} ({low:.3f} to {high:.3f}) {share.hits}/{share.of}"
