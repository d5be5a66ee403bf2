"""From the paths that a user gives to the slides under them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cvm_batch.archives.archive import ArchiveFormat
from cvm_batch.archives.cells_table import is_table
from cvm_batch.archives.files import is_folder, printable
from cvm_batch.archives.formats import recognise
from cvm_batch.errors import NoSlidesError, SlideError, SlideIdCollisionError


class SlidePath(NamedTuple):
    slide_id: str
    path: Path
    """Absolute."""


@dataclass(frozen=True)
class Discovery:
    """What lies under the given paths."""

    slides: tuple[SlidePath, ...]
    """Sorted by slide_id, each of which occurs once."""
    ignored: tuple[tuple[Path, str], ...]
    """Files and folders that are no slides, and why; hidden ones are not told of."""


def discover(roots: Sequence[Path]) -> Discovery:
    """Find the slides in files and folders. Folders are walked, links followed once.

    A slide_id is the path relative to its root with forward slashes, or a root's own name
    where that is a slide itself. Raises NoSlidesError for a root that is not there, and
    SlideIdCollisionError.
    """
    slides: dict[str, SlidePath] = {}
    ignored: list[tuple[Path, str]] = []
    for root in roots:
        if not root.exists():
            raise NoSlidesError(
                f"There is nothing at {root}. Check the path, and that its disk is mounted."
            )
        # Absolute, for replicas have working directories of their own.
        walk = _Walk(Path(os.path.abspath(root)))
        ignored += walk.ignored
        for slide in walk.slides:
            if slide.slide_id in slides:
                raise SlideIdCollisionError(
                    f"{slides[slide.slide_id].path} and {slide.path} would both be the slide "
                    f"{slide.slide_id!r}. Give the folder above them as one input, or rename one."
                )
            slides[slide.slide_id] = slide
    return Discovery(tuple(sorted(slides.values())), tuple(sorted(ignored)))


class _Folder(NamedTuple):
    """A folder to walk, and its format where it is a slide itself."""

    path: Path
    found: ArchiveFormat | None


class _Walk:
    """One root, walked breadth first."""

    def __init__(self, root: Path) -> None:
        self.slides: list[SlidePath] = []
        self.ignored: list[tuple[Path, str]] = []
        self._root = root
        self._walked: dict[tuple[int, int], Path] = {}
        self._folders: deque[_Folder] = deque()
        # Linked folders come last, so that a slide is named after its own folder.
        self._links: deque[_Folder] = deque()
        self._sort([root])
        while self._folders or self._links:
            self._walk((self._folders or self._links).popleft())

    def _walk(self, folder: _Folder) -> None:
        try:
            first = self._first_visit(folder.path)
            paths = [] if first else sorted(_children(folder))
        except OSError:
            self._add(folder.path)
            return
        if first is not None:
            self.ignored.append((folder.path, f"a link to {first}, which was walked already"))
        elif not paths and folder.found is None:
            self.ignored.append((folder.path, "an empty folder"))
        self._sort(paths)

    def _first_visit(self, folder: Path) -> Path | None:
        """None, or under which path this folder was walked before."""
        status = folder.stat()
        first = self._walked.setdefault((status.st_dev, status.st_ino), folder)
        return None if first is folder else first

    def _sort(self, paths: Sequence[Path]) -> None:
        """Tell slides, folders to walk, what belongs to a slide, and the rest apart."""
        rest: list[Path] = []
        companions: set[Path] = set()
        for path in paths:
            try:
                found = recognise(path)
            except SlideError:
                # Opening it will say what is wrong: so it ends as a slide that failed,
                # not as one that nobody missed.
                self._add(path)
                continue
            if found is not None:
                self._add(path)
                companions.update(found.companions(path))
            if os.path.isdir(path):
                if found is None or found.has_slides_below:
                    queue = self._links if path.is_symlink() else self._folders
                    queue.append(_Folder(path, found))
            elif found is None:
                rest.append(path)
        self.ignored += [(path, _why_ignored(path)) for path in rest if path not in companions]

    def _add(self, path: Path) -> None:
        own = path == self._root
        name = path.name if own else path.relative_to(self._root).as_posix()
        self.slides.append(SlidePath(printable(name), path))


def _children(folder: _Folder) -> Iterator[Path]:
    """What lies in a folder, save hidden things and the parts of a slide."""
    with os.scandir(folder.path) as entries:
        for entry in entries:
            held = folder.found is not None and folder.found.holds(entry.name)
            if not entry.name.startswith(".") and (not held or is_folder(entry)):
                yield folder.path / entry.name


def _why_ignored(path: Path) -> str:
    if is_table(path):
        return "a cells table, with no folder or .zip of images of its name beside it"
    if path.is_file():
        return "not a slide archive of a known format"
    return "neither a file nor a folder, or a link that leads nowhere"
