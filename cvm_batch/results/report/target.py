"""The folder that a report is written to, in a results folder or by itself."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath

from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.stores.disk import TEMPORARY

#: A file's name within the report, and its content.
Page = tuple[str, bytes]

#: On object storage each write takes its time, most of it spent waiting.
_WRITES_AT_ONCE = 16
#: What an earlier report may have left in the folder; nothing else is ever removed from it.
_OURS = re.compile(
    r"(?:index|drift|(?:worklist|failures|quality-control)(?:-\d+)?)\.html"
    r"|slides/(?:slide-)?[0-9a-f]{16}\.html"
)


class Target:
    """Writes pages, each whole; a power cut may undo that, as they can be made again."""

    def __init__(self, root: Path | str, folder: PurePosixPath) -> None:
        self._root = ResultsFolder(root)
        self._folder = folder

    def address(self, name: str) -> str:
        return f"{self._root}/{self._folder / name}"

    def prepare(self) -> None:
        """Raises ResultsError where nothing can be written."""
        self._root.prepare()

    def put(self, pages: Iterable[Page]) -> dict[str, int]:
        """Write pages, in any order; return their sizes. Raises CommitError."""
        if isinstance(self._root.root, Path):
            return dict(map(self._put, pages))
        written: dict[str, int] = {}
        left = iter(pages)
        with ThreadPoolExecutor(_WRITES_AT_ONCE) as pool:
            while some := list(islice(left, _WRITES_AT_ONCE)):
                written.update(pool.map(self._put, some))
        return written

    def remove_older(self, written: Collection[str]) -> None:
        """Remove pages of an older report that this one lacks."""
        there = {
            PurePosixPath(name).relative_to(self._folder).as_posix(): name
            for name in self._root.names(self._folder, deep=True)
        }
        gone = [there[name] for name in there if name not in written and _OURS.fullmatch(name)]
        self._root.remove(gone)

    def tidy(self) -> None:
        """Leave nothing but the report behind where it lies by itself."""
        if isinstance(self._root.root, Path) and self._folder == PurePosixPath():
            with suppress(OSError):
                (self._root.root / TEMPORARY).rmdir()

    def _put(self, page: Page) -> tuple[str, int]:
        name, content = page
        self._root.replace_soon(self._folder / name, content)
        return name, len(content)
