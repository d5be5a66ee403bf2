"""A slide's files beyond their stamps: when they came, and what they hold."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from typing import NamedTuple

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import ArchiveFormat
from cvm_batch.archives.checking import sha256_of
from cvm_batch.archives.companions import digests_place
from cvm_batch.archives.formats import format_of, identity_of, opening
from cvm_batch.archives.opening import PLAIN, Opening, OpenOptions
from cvm_batch.archives.places.files import FileStamp, as_slide_error, changed
from cvm_batch.archives.places.names import encode
from cvm_batch.archives.places.place import Place
from cvm_batch.errors import InputChangedError, ReadError, SlideError, UsageError
from cvm_batch.threads import Sign, in_threads

#: Slides that are read at once: of a share or a store, part of that time is waiting.
_AT_ONCE = 8
#: And those that are read meanwhile, while one takes hours.
_AHEAD = 1000
#: A disk that gives nothing for so long does not answer. To list half a million files takes
#: minutes, not more.
_PATIENCE_SECONDS = 600.0


def changed_at(address: SlideAddress, options: OpenOptions = PLAIN) -> float:
    """When the newest of a slide's files was written, or came to where it is.

    Seconds since the epoch, by the clock of whoever serves them; 0 where that does not tell.
    Raises SlideError.
    """
    slide = opening(address, options)
    found = format_of(slide.place)
    try:
        stamps = list(found.files(slide))
        if (recorded := digests_place(slide.place).stamp()) is not None:
            stamps.append(recorded)
    except InputChangedError:  # a name that was listed and is gone: somebody writes right now
        return time.time()
    with suppress(SlideError):  # a table that has not come yet does not make the rest older
        stamps += [stamp for _, stamp in found.tables(slide)]
    return max((stamp.changed_ns for stamp in stamps), default=0) / 1e9


class Content(NamedTuple):
    """What a slide's files hold, and as which they were read."""

    identity: str
    """SHA-256 over their names and contents; of a packed slide its own digest. The same wherever
    they lie, and however old they are."""
    stamps: str
    """The slide's identity by its files' stamps."""


def contents(
    addresses: Iterable[SlideAddress],
    options: OpenOptions = PLAIN,
    waiting: Callable[[], None] = lambda: None,
) -> Generator[Content | SlideError, None, None]:
    """Of slides, in the order given; all of each is read, several at once.

    ``waiting`` is called about once a second, and may raise to end it all. Closing the generator
    ends the reading; use `contextlib.closing`. Raises UsageError.
    """

    def read(address: SlideAddress, sign: Sign) -> Content | SlideError:
        try:
            return content_of(address, options, sign)
        except UsageError:  # of the run, not of this slide
            raise
        except Exception as error:
            return as_slide_error(error, address.uri)

    return in_threads(
        read,
        addresses,
        threads=_AT_ONCE,
        ahead=_AHEAD,
        waiting=waiting,
        patience=_PATIENCE_SECONDS,
        late=lambda address: ReadError(
            f"{address.uri}: nothing of it could be read for {_PATIENCE_SECONDS:g} s. Check that "
            "its disk answers; a further submit tries again."
        ),
    )


def content_of(
    address: SlideAddress,
    options: OpenOptions = PLAIN,
    sign: Sign = lambda: None,
) -> Content:
    """``sign`` is called every few megabytes, and may raise. Raises SlideError."""
    stamps = identity_of(address, options)
    sign()
    slide = opening(address, options)
    identity = _identity(format_of(slide.place), slide, sign)
    sign()
    if identity_of(address, options) != stamps:
        raise changed(address.uri)
    return Content(identity, stamps)


def _identity(found: ArchiveFormat, slide: Opening, sign: Sign) -> str:
    own = found.digest(slide)
    recorded = digests_place(slide.place)
    if own is not None and not recorded.is_file():
        return own
    digest = hashlib.sha256()
    for name, place, stamp in _files(found, slide, sign):
        with closing(place.open(stamp)) as file:
            digest.update(encode(f"{name}\0{sha256_of(file, sign)}\0"))
            file.check()
    return digest.hexdigest()


def _files(
    found: ArchiveFormat, slide: Opening, sign: Sign
) -> Iterator[tuple[str, Place, FileStamp]]:
    """All files of a slide, by names that do not say where it lies."""
    locate = slide.place.child if slide.place.is_folder() else slide.place.sibling
    files = found.files(slide)
    sign()
    for stamp in files:
        yield stamp.name, locate(stamp.name), stamp
    for place, stamp in found.tables(slide):
        yield place.name, place, stamp
    recorded = digests_place(slide.place)
    if (listed := recorded.stamp()) is not None:
        yield recorded.name, recorded, listed
