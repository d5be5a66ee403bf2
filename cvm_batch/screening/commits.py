"""Collects the rows of slides that have ended, and commits them in batches."""

from __future__ import annotations

import logging
from collections import Counter

from cvm_batch.logs import log_event
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.schemas import Status
from cvm_batch.results.slides import SlideRow, commit_slides
from cvm_batch.screening.summary import NotComplete

_LOG = logging.getLogger(__name__)
#: A crash repeats at most so many finished slides, or this share of the run's time: a short
#: run is committed every few seconds, and a long night does not end in thousands of files.
_MAX_ROWS = 500
_MAX_AGE_SHARE = 0.01
_MIN_AGE_SECONDS, _MAX_AGE_SECONDS = 2.0, 30.0


class Commits:
    """The rows of one run. ``flush`` makes what was added visible, whole batches at a time."""

    def __init__(self, results: ResultsFolder, run: RunName, now: float) -> None:
        self._results = results
        self._run = run
        self._began = now
        self._waiting: list[SlideRow] = []
        self._oldest = 0.0
        self._hurries = False
        self._batches = 0
        self._named: set[str] = set()
        self.by_status: Counter[Status] = Counter()
        self.not_complete: list[NotComplete] = []
        self.classified = 0
        self.unreadable = 0

    def add(self, row: SlideRow, now: float) -> None:
        self._oldest = self._oldest if self._waiting else now
        self._waiting.append(row)
        self._named.update(row.cells_files, row.tops_files)
        self.by_status[row.status] += 1
        self.classified += row.cells_classified or 0
        self.unreadable += row.cells_unreadable or 0
        if row.status is not Status.COMPLETE:
            self.not_complete.append(NotComplete(row.slide_id, row.status, row.reason, row.detail))
        log_event(
            _LOG,
            "slide ended",
            run_id=row.run_id,
            slide_id=row.slide_id,
            slide_identity=row.slide_identity,
            status=row.status,
            reason=row.reason,
            detail=row.detail,
            cells_classified=row.cells_classified,
            cells_unreadable=row.cells_unreadable,
            attempts=row.attempts,
            seconds=row.seconds,
        )

    def flush_if_due(self, now: float) -> None:
        share = _MAX_AGE_SHARE * (now - self._began)
        patience = min(max(share, _MIN_AGE_SECONDS), _MAX_AGE_SECONDS)
        old = bool(self._waiting) and (self._hurries or now - self._oldest >= patience)
        if old or len(self._waiting) >= _MAX_ROWS:
            self.flush()

    def hurry(self) -> None:
        """Commit at once from now on: whoever stops a run may kill it in some seconds."""
        self._hurries = True

    def give_up(self) -> None:
        """Count no longer what could not be committed: who reads the results will not find it."""
        lost = {row.slide_id for row in self._waiting}
        for row in self._waiting:
            self.by_status[row.status] -= 1
            self.classified -= row.cells_classified or 0
            self.unreadable -= row.cells_unreadable or 0
        self.not_complete = [one for one in self.not_complete if one.slide_id not in lost]
        self._waiting.clear()

    def flush(self) -> None:
        """Raises CommitError."""
        if self._waiting:
            commit_slides(self._results, self._run, self._batches, self._waiting)
            self._batches += 1
            self._waiting.clear()

    def remove_superseded(self) -> None:
        """Remove the run's cells and tops files that no committed row names, and what replicas
        that were killed had not finished to write; only while the folder is held."""
        for folder in (self._run.cells_folder, self._run.tops_folder):
            self._results.remove_except(folder, self._named)
        self._results.clear_unfinished()
