"""``cvm-batch worklist``: which slides to look at first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cvm_batch.cli.query import refuse_within
from cvm_batch.cli.results_root import results_option
from cvm_batch.errors import ExitCode
from cvm_batch.texts import printable

if TYPE_CHECKING:
    from cvm_batch.results.roc import Roc
    from cvm_batch.results.worklist import Entry, Worklist

_SHOWN = 50
_RANKED = ("rank", "ranks", "quintile", "slide_id", "value", "top_grade", "cells_classified")
_APART = ("slide_id", "reason", "value", "top_grade", "cells_classified", "cells_unreadable")
_TITLES = {
    "urgent_incomplete": "Look at these first: not read whole, and suspicious cells were found",
    "ranked": "Ranked by {measure}, most suspicious first",
    "quality_control": "Quality control: drawn from the {negatives} negatives",
    "unranked": "Complete, but their model does not give {measure}",
    "scant": "Too few cells to be called negative",
    "incomplete": "Not read whole; nothing suspicious in what could be read",
    "failed": "Failed: not looked at",
}


@click.command()
@results_option(required=True)
@click.option(
    "--by",
    default="slide_score",
    show_default=True,
    help="slide_score, fraction:GROUP or count:GROUP, such as fraction:hsil_plus.",
)
@click.option("--run", "run_id", help="The slides of this run; default: every slide's newest row.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="CSV with slide_id and label (positive, negative): how well each choice of --by ranks.",
)
@click.option(
    "--negative-below",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Slides with a lower slide score are negatives, for quality control.",
)
@click.option(
    "--quality-control",
    "share",
    type=click.FloatRange(0.1, 1),
    default=0.1,
    show_default=True,
    help="The share of the negatives to look at nevertheless.",
)
@click.option("--seed", default=0, show_default=True, help="Another one draws other negatives.")
@click.option("--csv", "file", type=click.Path(path_type=Path), help="Write all of it there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, ROC curves included.")
def worklist(
    results: Path | str,
    by: str,
    run_id: str | None,
    labels: Path | None,
    negative_below: float,
    share: float,
    seed: int,
    file: Path | None,
    as_json: bool,
) -> ExitCode:
    """Rank the slides in DIR, most suspicious first.

    Slides that are incomplete, failed or scant stand in lists of their own: no such slide is
    ever ranked as a negative. Incomplete slides in which suspicious cells were found come
    first. Not a diagnosis: negatives need a qualified person's eyes like all others.
    """
    from cvm_batch.cli.tables import as_csv, as_objects, write_whole
    from cvm_batch.results.reading import Results
    from cvm_batch.results.roc import read_labels, rocs
    from cvm_batch.results.worklist import Measure, Worklist

    measure = Measure.parse(by)
    labelled = read_labels(labels) if labels else None
    with Results(results) as opened:
        found = Worklist.read(
            opened,
            measure,
            run_id=run_id,
            negative_below=negative_below,
            quality_control_share=share,
            seed=seed,
        )
    curves = rocs(found, labelled, seed=seed) if labelled is not None else []
    if file is not None:
        refuse_within(results, file)
        write_whole(file, as_csv(found.to_table()))
    if as_json:
        slides = as_objects(found.to_table())
        told = {"by": by, "slides": slides, "roc": [roc.to_json() for roc in curves]}
        click.echo(json.dumps(told, indent=2))
    else:
        for text in (*_lists(found), *_curves(curves)):
            click.echo(text)
    return ExitCode.COMPLETE


def _lists(found: Worklist) -> Iterator[str]:
    """The first slides of each list that has any."""
    from cvm_batch.cli.tables import as_text

    negatives = sum(entry.negative for entry in found.ranked)
    for name, title in _TITLES.items():
        entries: Sequence[Entry] = getattr(found, name)
        if not entries:
            continue
        more = len(entries) - _SHOWN
        wanted = _RANKED if name in ("ranked", "quality_control") else _APART
        told = title.format(measure=found.measure, negatives=negatives)
        yield f"{printable(told)} ({len(entries):,})"
        table = found.to_table(entries[:_SHOWN])
        yield as_text(table.select([*wanted, *found.groups]))
        if more > 0:
            yield f"  and {more:,} more: --csv or --json has them all\n"


def _curves(curves: Sequence[Roc]) -> Iterator[str]:
    if curves:
        yield "Area under the ROC curve by choice of --by, with 95 % interval"
    for roc in curves:
        low, high = roc.auc_interval
        yield (
            f"{printable(str(roc.measure)):25} {roc.auc:.3f} ({low:.3f} to {high:.3f}), "
            f"{roc.positives:,} positive and {roc.negatives:,} negative slides"
        )
