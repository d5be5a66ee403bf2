"""Reads a results folder again, and holds what its files say against each other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cvm_batch.errors import ResultsError
from cvm_batch.results.audit.checking import AuditCheck
from cvm_batch.results.audit.log import Entry
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.manifest import RunState, manifest_names
from cvm_batch.results.schemas import NAMES, SLIDES, TOPS, Status, cells_schema
from cvm_batch.results.slides import batch_names

#: Read tables of cells and tops, of which several slides may share one.
_TABLES_KEPT = 8
#: Columns that tables of an earlier schema version lack.
_LATER = frozenset(("priority", "preparation", "listed", "padded", "top_classes"))
#: Types that columns had then.
_EARLIER = {"slide_id": NAMES}


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    path: str
    """Relative to the results folder."""
    what: str


@dataclass(frozen=True, kw_only=True)
class ResultsVerdict:
    runs: int
    slides: int
    """Rows of the slides table."""
    cells: int
    """Rows of the cells tables that the slides name."""
    audit_head: Entry | None
    """The newest entry of the audit log; None where there is no log, or it is damaged."""
    findings: tuple[Finding, ...]


class _DamagedError(Exception):
    """A Parquet file that cannot be read, or is not what this package writes."""


@dataclass(frozen=True)
class _Cells:
    """What a slide's cells files hold, taken together."""

    index: NDArray[np.int64]
    classes: Counter[str]


def holds_results(root: Path | str) -> bool:
    """Whether there are results in a folder, damaged as they may be. Raises ResultsError."""
    results = ResultsFolder(root)
    return (
        bool(manifest_names(results))
        or any(name.startswith("slides/run_date=") for name in results.names("slides", deep=True))
        or any(name.startswith("cells/run_date=") for name in results.names("cells", deep=True))
    )


def verify_results(root: Path | str) -> ResultsVerdict:
    """Read every table of the results folder ``root`` to its last page.

    Page checksums are compared, rows of slides are unique, their counts add up, and the cells
    files that a row names hold the cells that it counts, each once. The audit log is whole, and
    tells the same of every slides batch. Raises ResultsError where the folder cannot be listed.
    """
    return _Verification(ResultsFolder(root)).verdict()


class _Verification:
    def __init__(self, results: ResultsFolder) -> None:
        self._results = results
        self._findings: list[Finding] = []
        self._cells = 0
        # Slides that share a file mostly end one after the other.
        self._table = lru_cache(maxsize=_TABLES_KEPT)(self._read)

    def verdict(self) -> ResultsVerdict:
        runs = self._check_manifests()
        rows = 0
        seen: Counter[tuple[str, str]] = Counter()
        for name in batch_names(self._results):
            for row in self._rows(name):
                rows += 1
                seen[row["run_id"], row["slide_id"]] += 1
                self._check_slide(name, row)
                if row["run_id"] not in runs:
                    self._found(name, f"names the run {row['run_id']}, which has no manifest")
        for (run_id, slide_id), count in seen.items():
            if count > 1:
                self._found("slides", f"the slide {slide_id!r} has {count} rows of run {run_id}")
        audit = AuditCheck(self._results)
        for found in audit.findings():
            self._found(*found)
        return ResultsVerdict(
            runs=len(runs),
            slides=rows,
            cells=self._cells,
            audit_head=audit.head,
            findings=tuple(self._findings),
        )

    def _found(self, name: str, what: str) -> None:
        self._findings.append(Finding(name, what))

    def _check_manifests(self) -> set[str]:
        runs = set()
        for name in manifest_names(self._results):
            path = PurePosixPath(name)
            try:
                manifest = json.loads(self._results.read(name))
                RunState(manifest["state"])
                if manifest["run_id"] != path.stem:
                    raise ValueError(f"it is that of run {manifest['run_id']!r}")
            except (ValueError, KeyError, TypeError, OSError, ResultsError) as error:
                self._found(name, f"is no manifest of a run: {error!r}")
            runs.add(path.stem)
        if not runs:
            self._found("runs", "holds no manifest of a run")
        return runs

    def _rows(self, name: str) -> Iterator[dict[str, Any]]:
        try:
            rows = self._read(name, SLIDES).to_pylist(maps_as_pydicts="strict")
        except _DamagedError as error:
            self._found(name, str(error))
        except KeyError as error:  # of a map that names it twice
            self._found(name, f"is damaged: {error}")
        else:
            yield from rows

    def _check_slide(self, batch: str, row: dict[str, Any]) -> None:
        for name in row["tops_files"]:
            try:
                self._table(name, TOPS)
            except _DamagedError as error:
                self._found(name, f"{error} (of the slide {row['slide_id']!r})")
        cells = self._cells_of(row)
        if cells is not None and row["status"] != Status.FAILED:
            for what in _differences(row, cells):
                self._found(batch, what)

    def _cells_of(self, row: dict[str, Any]) -> _Cells | None:
        """None where a file is damaged."""
        index: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        classes: Counter[str] = Counter()
        whole = True
        for name in row["cells_files"]:
            try:
                table = self._read_cells(name, row)
            except _DamagedError as error:
                self._found(name, f"{error} (of the slide {row['slide_id']!r})")
                whole = False
            else:
                self._cells += table.num_rows
                index.append(table["index"].to_numpy())
                classes += _count(table["class"])
        return _Cells(np.concatenate(index), classes) if whole else None

    def _read_cells(self, name: str, row: dict[str, Any]) -> pa.Table:
        """A cells file of the slide that ``row`` is of. Raises _DamagedError."""
        table = self._table(name, cells_schema(len(_counts(row) or ())))
        mine = table.filter(pc.equal(table["slide_id"].cast(pa.string()), row["slide_id"]))
        if not mine.num_rows:
            raise _DamagedError("holds no cells of the slide")
        return mine

    def _read(self, name: str, schema: pa.Schema) -> pa.Table:
        """Raises _DamagedError."""
        try:
            file = self._results.filesystem.open_input_file(self._results.path_of(name))
        except FileNotFoundError as error:
            raise _DamagedError("is not there") from error
        except OSError as error:
            raise _DamagedError(f"cannot be read: {error}") from error
        with file:
            return _read(file, schema)


