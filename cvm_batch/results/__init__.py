"""The results folder: Parquet schemas, commits, the run manifest, and reading back.

    OUT/
      slides/run_date=YYYY-MM-DD/<run_id>-<nnnnn>.parquet   one row per slide of the run
      cells/run_date=YYYY-MM-DD/<run_id>/<part>.parquet     one row per cell
      tops/run_date=YYYY-MM-DD/<run_id>/<part>.parquet      the most suspicious cells' tiles
      runs/<run_id>.json                                    the run's manifest
      audit/<nnnnnn>.json                                   one entry of the audit log each

Only this package writes there. README.md explains every column. Read it again with `open`:

    with cvm_batch.results.open("results/") as results:
        print(results.table("slides"))
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cvm_batch.results.reading import Results


def open(results: Path | str) -> Results:  # noqa: A001
    """The tables of a results folder: a path, or an address on object storage.

    See `reading.Results`. Raises ResultsError where it holds no run.
    """
    from cvm_batch.results.reading import Results  # DuckDB is not needed to write results

    return Results(results)
