"""``cvm-batch demo``: the main job on real cells, with nothing to prepare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from cvm_batch.cli.console import STDOUT
from cvm_batch.cli.results_root import ResultsRoot
from cvm_batch.cli.screening import print_summary, screen, screening_options
from cvm_batch.errors import ExitCode, Reason, RunAbortedError

SLIDES = Path(__file__).parent.parent / "assets" / "demo" / "slides"
MODEL = "cvm-cervix-mini-cric6"
_DAMAGED = "-damaged.zip"


@click.command()
@click.option(
    "--out",
    default=Path("cvm-batch-demo"),
    show_default=True,
    type=ResultsRoot(),
    help="The results folder; made where there is none.",
)
@screening_options
def demo(out: Path | str, **options: Any) -> int:
    """Screen the slides that come with cvm-batch: real Pap-smear cells, no network.

    Each slide is one microscope field of CRIC Cervix. One archive is damaged on purpose,
    to show how that is reported. Exits 0 when exactly that one was refused.
    """
    from cvm_batch.results.folder import ResultsFolder
    from cvm_batch.results.slides import newest_rows

    STDOUT.print(f"Screening {SLIDES}\nwith {MODEL}, a small demonstration model.", soft_wrap=True)
    summary = screen(inputs=(str(SLIDES),), model=MODEL, out=out, **options)
    if summary.left:
        print_summary(summary, out)
        return summary.exit_code
    ours = {path.name for path in SLIDES.iterdir()}  # --out may hold other slides as well
    rows = [row for row in newest_rows(ResultsFolder(out)).to_pylist() if row["slide_id"] in ours]
    STDOUT.print(_table(rows))
    print_summary(summary, out)
    unexpected = [row["slide_id"] for row in rows if not _as_expected(row)]
    if unexpected:
        raise RunAbortedError(
            f"The demo did not end as it should: see {', '.join(unexpected)} above. "
            "Remove the results folder and try again; if it stays, report it."
        )
    STDOUT.print(_NEXT.format(slides=SLIDES, model=MODEL, out=out), soft_wrap=True)
    return ExitCode.COMPLETE


def _as_expected(row: Mapping[str, Any]) -> bool:
    if row["slide_id"].endswith(_DAMAGED):
        return (row["status"], row["reason"]) == ("failed", Reason.CHECKSUM_MISMATCH)
    return (row["status"], row["reason"]) == ("complete", None)


def _table(rows: list[dict[str, Any]]) -> Table:
    """The complete slides; what is not complete is never ranked among them."""
    table = Table(title="Complete slides, most suspicious first", title_justify="left")
    table.add_column("slide", no_wrap=True)
    for column in ("cells", "ASC-US+", "LSIL+", "HSIL+", "score"):
        table.add_column(column, justify="right", no_wrap=True)
    complete = [row for row in rows if row["status"] == "complete"]
    for row in sorted(complete, key=lambda row: -row["slide_score"]):
        groups = dict(row["group_counts"])
        counts = (groups[name] for name in ("asc_us_plus", "lsil_plus", "hsil_plus"))
        numbers = (row["cells_classified"], *counts, f"{row['slide_score']:.2f}")
        table.add_row(row["slide_id"], *map(str, numbers))
    return table


_NEXT = """
The damaged slide was refused, as it should be: its archive fails its own checksum.

Try next:
  the same again: every complete slide is skipped
    cvm-batch submit {slides} --model {model} --out {out}
  what the model is, and how well it did on held-back fields
    cvm-batch models show {model}
  the results, from Python
    python -c "import pyarrow.dataset as d; print(d.dataset('{out}/slides').to_table().to_pylist())"

A demonstration, not a medical device: no result here may be used for a diagnosis."""
