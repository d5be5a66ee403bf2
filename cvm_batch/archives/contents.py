"""A slide's files beyond their stamps: what they hold, and when they came."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import ArchiveFormat
from cvm_batch.archives.checking import sha256_of
from cvm_batch.archives.companions import digests_place
from cvm_batch.archives.formats import format_of, opening
from cvm_batch.archives.opening import PLAIN, Opening, OpenOptions
from cvm_batch.archives.places.names import encode
from cvm_batch.archives.places.place import Place


def changed_at(address: SlideAddress, options: OpenOptions = PLAIN) -> float:
    """When the newest of a slide's files was written, or came to where it is.

    Seconds since the epoch, by the clock of whoever serves them; 0 where that does not tell.
    Raises SlideError.
    """
    slide = opening(address, options)
    stamps = list(format_of(slide.place).stamps(slide))
    recorded = digests_place(slide.place).stamp()
    if recorded is not None:
        stamps.append(recorded)
    return max((stamp.changed_ns for stamp in stamps), default=0) / 1e9


def content_identity_of(address: SlideAddress, options: OpenOptions = PLAIN) -> str:
    """An identity of what a slide's files hold, wherever they lie and however old they are.

    All of each is read; a packed slide's own digest says as much already. Raises SlideError.
    """
    slide = opening(address, options)
    found = format_of(slide.place)
    recorded = digests_place(slide.place)
    own = found.digest(slide)
    if own is not None and not recorded.is_file():
        return own
    digest = hashlib.sha256()
    for name, place in _files(found, slide):
        digest.update(encode(f"{name}\0{sha256_of(place)}\0"))
    if recorded.is_file():
        digest.update(encode(f"{recorded.name}\0{sha256_of(recorded)}\0"))
    return digest.hexdigest()


def _files(found: ArchiveFormat, slide: Opening) -> Iterator[tuple[str, Place]]:
    """All files of a slide, by names that do not say where it lies."""
    locate = slide.place.child if slide.place.is_folder() else slide.place.sibling
    for stamp in found.files(slide):
        yield stamp.name, locate(stamp.name)
    for place, _ in found.tables(slide):
        yield place.name, place
