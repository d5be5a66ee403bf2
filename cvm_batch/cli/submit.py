"""``cvm-batch submit``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cvm_batch.cli.console import print_json
from cvm_batch.cli.results_root import ResultsRoot
from cvm_batch.cli.screening import print_summary, screen, screening_options


@click.command()
@click.argument("slides", nargs=-1, required=True)
@click.option("--model", required=True, help="A bundle's folder, or the name of a known one.")
@click.option(
    "--out",
    required=True,
    type=ResultsRoot(),
    help="The results folder, made where there is none: a path, or s3://bucket/results.",
)
@screening_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def submit(
    slides: tuple[str, ...], model: str, out: Path | str, as_json: bool, **options: Any
) -> int:
    """Classify every cell of SLIDES that is not classified yet.

    SLIDES are slide archives, folders of them, or manifest tables (.csv, .parquet): folders,
    .zip and .tar files of cell images, zarr archives, and whole-slide images with a cells
    table beside them; paths, or addresses such as s3://bucket/night. Slides that are
    complete in --out under the same model are skipped, so that the same command goes on
    where an earlier run ended.
    """
    summary = screen(inputs=slides, model=model, out=out, **options)
    if as_json:
        print_json(summary.to_json())
    else:
        print_summary(summary, out)
    return summary.exit_code