def _differences(row: dict[str, Any], cells: _Cells) -> Iterator[str]:
    """What does not add up in the row of a slide that did not fail."""
    slide = repr(row["slide_id"])
    expected, classified = row["cells_expected"], row["cells_classified"]
    unreadable, counts = row["cells_unreadable"], _counts(row)
    if row["status"] not in list(Status):
        yield f"gives {slide} the status {row['status']!r}, as no version does"
    if expected is None or classified is None or unreadable is None:
        yield f"does not say how many cells of {slide} are expected, classified and unreadable"
        return
    if expected != classified + unreadable:
        yield (
            f"expects {expected} cells of {slide}, of which {classified} are classified and "
            f"{unreadable} unreadable"
        )
    if row["status"] == Status.COMPLETE and unreadable:
        yield f"calls {slide} complete, though {unreadable} cells are unreadable"
    if len(cells.index) and not 0 <= cells.index.min() <= cells.index.max() < expected:
        yield f"expects {expected} cells of {slide}; its cells files hold one beyond these"
    if len(np.unique(cells.index)) != len(cells.index):
        yield f"names cells files of {slide} that hold a cell twice"
    elif len(cells.index) != classified:
        yield f"counts {classified} cells of {slide}; its cells files hold {len(cells.index)}"
    elif counts is not None and cells.classes != Counter(counts):
        yield f"counts the classes of {slide} otherwise than its cells files"


def _counts(row: dict[str, Any]) -> dict[str, int] | None:
    """Cells by class; None where the row has no counts, as of a failed slide."""
    counts: dict[str, int] | None = row["class_counts"] or row["counts_at_least"]
    return counts


def _count(names: pa.ChunkedArray) -> Counter[str]:
    counted = pc.value_counts(names.cast(pa.string())).to_pylist()
    return Counter({each["values"]: each["counts"] for each in counted})


def _read(file: Any, schema: pa.Schema) -> pa.Table:
    """The whole table in an open file, its page checksums compared. Raises _DamagedError.

    Nothing protects what Parquet says of columns: names and types are those of ``schema``,
    of which an earlier version may lack some. What it calls not nullable is not null.
    """
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            table = parquet.read()
            table.validate(full=True)
    except (pa.ArrowException, OSError, RuntimeError, ValueError) as error:
        raise _DamagedError(f"is damaged: {error}") from error
    for field in table.schema:
        known = [schema.field(field.name).type] if field.name in schema.names else []
        if field.type not in (*known, _EARLIER.get(field.name)):
            raise _DamagedError(f"has a column {field.name!r} of {field.type}, as no version has")
    for field in schema:
        _check_filled(table, field)
    return table


def _check_filled(table: pa.Table, field: pa.Field) -> None:
    at = table.schema.get_field_index(field.name)  # -1 also where two columns have the name
    if at < 0:
        if field.name in _LATER and field.name not in table.column_names:
            return
        raise _DamagedError(f"does not have one column {field.name!r}")
    if field.nullable:
        return
    column = table.column(at)
    if column.null_count or (pa.types.is_list(field.type) and pc.list_flatten(column).null_count):
        raise _DamagedError(f"has nulls in the column {field.name!r}")
