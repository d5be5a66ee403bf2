"""Reads a slide to its last tile, and compares every checksum that it has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import Integrity
from cvm_batch.archives.checking import verify_digest
from cvm_batch.archives.formats import open_archive, opening
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.archives.packing.manifest import read_manifest
from cvm_batch.errors import InputChangedError

#: Tiles read at once where a slide stores them one by one.
_BLOCK_TILES = 256


@dataclass(frozen=True, kw_only=True)
class SlideVerdict:
    """What reading a whole slide showed, if nothing spoke against the slide as a whole."""

    tiles: int
    unreadable: int
    details: tuple[str, ...]
    """What was wrong with the first few of those."""
    integrity: Integrity
    """Whether there was a checksum to compare; without one, it decodes, and that is all."""


def verify_slide(address: SlideAddress, options: OpenOptions) -> SlideVerdict:
    """Raises SlideError: ChecksumMismatchError where a checksum differs."""
    place = opening(address, options).place
    if place.is_folder() and (manifest := read_manifest(place)) is not None:
        for name, file in manifest.files.items():
            if place.child(name).is_file():  # what is not there shows as missing tiles
                verify_digest(place.child(name), file.sha256)
    unreadable = 0
    details: list[str] = []
    with closing(open_archive(address, options)) as archive:
        info = archive.info
        step = info.chunk_tiles if info.chunk_tiles > 1 else _BLOCK_TILES
        for start, stop in _ranges(info.tiles, step):
            block = archive.read(start, stop)
            unreadable += int((~block.readable).sum())
            details += [fault.detail for _, fault in sorted(block.faults.items())][:3]
            del details[3:]
        if archive.describe().identity != info.identity:
            raise InputChangedError(
                f"{address.uri} changed while it was read. Verify it again once nothing writes "
                "to it."
            )
    return SlideVerdict(
        tiles=info.tiles,
        unreadable=unreadable,
        details=tuple(details),
        integrity=info.integrity,
    )


def _ranges(tiles: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, tiles, step):
        yield start, min(start + step, tiles)
