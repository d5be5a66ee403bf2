"""The slides table: one row per slide of a run, committed in immutable batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType

import pyarrow as pa
import pyarrow.dataset as ds

from cvm_batch.errors import PASSING_REASONS, ResultsError, TakenOverError
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.parquet import parquet_bytes
from cvm_batch.results.schemas import SCHEMA_VERSION, SLIDES, Adequacy, Status

#: What pyarrow calls the column that says in which file a row is, by the store's `path_of`.
BATCH_PATH = "__filename"

_FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)


@dataclass(frozen=True, kw_only=True)
class SlideRow:
    """One row of the slides table; README.md explains the columns."""

    run_id: str
    slide_id: str
    uri: str
    slide_identity: str | None
    result_key: str | None
    bundle: str
    bundle_digest: str
    priority: int = 0
    preparation: str | None = None
    listed: Mapping[str, str] = field(default_factory=dict)
    status: Status
    reason: str | None
    detail: str | None
    cells_expected: int | None
    expected_from: str | None
    cells_classified: int | None
    cells_unreadable: int | None
    integrity: str | None
    class_counts: Mapping[str, int] | None
    group_counts: Mapping[str, int | None] | None
    primary_group: str | None
    abnormal_count: int | None
    abnormal_fraction: float | None
    counts_at_least: Mapping[str, int] | None
    group_counts_at_least: Mapping[str, int | None] | None
    slide_score: float | None
    top_classes: Mapping[str, int] | None = None
    adequacy: Adequacy = Adequacy.NOT_ASSESSED
    confidence_mean: float | None
    brightness_mean: float | None
    brightness_std: float | None
    focus_mean: float | None
    cells_files: Sequence[str]
    tops_files: Sequence[str]
    attempts: int
    seconds: float
    started_at: datetime
    finished_at: datetime
    precision: str
    backend: str | None
    versions: Mapping[str, str]
    schema_version: int = SCHEMA_VERSION


def commit_slides(
    results: ResultsFolder, run: RunName, number: int, rows: Sequence[SlideRow]
) -> None:
    """Commit batch ``number`` of the run's rows; numbers follow each other from 0 on.

    Raises CommitError, and TakenOverError where another run has put its seal there.
    """
    table = pa.Table.from_pylist([vars(row) for row in rows], schema=SLIDES)
    if not results.put_new(run.slides_batch(number), parquet_bytes(table)):
        raise TakenOverError(
            f"Another run took over {results} and sealed this one, {run.run_id}, so that "
            f"{len(rows)} slides could not be committed. What it had committed before stays, and "
            "the other run classifies the rest."
        )


def newest_rows(results: ResultsFolder) -> pa.Table:
    """Each slide's newest row, by slide_id. Raises ResultsError where a file is damaged."""
    newest = {row["slide_id"]: row for row in all_rows(results).sort_by("finished_at").to_pylist()}
    return pa.Table.from_pylist([newest[slide] for slide in sorted(newest)], schema=SLIDES)


@dataclass(frozen=True)
class Settled:
    """What an earlier run found of a slide, and what stands."""

    status: Status
    reason: str | None
    detail: str | None


_COMPLETE = Settled(Status.COMPLETE, None, None)


class History:
    """What earlier runs settled, by (slide_id, result_key)."""

    def __init__(
        self,
        settled: Mapping[tuple[str, str], Settled],
        failed: Mapping[str, Settled] = MappingProxyType({}),
    ) -> None:
        self._settled = settled
        self._slides = frozenset(slide for slide, _ in settled)
        self.failed = failed
        """By slide_id: newest rows that are not complete."""

    @classmethod
    def read(cls, results: ResultsFolder) -> History:
        """Read all rows of the slides table. Raises ResultsError where one is damaged."""
        names = ["slide_id", "result_key", "status", "reason", "detail"]
        settled: dict[tuple[str, str], Settled] = {}
        newest: dict[str, Settled] = {}
        table = all_rows(results, [*names, "finished_at"]).sort_by("finished_at")
        columns = (table[name].to_pylist() for name in names)
        for slide_id, result_key, status, reason, detail in zip(*columns, strict=True):
            found = (
                _COMPLETE if status == Status.COMPLETE else Settled(Status(status), reason, detail)
            )
            newest[slide_id] = found
            key = (slide_id, result_key)
            known = settled.get(key)
            if result_key is None or (known and known.status is Status.COMPLETE):
                continue
            if reason in PASSING_REASONS:
                settled.pop(key, None)
            else:
                settled[key] = found
        failed = {slide: found for slide, found in newest.items() if found is not _COMPLETE}
        return cls(settled, failed)

    def knows(self, slide_id: str) -> bool:
        """Whether anything stands of the slide, under whatever key."""
        return slide_id in self._slides

    def settled(self, slide_id: str, result_key: str) -> Settled | None:
        """What stands, or None where the slide is to be classified.

        Complete slides stand, and so do those that failed for a lasting reason: the same
        bytes would fail again. What failed for a passing reason is tried again.
        """
        return self._settled.get((slide_id, result_key))


def batch_names(results: ResultsFolder) -> list[str]:
    """The committed batches of all runs. Raises ResultsError."""
    return [name for name in results.names("slides", deep=True) if name.endswith(".parquet")]


def all_rows(results: ResultsFolder, columns: list[str] | None = None) -> pa.Table:
    """Every row of the slides table. Raises ResultsError where a file is damaged.

    ``columns`` may name `BATCH_PATH`, too.
    """
    files = batch_names(results)
    if not files:
        table = SLIDES.append(pa.field(BATCH_PATH, pa.string())).empty_table()
        return table.select(columns or SLIDES.names)
    try:
        dataset = ds.dataset(
            [results.path_of(name) for name in files],
            schema=SLIDES,
            format=_FORMAT,
            filesystem=results.filesystem,
        )
        return dataset.to_table(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise ResultsError(
            f"The slides table in {results} cannot be read: {error}. Move the damaged file "
            "away and submit again: the slides that it named are classified anew."
        ) from error
