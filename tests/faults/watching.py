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
    """A cells file, and what of one slide is in it."""

    run_id: str
    lease: int
    slide_id: str

    @classmethod
    def all_in(cls, path: Path) -> dict[CellsFile, int]:
        """How many cells of each slide a file holds."""
        slides = pq.read_table(path, columns=["slide_id"], partitioning=None)["slide_id"]
        found = Counter(slides.to_pylist())
        return {cls.of(path, slide_id): cells for slide_id, cells in found.items()}

    @classmethod
    def of(cls, path: Path, slide_id: str) -> CellsFile:
        _, lease, _ = path.stem.split("-")
        return cls(path.parent.name, int(lease), slide_id)


@dataclass
class Watch:
    """What has appeared so far."""

    results: Path
    seen: set[CellsFile] = field(default_factory=set)
    cells: Counter[str] = field(default_factory=Counter)
    """Classified, by run_id."""
    repeated: list[CellsFile] = field(default_factory=list)
    """Of slides that had a complete row already, and that were classified again since."""
    _read: set[Path] = field(default_factory=set)
    _standing: dict[str, set[CellsFile]] = field(default_factory=dict)

    def look(self) -> None:
        """Cells before rows: a row that is there afterwards may have come after its cells."""
        for path in (self.results / "cells").glob("*/*/*.parquet"):
            if path in self._read:
                continue
            self._read.add(path)
            with suppress(FileNotFoundError):  # superseded, and removed at this moment
                for file, cells in CellsFile.all_in(path).items():
                    self.seen.add(file)
                    self.cells[file.run_id] += cells
                    if self._is_repetition(file):
                        self.repeated.append(file)
        for path in (self.results / "slides").rglob("*.parquet"):
            if path not in self._read:
                self._read.add(path)
                rows = pq.read_table(
                    path, columns=["slide_id", "cells_files"], partitioning=None
                ).to_pylist()
                for row in rows:
                    names = (self.results / name for name in row["cells_files"])
                    files = {CellsFile.of(name, row["slide_id"]) for name in names}
                    self._standing |= {row["slide_id"]: files} if files else {}

    def _is_repetition(self, file: CellsFile) -> bool:
        """False for what was under way before the slide was committed, and came too late."""
        standing = self._standing.get(file.slide_id)
        if standing is None or file in standing:
            return False
        if file.run_id < min(named.run_id for named in standing):
            return False
        return not any(
            named.run_id == file.run_id and file.lease < named.lease for named in standing
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
