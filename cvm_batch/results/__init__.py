"""The results folder: Parquet schemas, commits, the run manifest, and reading back.

    OUT/
      slides/run_date=YYYY-MM-DD/<run_id>-<nnnnn>.parquet   one row per slide of the run
      cells/run_date=YYYY-MM-DD/<run_id>/<part>.parquet     one row per cell
      tops/run_date=YYYY-MM-DD/<run_id>/<part>.parquet      the most suspicious cells' tiles
      runs/<run_id>.json                                    the run's manifest

Only this package writes there. README.md explains every column.
"""
