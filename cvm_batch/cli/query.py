"""``cvm-batch query``: SQL over a results folder."""

from __future__ import annotations

from pathlib import Path

import click

from cvm_batch.cli.console import STDOUT
from cvm_batch.cli.results_root import results_option
from cvm_batch.errors import ExitCode, UsageError


@click.command()
@click.argument("sql", required=False)
@results_option()
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    default="table",
    show_default=True,
)
@click.option("--file", type=click.Path(path_type=Path), help="Write there instead of printing.")
@click.option("--list", "list_", is_flag=True, help="List the queries that have a name.")
def query(
    sql: str | None, results: Path | str | None, format_: str, file: Path | None, list_: bool
) -> ExitCode:
    """Answer SQL, or a query that has a name, from the results in DIR.

    \b
    The views: slides (the newest row of each slide), slides_all, slide_classes (a row per
    slide and class), cells, tops, runs. README.md explains their columns.
      cvm-batch query worklist --results DIR
      cvm-batch query "SELECT class, sum(count) FROM slide_classes GROUP BY 1" --results DIR

    The SQL is DuckDB's. It reads these views and nothing else, and writes nothing. A run may
    be writing meanwhile.
    """
    from cvm_batch.results.canned import canned_queries

    canned = canned_queries()
    if list_:
        for each in canned.values():
            STDOUT.print(f"{each.name:11} {each.about}")
        return ExitCode.COMPLETE
    if sql is None or results is None:
        raise click.UsageError("Give SQL or the name of a query, and --results.")
    if file is None and format_ == "parquet":
        raise click.UsageError("Parquet is not for a terminal: give --file.")
    from cvm_batch.cli.tables import FORMATS, write_whole
    from cvm_batch.results.reading import Results

    with Results(results) as opened:
        found = opened.query(canned[sql].sql if sql in canned else sql)
    data = FORMATS[format_](found)
    if file is None:
        assert isinstance(data, str)
        click.echo(data, nl=False)
    else:
        refuse_within(results, file)
        write_whole(file, data)
    return ExitCode.COMPLETE


def refuse_within(results: Path | str, file: Path) -> None:
    """Those who read the folders take what lies in them for results. Raises UsageError."""
    if isinstance(results, Path) and file.resolve().is_relative_to(results.resolve()):
        raise UsageError(f"{file} lies among the results, which stay as they are: choose another.")
