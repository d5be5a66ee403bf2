"""Writes what a lease's parts hold, several parts to a file, beside what is still being read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from cvm_batch import signs
from cvm_batch.results.cells import PartFiles
from cvm_batch.results.layout import lease_file
from cvm_batch.screening.tally import PartTally
from cvm_batch.screening.work import PartOutcome

#: What waits for its file. Larger files gain nothing more, and what waits is lost with a replica.
_FILE_BYTES = 16 * 2**20

Written = dict[PartTally, PartOutcome]


class Finishing:
    """The parts of one lease whose tiles are all counted."""

    def __init__(self, lease: int, files: PartFiles, pool: ThreadPoolExecutor) -> None:
        self._lease = lease
        self._files = files
        self._pool = pool
        self._added: set[PartTally] = set()
        self._waiting: list[PartTally] = []
        self._waiting_bytes = 0
        self._writing: list[Future[Written]] = []

    def add(self, tally: PartTally) -> None:
        """A part that changes no more. Adding it twice is harmless."""
        if tally in self._added:
            return
        self._added.add(tally)
        # A slide's parts never share a file: one of them may be superseded.
        if any(tally.part.slide == other.part.slide for other in self._waiting):
            self._write()
        self._waiting.append(tally)
        self._waiting_bytes += tally.held_bytes
        if self._waiting_bytes >= _FILE_BYTES:
            self._write()

    def outcomes(self) -> Written:
        """Of all parts, once their files are committed. Raises CommitError."""
        self._write()
        return {tally: one for future in self._writing for tally, one in future.result().items()}

    def _write(self) -> None:
        if self._waiting:
            name = lease_file(self._lease, len(self._writing))
            self._writing.append(self._pool.submit(_write, self._files, name, self._waiting))
        self._waiting, self._waiting_bytes = [], 0


def _write(files: PartFiles, name: str, tallies: Sequence[PartTally]) -> Written:
    found = {tally: cells for tally in tallies if (cells := tally.found()) is not None}
    cells_file = tops_file = None
    if found:
        cells_file = files.write_cells(name, [*found.values()])
        signs.note()
        tops_file = files.write_tops(name, [*found.values()])
    signs.note()
    outcomes = {
        tally: tally.outcome(cells_file=cells_file, tops_file=tops_file)
        if tally in found
        else tally.outcome()
        for tally in tallies
    }
    for tally in tallies:
        tally.forget()  # a lease of small slides would hold the tiles of hundreds to its end
    return outcomes
