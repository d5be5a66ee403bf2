"""Files beside a slide that belong to it: its cells table and its recorded digests."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePath

from cvm_batch.archives.opening import Opening
from cvm_batch.archives.places.files import FileStamp, gone
from cvm_batch.archives.places.place import Place
from cvm_batch.archives.tables.cells import TableKind, names_beside
from cvm_batch.errors import BadFormatError

#: After the slide's whole name: digests as `sha256sum` writes them.
DIGESTS_SUFFIX = ".sha256"
#: Of crops and of whole slides alike.
TIFF_SUFFIXES = (".tif", ".tiff")
#: Files that are whole slides by their name alone.
WSI_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".dcm")


def tables_of(slide: Opening, kind: TableKind) -> list[tuple[Place, FileStamp]]:
    """The cells tables that lie beside a slide, or the one that its manifest names.

    Raises BadFormatError where that one is not there.
    """
    if slide.cells is None:
        beside = [slide.place.sibling(name) for name in table_names(slide.place, kind)]
        return [(place, stamp) for place in beside if (stamp := place.stamp()) is not None]
    stamp = slide.cells.stamp()
    if stamp is None:
        raise BadFormatError(
            f"There is no cells table at {slide.cells}, which the manifest names for "
            f"{slide.place}. Put it there, or correct cells_uri."
        )
    return [(slide.cells, stamp)]


def table_names(place: Place, kind: TableKind) -> tuple[str, ...]:
    """How a table beside ``place`` may be named. A folder's stem is its whole name."""
    stem = place.name if place.is_folder() else PurePath(place.name).stem
    return names_beside(stem, of=kind)


def digests_place(place: Place) -> Place:
    """Where the recorded digests of a slide would be."""
    return place.sibling(place.name + DIGESTS_SUFFIX)


def companions(place: Place, kind: TableKind | None) -> list[Place]:
    """Where files beside a slide would be that belong to it."""
    tables = table_names(place, kind) if kind else ()
    return [digests_place(place), *map(place.sibling, tables)]


def are_slides(names: Collection[str]) -> bool:
    """Whether a folder's files are whole slides, and images among them no crops.

    TIFFs are if one of them has a cells table of its own, which no crop has. Where another
    has none, it must not turn them all into crops.
    """
    return any(
        name.lower().endswith(WSI_SUFFIXES)
        or (
            name.lower().endswith(TIFF_SUFFIXES)
            and any(
                table in names for table in names_beside(PurePath(name).stem, of=TableKind.SLIDE)
            )
        )
        for name in names
    )


def stamp_present(place: Place) -> FileStamp:
    """The stamp of a file that must be there. Raises InputChangedError or ReadError."""
    stamp = place.stamp()
    if stamp is None:
        raise gone(place)
    return stamp
