"""``cvm-batch results``: takes out of a results folder, for other programs or for good."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cvm_batch.archives.places.files import printable as as_stored
from cvm_batch.cli.console import STDERR, STDOUT, print_json
from cvm_batch.cli.query import refuse_within
from cvm_batch.cli.results_root import results_option
from cvm_batch.errors import ExitCode, ResultsError, UsageError
from cvm_batch.pseudonyms import Pseudonyms
from cvm_batch.texts import printable

if TYPE_CHECKING:
    from cvm_batch.results.exporting.source import SlideResult

file_option = click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to this file, in place of an older one; default: standard output.",
)


def _slide(context: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return None if value is None else as_stored(value)


@click.group("results")
def results_group() -> None:
    """Export results, or erase a slide from them.

    SLIDE is a slide_id, as the slides table has it.
    """


@results_group.command()
@click.argument("slide", callback=_slide)
@results_option(required=True)
@file_option
@click.option("--group", help="Only cells of this class group, such as hsil_plus.")
@click.option(
    "--least-confidence", type=float, default=0.0, help="Leave out cells that are less certain."
)
@click.option("--top", is_flag=True, help="Only the 20 most suspicious cells.")
@click.option(
    "--box",
    "box_px",
    type=float,
    metavar="PX",
    help="Squares of so many level-0 pixels around the nuclei; default: points.",
)
def geojson(
    slide: str,
    results: Path | str,
    file: Path | None,
    group: str | None,
    least_confidence: float,
    top: bool,
    box_px: float | None,
) -> ExitCode:
    """Write the cells of SLIDE as GeoJSON that QuPath reads, coloured by class.

    Cells whose position is not known are left out. Exit code 3 where SLIDE was not read whole.
    """
    from cvm_batch.results.exporting.geojson import GeoJson
    from cvm_batch.results.exporting.source import SlideResult
    from cvm_batch.results.reading import Results

    with Results(results) as opened:
        found = SlideResult.find(opened, slide)
        cells = GeoJson(
            slide_id=slide,
            classes=None if group is None else found.classes_of(group),
            least_confidence=least_confidence,
            box_px=box_px,
        )
        _write(results, file, cells.lines(found.top_cells() if top else found.cells()))
    STDERR.print(f"{cells.written:,} cells.")
    if cells.without_position:
        STDERR.print(f"{cells.without_position:,} cells left out: their position is not known.")
    return _told_if_not_whole(found)


@results_group.command("csv")
@click.argument("slide", required=False, callback=_slide)
@results_option(required=True)
@file_option
@click.option("--top", is_flag=True, help="Of SLIDE, only the 20 most suspicious cells.")
def as_csv(slide: str | None, results: Path | str, file: Path | None, top: bool) -> ExitCode:
    """Write each slide's newest row as CSV, or with SLIDE the cells of that slide.

    For spreadsheets: control characters are spelt out, and a text that would be run as a formula
    gets an apostrophe. Exit code 3 where SLIDE was not read whole.
    """
    from cvm_batch.cli.tables import csv_pieces
    from cvm_batch.results.exporting.flat import flat_cells, flat_slides
    from cvm_batch.results.exporting.source import SlideResult
    from cvm_batch.results.reading import Results

    if slide is None and top:
        raise UsageError("--top is for the cells of one slide: name it.")
    with Results(results) as opened:
        if slide is None:
            rows = opened.query("FROM slides ORDER BY slide_id")
            _write(results, file, csv_pieces(flat_slides(rows)))
            return ExitCode.COMPLETE
        found = SlideResult.find(opened, slide)
        cells = found.top_cells() if top else found.cells()
        _write(results, file, csv_pieces(flat_cells(cells, found.class_names)))
    return _told_if_not_whole(found)


@results_group.command()
@results_option(required=True)
@click.option("--run", "run_id", help="A run's identifier; default: the newest.")
@click.option("--pseudonyms", is_flag=True, help="Slides by pseudonyms under your key.")
def summary(results: Path | str, run_id: str | None, pseudonyms: bool) -> ExitCode:
    """Print a run's summary as JSON, as notices carry it; `results schema` says what is in it."""
    from cvm_batch.results.exporting import summary as made
    from cvm_batch.results.folder import ResultsFolder
    from cvm_batch.results.live import runs_seen
    from cvm_batch.results.reading import Results

    seen = [one for one in runs_seen(ResultsFolder(results)) if run_id in (None, one.run_id)]
    if not seen:
        raise ResultsError(
            f"{results} holds no run {run_id}: `cvm-batch list {results}` shows which."
        )
    # A killed run's manifest says that it runs.
    manifest = {**seen[0].manifest, "state": seen[0].state}
    with Results(results) as opened:
        lacking = made.find_lacking(opened, seen[0].run_id)
    if pseudonyms:
        print_json(made.summary_without_names(manifest, lacking, Pseudonyms.required()))
    else:
        print_json(made.plain_summary(manifest, lacking))
    return ExitCode.COMPLETE


