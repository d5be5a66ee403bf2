"""From what a user names to the slides there: archives, folders of them, and manifest tables."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import ArchiveFormat
from cvm_batch.archives.companions import DIGESTS_SUFFIX
from cvm_batch.archives.formats import recognise
from cvm_batch.archives.images.archive import is_image
from cvm_batch.archives.members.base import read_listed
from cvm_batch.archives.places.files import printable
from cvm_batch.archives.places.place import Place, place_of
from cvm_batch.archives.tables.cells import is_table_name
from cvm_batch.archives.tables.slides import ListedSlide, read_slides_table
from cvm_batch.errors import NoSlidesError, SlideError, SlideIdCollisionError, UsageError

_MANIFEST_SUFFIXES = frozenset((".csv", ".parquet"))


class Ignored(NamedTuple):
    """A file or folder that holds no slide."""

    uri: str
    why: str


@dataclass(frozen=True)
class Discovery:
    """What lies under the given inputs."""

    slides: tuple[ListedSlide, ...]
    """Sorted by slide_id, each of which occurs once."""
    ignored: tuple[Ignored, ...]
    """Files and folders that are no slides; hidden ones are not told of."""


def discover(roots: Sequence[str]) -> Discovery:
    """Find the slides in files, folders, manifest tables and addresses on object storage.

    Folders are walked, links followed once. A slide_id is the path relative to its root
    with forward slashes, or a root's own name where that is a slide itself, or what a
    manifest says. Raises UsageError (NoSlidesError for a root that is not there), and
    SlideIdCollisionError.
    """
    slides: dict[str, ListedSlide] = {}
    ignored: list[Ignored] = []
    found: Sequence[ListedSlide]
    for root in map(place_of, roots):
        if is_manifest(root):
            found = read_manifest(root)
        else:
            walk = _Walk(root)
            ignored += walk.ignored
            found = walk.slides
        for slide in found:
            first = slides.setdefault(slide.slide_id, slide)
            if first is not slide:
                if first.address.uri == slide.address.uri:
                    raise SlideIdCollisionError(
                        f"{slide.address.uri} is given twice. Name it once."
                    )
                raise SlideIdCollisionError(
                    f"{first.address.uri} and {slide.address.uri} would both be the slide "
                    f"{slide.slide_id!r}. Give the folder above them as one input, or rename one."
                )
    return Discovery(
        tuple(sorted(slides.values(), key=lambda slide: slide.slide_id)), tuple(sorted(ignored))
    )


def is_manifest(place: Place) -> bool:
    """Whether an input that was named is a table of slides, not a slide. Raises UsageError."""
    suffix = PurePath(place.name).suffix.lower()
    if suffix not in _MANIFEST_SUFFIXES or is_table_name(place.name):
        return False
    with _needed_by_the_run():
        return place.is_file()


def read_manifest(place: Place) -> Sequence[ListedSlide]:
    """The slides that a manifest lists. Raises UsageError."""
    with _needed_by_the_run():
        stamp = place.stamp()
        if stamp is None:
            raise NoSlidesError(f"There is nothing at {place}. Check the path.")
        data = read_listed(place, stamp)
    return read_slides_table(data, place.name, str(place), place.sibling("").uri)


@contextmanager
def _needed_by_the_run() -> Iterator[None]:
    """A manifest is no slide: without it there is no run."""
    try:
        yield
    except SlideError as error:
        raise UsageError(str(error)) from error


class _Folder(NamedTuple):
    """A folder to walk, and its format where it is a slide itself."""

    place: Place
    found: ArchiveFormat | None


class _Walk:
    """One root, walked breadth first."""

    def __init__(self, root: Place) -> None:
        if not _may_be_there(root):
            raise NoSlidesError(
                f"There is nothing at {root}. Check the path, and that its disk is mounted."
            )
        self.slides: list[ListedSlide] = []
        self.ignored: list[Ignored] = []
        self._root = root
        self._walked: dict[tuple[int, int], Place] = {}
        self._folders: deque[_Folder] = deque()
        # Linked folders come last, so that a slide is named after its own folder.
        self._links: deque[_Folder] = deque()
        self._sort([root])
        while self._folders or self._links:
            self._walk((self._folders or self._links).popleft())

    def _walk(self, folder: _Folder) -> None:
        try:
            first = self._first_visit(folder.place)
            places = [] if first else list(_children(folder))
        except SlideError:
            self._add(folder.place)
            return
        if first is not None:
            self._ignore(folder.place, f"a link to {first}, which was walked already")
        elif not places and folder.found is None:
            self._ignore(folder.place, "an empty folder")
        self._sort(places)

    def _first_visit(self, folder: Place) -> Place | None:
        """None, or under which path this folder was walked before."""
        marks = folder.marks
        first = folder if marks is None else self._walked.setdefault(marks, folder)
        return None if first is folder else first

    def _sort(self, places: Sequence[Place]) -> None:
        """Tell slides, folders to walk, what belongs to a slide, and the rest apart."""
        formats: list[tuple[Place, ArchiveFormat | None]] = []
        companions: set[Place] = set()
        for place in places:
            try:
                found = recognise(place)
                if found is not None:
                    companions.update(found.companions(place))
                formats.append((place, found))
            except SlideError:
                # Opening it will say what is wrong: so it ends as a slide that failed,
                # not as one that nobody missed.
                self._add(place)
        for place, found in formats:
            if place not in companions:
                self._sort_one(place, found)

    def _sort_one(self, place: Place, found: ArchiveFormat | None) -> None:
        if found is not None:
            self._add(place)
        if place.is_folder():
            if found is None or found.has_slides_below:
                queue = self._links if place.is_link else self._folders
                queue.append(_Folder(place, found))
        elif found is None:
            self._ignore(place, _why_ignored(place))

    def _add(self, place: Place) -> None:
        name = place.name
        if place != self._root:
            name = place.uri.removeprefix(self._root.uri).strip("/")
        self.slides.append(
            ListedSlide(slide_id=printable(name), address=SlideAddress(uri=place.uri))
        )

    def _ignore(self, place: Place, why: str) -> None:
        self.ignored.append(Ignored(printable(place.uri), why))


def _may_be_there(place: Place) -> bool:
    """Whether something is there, or nobody can tell now: then opening it will say why."""
    try:
        return place.exists()
    except SlideError:
        return True


def _children(folder: _Folder) -> Iterator[Place]:
    """What lies in a folder, save hidden things and the parts of a slide."""
    for child in folder.place.children():
        held = folder.found is not None and folder.found.holds(child.name)
        if not child.name.startswith(".") and (not held or child.is_folder()):
            yield child


def _why_ignored(place: Place) -> str:
    if is_table_name(place.name):
        return "a cells table, with no slide or folder of images of its name beside it"
    if place.name.endswith(DIGESTS_SUFFIX):
        return "recorded digests, with no slide of that name beside them"
    if is_image(place.name):
        return "an image among whole slides: crops belong in a folder of their own"
    if PurePath(place.name).suffix.lower() in _MANIFEST_SUFFIXES:
        return "a table: if it lists slides, name it itself"
    if place.is_file():
        return "not a slide archive of a known format"
    return "neither a file nor a folder, or a link that leads nowhere"
