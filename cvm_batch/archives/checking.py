"""What is known of a slide from outside, held against what its archive gives.

Recorded digests turn a format without checksums of its own into a verified one; a
recorded number of cells shows an export that was cut short.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from threading import Lock

import numpy as np

from cvm_batch import signs
from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import (
    ArchiveFormat,
    ExpectedFrom,
    Integrity,
    SlideArchive,
    SlideInfo,
    TileBlock,
    TileFault,
    check_range,
)
from cvm_batch.archives.companions import DIGESTS_SUFFIX, digests_place
from cvm_batch.archives.members.base import read_listed
from cvm_batch.archives.opening import Opening
from cvm_batch.archives.packing.manifest import MANIFEST_FILE, is_packed
from cvm_batch.archives.places.disk import DiskPlace
from cvm_batch.archives.places.files import changed, identity
from cvm_batch.archives.places.place import OpenFile, Place
from cvm_batch.archives.tables.cells import is_table_name
from cvm_batch.archives.tables.digests import parse_digests
from cvm_batch.errors import BadFormatError, ChecksumMismatchError, Reason

_PIECE_BYTES = 4 << 20


def checked(found: ArchiveFormat, slide: Opening, address: SlideAddress) -> SlideArchive:
    """Open a slide, and watch over what is known of it. Raises SlideError."""
    recorded = _recorded(found, slide, address)
    archive = found.open(slide)
    if recorded is not None:
        archive = _DigestedArchive(archive, slide.place, recorded)
    if address.cells_expected is not None:
        archive = _CountedArchive(archive, slide.place, address.cells_expected)
    return archive


def checked_identity(own: str, place: Place) -> str:
    """A slide's identity together with its recorded digests."""
    stamp = digests_place(place).stamp()
    if stamp is None:
        return own
    return hashlib.sha256(f"{own}\0{identity([stamp])}".encode()).hexdigest()


class _DigestedArchive:
    """Digests all files of a slide before the first tile is handed out."""

    def __init__(self, archive: SlideArchive, place: Place, recorded: Mapping[str, str]) -> None:
        """``recorded``: SHA-256 by name, relative to the folder that ``place`` lies in."""
        self._archive = archive
        self._place = place
        self._recorded = recorded
        #: Of the file that is open now: another one under its name may have the same stamp.
        self._marks = place.marks if place.is_file() else None
        self._verified = False
        self._lock = Lock()
        self.info = self._with_digests(archive.info)

    def describe(self) -> SlideInfo:
        return self._with_digests(self._archive.describe())

    def _with_digests(self, info: SlideInfo) -> SlideInfo:
        return replace(
            info,
            identity=checked_identity(info.identity, self._place),
            integrity=Integrity.VERIFIED,
        )

    def read(self, start: int, stop: int) -> TileBlock:
        with self._lock:
            if not self._verified:
                self._verify()
                self._verified = True
        return self._archive.read(start, stop)

    def _verify(self) -> None:
        for name, digest in self._recorded.items():
            verify_digest(self._place.sibling(name), digest)
        if self._marks is not None and self._marks != self._place.marks:
            raise changed(self._place)

    def close(self) -> None:
        self._archive.close()


class _CountedArchive:
    """Holds the number of tiles against one that was counted elsewhere."""

    def __init__(self, archive: SlideArchive, place: Place, expected: int) -> None:
        """Raises BadFormatError where there are more tiles than can be."""
        self._archive = archive
        self._place = place
        self._expected = expected
        self._present = archive.info.tiles
        self.info = self._as_counted(archive.info)

    def describe(self) -> SlideInfo:
        return self._as_counted(self._archive.describe())

    def _as_counted(self, info: SlideInfo) -> SlideInfo:
        if info.tiles > self._expected:
            raise BadFormatError(
                f"{self._place} holds {info.tiles} tiles, but the manifest expects "
                f"{self._expected} cells. Correct cells_expected, or look for crops of another "
                "slide among them."
            )
        lacking = self._expected - info.tiles
        return replace(
            info,
            tiles=self._expected,
            expected_from=ExpectedFrom.MANIFEST,
            missing=info.missing + lacking,
        )

    def read(self, start: int, stop: int) -> TileBlock:
        check_range(start, stop, self._expected)
        if stop <= self._present:
            return self._archive.read(start, stop)
        lacking = stop - max(start, self._present)
        block = self._archive.read(start, self._present) if start < self._present else None
        return _with_missing(block, start, lacking, self._fault())

    def close(self) -> None:
        self._archive.close()

    def _fault(self) -> TileFault:
        return TileFault(
            Reason.MISSING_TILES,
            f"the manifest expects {self._expected} cells, and the archive has {self._present}",
        )


