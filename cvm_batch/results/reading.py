"""A results folder as tables: Arrow and DuckDB over what runs have committed so far.

DuckDB opens no file here. It sees Arrow data sets, which read a folder or object storage
alike, so that its own way to files can be shut: no query reads anything else, or writes.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from cvm_batch.errors import PASSING_REASONS, ResultsError, UsageError
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.manifest import manifest_names
from cvm_batch.results.runs import read_runs
from cvm_batch.results.schemas import CELLS, SLIDES, TOPS
from cvm_batch.results.shared_files import Holding, SharedFiles
from cvm_batch.results.slides import batch_names
from cvm_batch.results.stores.arrow import reading_from

_FORMAT = ds.ParquetFileFormat()
_READS = frozenset((duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN))


class View(StrEnum):
    """What can be asked for; README.md explains the columns."""

    SLIDES = "slides"
    """The newest row of each slide."""
    SLIDES_ALL = "slides_all"
    """Every row: one per slide and run."""
    SLIDE_CLASSES = "slide_classes"
    """One row per slide and class, of the newest rows."""
    CELLS = "cells"
    """Cells of the newest rows; those of superseded attempts are left out."""
    TOPS = "tops"
    """The most suspicious cells of each part, with their tiles; likewise."""
    RUNS = "runs"
    """The manifests of runs."""


class NamesFiles(Protocol):
    """A slide and the files that hold its cells, such as `worklist.Entry`."""

    @property
    def slide_id(self) -> str: ...
    @property
    def cells_files(self) -> Sequence[str]: ...
    @property
    def tops_files(self) -> Sequence[str]: ...


class Results:
    """What the runs of one results folder have committed when it is opened, or asked first.

    Reads while a run writes: files appear whole and are never changed. Not safe for several
    threads at once. Every method raises ResultsError where a file is damaged or gone.
    """

    def __init__(self, results: Path | str) -> None:
        """A path, or an address on object storage. Raises ResultsError where it holds no run."""
        self._folder = ResultsFolder(results)
        self._unread: list[str] = []
        """What could not be read of late, and why; pyarrow is not told that."""
        self._filesystem = self._folder.filesystem
        if not isinstance(self._folder.root, Path):
            self._filesystem = reading_from(self._folder.store, partial(_note, self._unread))
        slides = batch_names(self._folder)
        if not slides and not manifest_names(self._folder):
            raise ResultsError(
                f"{self._folder} holds no runs. Give the folder that was --out of a submit."
            )
        self._spill = tempfile.TemporaryDirectory(prefix="cvm-batch-query-")
        self._connection = _connect(self._spill.name)
        self._register("slides_all", self._dataset(SLIDES, slides))
        self._connection.execute(_views())
        self._there = {View.SLIDES, View.SLIDES_ALL, View.SLIDE_CLASSES}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give memory and temporary files back. Calling it twice is harmless."""
        self._connection.close()
        self._spill.cleanup()

    def table(self, view: View | str) -> pa.Table:
        """The whole view in memory."""
        return self.query(f"FROM {View(view)}")

    def batches(self, view: View | str) -> pa.RecordBatchReader:
        """The view, some rows at a time: for cells, of which there may be billions."""
        with self._told(view):
            reader: pa.RecordBatchReader = self.relation(view).to_arrow_reader()
            return reader

    def relation(self, view: View | str) -> duckdb.DuckDBPyRelation:
        """The view as a DuckDB relation, which reads when it is asked for rows."""
        self._prepare(View(view))
        return self._connection.sql(f"FROM {View(view)}")

    def query(self, sql: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> pa.Table:
        """What one SELECT (or FROM, WITH, DESCRIBE, SUMMARIZE, EXPLAIN) over the views gives.

        Raises UsageError where the SQL is wrong, or would do anything else.
        """
        with self._told(sql):
            statements = self._connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type not in _READS:
                raise UsageError(
                    "A query reads, and is one statement: begin with SELECT, FROM, WITH, "
                    "DESCRIBE, SUMMARIZE or EXPLAIN."
                )
            try:
                found = self._connection.sql(statements[0], params=parameters or None)
            except duckdb.CatalogException:  # a name that nobody knows, as far as was read
                for view in View:
                    # Finds a word in a string or a comment too: that costs time, and no harm.
                    if re.search(rf"\b{view}\b", sql, re.IGNORECASE):
                        self._prepare(view)
                found = self._connection.sql(sql, params=parameters or None)
            return found.to_arrow_table()

    def cells_of(self, slide: NamesFiles) -> pa.Table:
        """The cells of one slide, by index: opens its files alone."""
        return self._of(slide.slide_id, slide.cells_files, CELLS).sort_by("index")

    def tops_of(self, slide: NamesFiles) -> pa.Table:
        """The top cells of one slide, the most suspicious first: opens its files alone."""
        table = self._of(slide.slide_id, slide.tops_files, TOPS)
        return table.sort_by([("p_primary", "descending"), ("index", "ascending")])

    def _of(self, slide_id: str, files: Sequence[str], schema: pa.Schema) -> pa.Table:
        with self._told(slide_id):
            dataset = self._dataset(schema, files)
            # A file may hold cells of several slides.
            return dataset.to_table(filter=pc.field("slide_id") == slide_id)

    def _prepare(self, view: View) -> None:
        """Register what is read when it is first asked for."""
        if view in self._there:
            return
        if view is View.RUNS:
            self._register("runs", read_runs(self._folder))
        else:
            holdings = self._holdings(f"{view}_files")
            schema = CELLS if view is View.CELLS else TOPS
            files = SharedFiles.of(holdings, schema, self._filesystem)
            self._register(f"_{view}_in_files", files)
            self._register(f"_{view}_holdings", files.holdings())
            self._connection.execute(_VIEW_OF_FILES.format(view=view))
        self._there.add(view)

    def _holdings(self, column: str) -> list[Holding]:
        slides = self._connection.table("slides")
        rows = slides.project(f"slide_id, unnest({column}) AS file").order("file").fetchall()
        return [Holding(slide_id, self._folder.path_of(file)) for slide_id, file in rows]

    def _dataset(self, schema: pa.Schema, files: Sequence[str]) -> ds.FileSystemDataset:
        """Columns that a file of an earlier version lacks are null."""
        paths = map(self._folder.path_of, files)
        fragments = [_FORMAT.make_fragment(path, self._filesystem) for path in paths]
        return ds.FileSystemDataset(fragments, schema, _FORMAT, self._filesystem)

    def _register(self, name: str, data: pa.Table | ds.Dataset) -> None:
        self._connection.register(name, data)

    @contextmanager
    def _told(self, about: str) -> Iterator[None]:
        """Raises UsageError for what is wrong in a query, ResultsError for what is in a file."""
        self._unread.clear()
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        except duckdb.Error as error:
            if _UNREADABLE in str(error):
                raise self._unreadable(error) from error
            told = " ".join(str(error).partition("\n\n")[0].split())
            raise UsageError(f"The query {_short(about)} cannot be answered: {told}") from error

    def _unreadable(self, error: Exception) -> ResultsError:
        why = self._unread[0] if self._unread else error
        return ResultsError(
            f"The results in {self._folder} cannot be read: {why}. `cvm-batch verify` says "
            "which files are damaged or missing."
        )


def _note(unread: list[str], name: str, error: OSError) -> None:
    unread.append(f"{name}: {error.strerror}")


#: What the newest rows name. IS TRUE: else DuckDB makes a join of it, of which it may well keep
#: the side of the cells in memory, as it does not know how many they are.
_VIEW_OF_FILES = """
CREATE VIEW {view} AS
SELECT * EXCLUDE (file)
FROM _{view}_in_files
WHERE ((slide_id, file) IN (FROM _{view}_holdings)) IS TRUE
"""
#: How DuckDB begins to tell what went wrong in a data set.
_UNREADABLE = "reading the stream registered"


def _connect(spill: str) -> duckdb.DuckDBPyConnection:
    """A database in memory that reaches no file but what is too large for memory."""
    connection = duckdb.connect(config={"temp_directory": spill})
    for setting in (
        "python_enable_replacements = false",  # else a query may name a variable of ours
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")
    return connection


def _views() -> str:
    passing = ", ".join(f"'{reason}'" for reason in sorted(PASSING_REASONS))
    text = (resources.files(__package__) / "queries" / "views.sql").read_text()
    return f"{text}\nCREATE MACRO submit_tries_again(reason) AS reason IN ({passing});"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else f"{line[:79]}…")
