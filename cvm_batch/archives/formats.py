"""The registry: which formats there are, and which one takes a place."""

from __future__ import annotations

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import ArchiveFormat, SlideArchive
from cvm_batch.archives.checking import checked, checked_identity
from cvm_batch.archives.images.archive import FOLDER_OF_IMAGES, TAR_OF_IMAGES, ZIP_OF_IMAGES
from cvm_batch.archives.opening import PLAIN, Opening, OpenOptions
from cvm_batch.archives.places.place import Place, place_of
from cvm_batch.archives.wsi.archive import WHOLE_SLIDE
from cvm_batch.archives.zarr.archive import ZARR_FOLDER, ZARR_ZIP
from cvm_batch.errors import BadFormatError, ReadError

#: The first that takes a place has it: a ``.zarr.zip`` is a ``.zip`` as well.
FORMATS: tuple[ArchiveFormat, ...] = (
    ZARR_FOLDER,
    ZARR_ZIP,
    WHOLE_SLIDE,
    FOLDER_OF_IMAGES,
    ZIP_OF_IMAGES,
    TAR_OF_IMAGES,
)


def recognise(place: Place) -> ArchiveFormat | None:
    """The format of a place, by its name and what a folder holds. Raises ReadError."""
    return next((known for known in FORMATS if known.takes(place)), None)


def open_archive(address: SlideAddress, options: OpenOptions = PLAIN) -> SlideArchive:
    """Open a slide of any format. Raises SlideError, or UsageError for a senseless address."""
    slide = opening(address, options)
    return checked(format_of(slide.place), slide, address)


def identity_of(address: SlideAddress, options: OpenOptions = PLAIN) -> str:
    """The identity of a slide, also of one that cannot be opened. Raises SlideError."""
    slide = opening(address, options)
    return checked_identity(format_of(slide.place).identity(slide), slide.place)


def opening(address: SlideAddress, options: OpenOptions) -> Opening:
    return Opening(
        place=place_of(address.uri),
        cells=place_of(address.cells_uri) if address.cells_uri else None,
        options=options,
    )


def format_of(place: Place) -> ArchiveFormat:
    """The format of a slide that must be there. Raises ReadError, BadFormatError."""
    found = recognise(place)
    if found is not None:
        return found
    if not place.exists():
        raise ReadError(
            f"There is nothing at {place}. Check the path, and that its disk is mounted; a "
            "further submit tries again."
        )
    raise BadFormatError(
        f"{place} is no slide archive: known are {', '.join(known.name for known in FORMATS)}. "
        "Convert it, or leave it out."
    )
