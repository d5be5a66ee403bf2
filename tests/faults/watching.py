"""Watches a results folder while a run writes to it, to see what is gone again at its end."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

_EVERY_SECONDS = 0.1


@dataclass(frozen=True)
class CellsFile:
    """What the name of a cells file says."""

    run_id: str
    slide: str
    """The digest of its slide_id."""
    start: int
    attempt: int

    @classmethod
    def of(cls, path: Path) -> CellsFile:
        slide, start, attempt = path.stem.split("-")
        return cls(path.parent.name, slide, int(start), int(attempt))


@dataclass
class Watch:
    """What has appeared so far."""

    results: Path
    seen: set[CellsFile] = field(default_factory=set)
    cells: Counter[str] = field(default_factory=Counter)
    """Classified, by run_id."""
    repeated: list[CellsFile] = field(default_factory=list)
    """Of slides that had a complete row already, and that were classified again since."""
    _batches: set[Path] = field(default_factory=set)
    _standing: dict[str, set[CellsFile]] = field(default_factory=dict)

    def look(self) -> None:
        """Cells before rows: a row that is there afterwards may have come after its cells."""
        for path in (self.results / "cells").glob("*/*/*.parquet"):
            file = CellsFile.of(path)
            if file not in self.seen:
                with suppress(FileNotFoundError):  # superseded, and removed at this moment
                    self.cells[file.run_id] += pq.read_metadata(path).num_rows
                self.seen.add(file)
                if self._is_repetition(file):
                    self.repeated.append(file)
        for path in (self.results / "slides").rglob("*.parquet"):
            if path not in self._batches:
                self._batches.add(path)
                for names in pq.read_table(path, partitioning=None)["cells_files"].to_pylist():
                    files = {CellsFile.of(self.results / name) for name in names}
                    self._standing |= {file.slide: files for file in files}

    def _is_repetition(self, file: CellsFile) -> bool:
        """False for what was under way before the slide was committed, and came too late."""
        standing = self._standing.get(file.slide)
        if standing is None:
            return False
        if file.run_id < min(named.run_id for named in standing):
            return False
        return not any(
            (named.run_id, named.start) == (file.run_id, file.start)
            and file.attempt <= named.attempt
            for named in standing
        )


@contextmanager
def watching(results: Path) -> Iterator[Watch]:
    """A watch that looks many times a second."""
    watch, ended = Watch(results), threading.Event()

    def keep_looking() -> None:
        while not ended.wait(_EVERY_SECONDS):
            watch.look()

    thread = threading.Thread(target=keep_looking, name="watch")
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()
    watch.look()
