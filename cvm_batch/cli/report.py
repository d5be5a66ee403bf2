"""``cvm-batch report``: a run as pages to read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cvm_batch.cli.console import STDERR, STDOUT, print_json
from cvm_batch.cli.query import refuse_within
from cvm_batch.cli.results_root import ResultsRoot, results_option
from cvm_batch.errors import ExitCode
from cvm_batch.pseudonyms import Pseudonyms
from cvm_batch.texts import printable

if TYPE_CHECKING:
    from cvm_batch.results.report.writing import Written


@click.command()
@click.argument("run_id", default="latest")
@results_option(required=True)
@click.option(
    "--out",
    type=ResultsRoot(),
    metavar="DIR",
    help="Write there; default: reports/RUN_ID in the results folder.",
)
@click.option(
    "--pseudonyms",
    "with_pseudonyms",
    is_flag=True,
    help="Slides by pseudonyms under your key, in reports/RUN_ID-pseudonyms.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def report(
    run_id: str, results: Path | str, out: Path | str | None, with_pseudonyms: bool, as_json: bool
) -> ExitCode:
    """Write the report of a run, by default the latest, as pages for a browser.

    A folder of static pages, which opens from a file share and loads nothing: the night at a
    glance, the worklist, a page for each slide with its most suspicious cells, what is not
    complete and what to do, and drift against earlier nights. Every submit writes it at its end;
    writing it again replaces it. Not a diagnosis.
    """
    from cvm_batch.results.report.writing import write_report

    if isinstance(out, Path):
        refuse_within(results, out)
    pseudonyms = Pseudonyms.required() if with_pseudonyms else None
    written = write_report(results, run_id, out=out, pseudonyms=pseudonyms)
    if as_json:
        print_json(_as_json(written))
    else:
        STDOUT.print(f"Report: {printable(written.address)}", soft_wrap=True)
        STDOUT.print(f"Drift: {written.verdict.sentence}", soft_wrap=True)
    return ExitCode.COMPLETE


def report_at_end(results: Path | str, run_id: str) -> None:
    """Write the report of a run that has ended; what goes wrong is told, and changes nothing."""
    from cvm_batch.results.report.writing import write_report

    try:
        written = write_report(results, run_id)
    except Exception as error:
        # Of any kind: the run has ended, and its exit code speaks of slides.
        STDERR.print(
            f"The report could not be written: {printable(str(error) or repr(error))} The results "
            f"are whole; `cvm-batch report {run_id} --results {results}` tries again.",
            soft_wrap=True,
        )
    else:
        STDERR.print(f"Report: {printable(written.address)}", soft_wrap=True)


def _as_json(written: Written) -> dict[str, object]:
    verdict = written.verdict
    return {
        "run_id": written.run_id,
        "report": written.address,
        "files": written.files,
        "bytes": written.bytes,
        "drift": {
            "level": str(verdict.level),
            "sentence": verdict.sentence,
            "nights": verdict.nights,
            "measures": {
                found.measure.key: {
                    "level": str(found.level),
                    "value": found.value,
                    "usual": found.usual,
                    "spreads_off": found.off,
                }
                for found in verdict.findings
            },
        },
    }
