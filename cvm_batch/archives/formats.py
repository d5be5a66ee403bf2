"""The registry: which formats there are, and which one takes a path."""

from __future__ import annotations

from pathlib import Path

from cvm_batch.archives.archive import ArchiveFormat, SlideArchive
from cvm_batch.archives.files import identity, reading
from cvm_batch.archives.images import FOLDER_OF_IMAGES, ZIP_OF_IMAGES
from cvm_batch.archives.zarr_archive import ZARR_FOLDER, ZARR_ZIP
from cvm_batch.errors import BadFormatError, ReadError

#: The first that takes a path has it: a ``.zarr.zip`` is a ``.zip`` as well.
FORMATS: tuple[ArchiveFormat, ...] = (ZARR_FOLDER, ZARR_ZIP, FOLDER_OF_IMAGES, ZIP_OF_IMAGES)


def recognise(path: Path) -> ArchiveFormat | None:
    """The format of a path, by its name and what a folder holds. Raises ReadError."""
    with reading(path):
        return next((known for known in FORMATS if known.takes(path)), None)


def open_archive(path: Path) -> SlideArchive:
    """Open a slide of any format. Raises SlideError."""
    return _recognised(path).open(path)


def identity_of(path: Path) -> str:
    """The identity of a slide, also of one that cannot be opened. Raises SlideError."""
    return identity(_recognised(path).files(path))


def _recognised(path: Path) -> ArchiveFormat:
    found = recognise(path)
    if found is not None:
        return found
    if not path.exists():
        raise ReadError(
            f"There is nothing at {path}. Check the path, and that its disk is mounted; a "
            "further submit tries again."
        )
    raise BadFormatError(
        f"{path} is no slide archive: known are {', '.join(known.name for known in FORMATS)}. "
        "Convert it, or leave it out."
    )