@results_group.command()
def schema() -> ExitCode:
    """Print the JSON schema of a run's summary."""
    from cvm_batch.results.exporting import summary as made

    print_json(made.schema())
    return ExitCode.COMPLETE


@results_group.command("pseudonyms")
@results_option(required=True)
@file_option
def list_pseudonyms(results: Path | str, file: Path | None) -> ExitCode:
    """Write which slide each pseudonym stands for, as CSV; needs your key."""
    from cvm_batch.cli.tables import csv_pieces
    from cvm_batch.results.reading import Results

    key = Pseudonyms.required()
    with Results(results) as opened:
        names = opened.query("SELECT slide_id FROM slides ORDER BY slide_id")
    pseudonyms = [key.of(name) for name in names["slide_id"].to_pylist()]
    _write(results, file, csv_pieces(names.append_column("pseudonym", [pseudonyms])))
    return ExitCode.COMPLETE


@results_group.command()
@click.argument("slide", callback=_slide)
@results_option(required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; needs --yes.")
def erase(slide: str, results: Path | str, yes: bool, as_json: bool) -> ExitCode:
    """Erase SLIDE: its rows in all runs, its cells and its tiles. There is no way back.

    The audit log keeps that it was done, with a digest of the slide's name (under your key for
    pseudonyms, if one is set). Reports of runs that may show the slide are removed. Interrupted at
    any moment, the same command goes on. Copies elsewhere, backups and files that were exported
    are yours to erase, and so is the slide itself: the next submit classifies it again while it
    lies among the inputs.
    """
    from cvm_batch.results.erasing.erase import erase_slide
    from cvm_batch.results.erasing.holdings import Holdings
    from cvm_batch.results.folder import ResultsFolder

    pseudonyms = Pseudonyms.from_environment()
    folder = ResultsFolder(results)
    if as_json and not yes:
        raise UsageError("--json needs --yes: nobody would see the question.")
    if not yes and (held := Holdings(folder, slide)):
        what = (
            f"{held.rows} rows of {len(held.runs)} runs, {len(held.own) + len(held.shared)} files "
            "of cells and tiles"
        )
        question = f"Erase {printable(slide)!r} from {results} for good? {what}."
        click.confirm(question, abort=True, err=True)
    erased = erase_slide(folder, slide, pseudonyms)
    if as_json:
        print_json(asdict(erased))
    elif erased.already:
        STDOUT.print(f"Was erased already: entry {erased.entry['entry']} of the audit log.")
    else:
        STDOUT.print(
            f"Erased: {erased.rows} rows of {erased.runs} runs, {erased.files_removed} files; "
            f"{erased.files_rewritten} rewritten, {erased.reports_removed} files of reports "
            f"removed. Entry {erased.entry['entry']} of the audit log.",
            soft_wrap=True,
        )
    return ExitCode.COMPLETE


def _told_if_not_whole(found: SlideResult) -> ExitCode:
    if found.row["status"] == "complete":
        return ExitCode.COMPLETE
    unreadable = found.row["cells_unreadable"]
    told = f"The slide is {found.row['status']}: {unreadable:,} cells could not be read."
    STDERR.print(printable(told))
    return ExitCode.NOT_ALL_COMPLETE


def _write(results: Path | str, file: Path | None, pieces: Iterable[str]) -> None:
    from cvm_batch.cli.tables import whole_file

    if file is None:
        sys.stdout.writelines(pieces)
        return
    refuse_within(results, file)
    with whole_file(file) as opened:
        opened.writelines(piece.encode() for piece in pieces)
