"""What a results folder holds of one slide."""

from __future__ import annotations

from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from cvm_batch.errors import ResultsError
from cvm_batch.results.audit.runs import run_of
from cvm_batch.results.erasing.tables import slides_in
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.slides import BATCH_PATH, all_rows, batch_names

_FILES = ("cells_files", "tops_files")


class Holdings:
    """All that is there of one slide, found without changing anything.

    Raises ResultsError where a file that may hold something of it cannot be read.
    """

    def __init__(self, results: ResultsFolder, slide_id: str) -> None:
        self.slide_id = slide_id
        self._results = results
        names = {results.path_of(name): name for name in batch_names(results)}
        rows = all_rows(results, ["slide_id", "uri", *_FILES, BATCH_PATH])
        is_mine = pc.equal(rows["slide_id"], slide_id)
        found = rows.filter(is_mine)
        self.rows = found.num_rows
        self.uris = set(found["uri"].to_pylist())
        self.batches = sorted({names[path] for path in found[BATCH_PATH].to_pylist()})
        """Slides batches that have rows of it."""
        mine, others = _files(found), _files(rows.filter(pc.invert(is_mine)))
        there = {*results.names("cells", deep=True), *results.names("tops", deep=True)}
        # A driver that was killed has committed some of a lease's slides: their file holds cells
        # of the others, too.
        unnamed = {name for name in (others - mine) & there if slide_id in slides_in(results, name)}
        self.shared = sorted((mine & others & there) | unnamed)
        """Files that other slides' rows name as well, or alone."""
        left = there - mine - others
        self.own = sorted((mine - others) & there) + sorted(filter(self._is_of_it, left))
        """Files of its own, also those of attempts that no row names."""

    @cached_property
    def runs(self) -> set[str]:
        return {run_of(name) for name in self.batches}

    def __bool__(self) -> bool:
        return bool(self.batches or self.shared or self.own)

    def _is_of_it(self, name: str) -> bool:
        """Whether a file that no row names holds cells of the slide, or may."""
        try:
            return self.slide_id in slides_in(self._results, name)
        except ResultsError:
            return True  # damaged, and nobody needs it


def _files(rows: pa.Table) -> set[str]:
    """The files that rows of the slides table name."""
    return {name for column in _FILES for name in pc.list_flatten(rows[column]).to_pylist()}