def _with_missing(block: TileBlock | None, start: int, lacking: int, fault: TileFault) -> TileBlock:
    """``block`` and as many tiles after it that are not there."""
    present = len(block) if block is not None else 0
    blank = np.zeros((1, 1, 3), np.uint8)
    tiles = [*(block.tiles if block is not None else ()), *[blank] * lacking]
    xy = block.xy if block is not None else None
    ids = block.cell_id if block is not None else None
    padded = block.padded if block is not None else None
    faults = dict(block.faults) if block is not None else {}
    readable = block.readable if block is not None else np.empty(0, np.bool_)
    return TileBlock(
        tiles=tiles,
        index=np.arange(start, start + present + lacking, dtype=np.int64),
        xy=None if xy is None else np.vstack([xy, np.full((lacking, 2), np.nan)]),
        cell_id=None if ids is None else [*ids, *[""] * lacking],
        readable=np.append(readable, np.zeros(lacking, np.bool_)),
        faults=faults | {present + i: fault for i in range(lacking)},
        padded=None if padded is None else np.append(padded, np.zeros(lacking, np.bool_)),
    )


def _recorded(
    found: ArchiveFormat, slide: Opening, address: SlideAddress
) -> Mapping[str, str] | None:
    """SHA-256 of every file of the slide, where they are recorded anywhere."""
    place = slide.place
    sidecar = digests_place(place)
    stamp = sidecar.stamp()
    recorded: dict[str, str] = {}
    if stamp is not None:
        recorded |= parse_digests(read_listed(sidecar, stamp), sidecar)
    if address.sha256 is not None:
        name = place.name
        if is_packed(place):
            # The manifest holds the digests of all the others, which are compared on reading.
            verify_digest(place.child(MANIFEST_FILE), address.sha256)
            return recorded or None
        if place.is_folder():
            name = f"{name}/"
        if recorded.setdefault(name, address.sha256) != address.sha256:
            raise ChecksumMismatchError(
                f"The manifest records another digest of {place} than {sidecar} does. Correct the "
                "one that is wrong."
            )
    if not recorded:
        return None
    if unrecorded := next((n for n in _content(found, slide) if n not in recorded), None):
        raise BadFormatError(
            f"{place} has the file {unrecorded!r}, of which no digest is recorded. List every "
            f"file in {place.name}{DIGESTS_SUFFIX} beside it (sha256sum writes it)."
        )
    return recorded


def _content(found: ArchiveFormat, slide: Opening) -> Iterator[str]:
    """The slide's own files, by names relative to the folder that it lies in."""
    prefix = f"{slide.place.name}/" if slide.place.is_folder() else ""
    for stamp in found.files(slide):
        if not is_table_name(stamp.name):
            yield prefix + stamp.name


def verify_digest(place: Place, recorded: str) -> None:
    """Raises ChecksumMismatchError, also where the file is not there."""
    if not place.is_file():
        raise ChecksumMismatchError(
            f"{place} is not there, though its digest is recorded. Copy the slide again."
        )
    with place.on_disk() as path, closing(DiskPlace.of(path).open()) as file:
        found = sha256_of(file)
    if found != recorded:
        raise ChecksumMismatchError(
            f"{place} has the SHA-256 {found}, recorded is {recorded}. It is damaged or was "
            "exchanged: copy it again from its source."
        )


def sha256_of(file: OpenFile, sign: Callable[[], None] = lambda: None) -> str:
    """64 hex digits. ``sign`` is called between pieces. Raises ReadError."""
    digest = hashlib.sha256()
    for offset in range(0, file.opened.size, _PIECE_BYTES):
        sign()
        digest.update(file.read_at(offset, _PIECE_BYTES))
        signs.note()
    return digest.hexdigest()
