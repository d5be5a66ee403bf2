"""`cvm-batch evaluate`: what a bundle does on labelled cells."""

from __future__ import annotations

from pathlib import Path

import click

from cvm_batch.cli.console import print_json


@click.command()
@click.option("--model", required=True, metavar="BUNDLE", help="A bundle's folder or name.")
@click.option(
    "--data",
    required=True,
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
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    model: str, data: tuple[Path, ...], flips: bool, report: Path | None, as_json: bool
) -> None:
    """Classify labelled cells with a bundle, and print how well.

    In fp32, with the weights as stored. Finer folders are mapped to the bundle's classes where
    its recipe says how (Herlev's seven to two).
    """
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
        print_json(
            {"bundle": bundle.spec.name, "digest": bundle.digest} | judged.evaluation.to_json()
        )
        return
    for line in (*judged.cells.report(), *judged.evaluation.metrics.lines()):
        click.echo(line)
    low, high = judged.evaluation.intervals()["accuracy"]
    click.echo(f"95 % interval of the accuracy, over {judged.cells.grouped_by}s: {low} to {high}")
