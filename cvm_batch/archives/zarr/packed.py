"""Packed slides: zarr whose manifest tells its own files from lost, damaged or foreign ones.

A chunk ends with its CRC-32C, which decoding compares with what is in front of it; that
these four bytes are also those of the manifest shows that it is this slide's chunk, of
this place. Metadata are compared by their SHA-256.
"""

from __future__ import annotations

import hashlib

import pyarrow as pa

from cvm_batch.archives.members.base import FolderMembers, Members
from cvm_batch.archives.opening import Opening
from cvm_batch.archives.packing.manifest import (
    MANIFEST_FILE,
    PackedFile,
    PackManifest,
    read_manifest,
)
from cvm_batch.archives.places.files import Listing
from cvm_batch.archives.places.place import Place
from cvm_batch.archives.zarr.codecs import CHECKSUM_BYTES
from cvm_batch.errors import BadFormatError, ChecksumMismatchError, OverLimitError


def folder_members(place: Place) -> Members:
    """The files of a zarr folder, packed or not. Raises SlideError."""
    members = FolderMembers(place, deep=True)
    at = members.names.find(MANIFEST_FILE)
    # As listed: so the same listing, later on, is the same manifest.
    manifest = None if at is None else read_manifest(place, members.opened.stamp(at))
    return members if manifest is None else PackedMembers(members, manifest)


def packed_digest(slide: Opening) -> str | None:
    """The manifest's digest, of a packed slide that has all its files.

    None for any other: of a slide that lacks files, those that are there tell whether
    somebody has brought the others. Raises SlideError where its files cannot be listed.
    """
    try:
        manifest = read_manifest(slide.place)
    except (BadFormatError, ChecksumMismatchError, OverLimitError):
        return None  # opening it says what is wrong
    if manifest is None or not _is_whole(manifest, slide.place.list_files(deep=True)):
        return None
    return manifest.digest


class PackedMembers(FolderMembers):
    """The files of a packed slide; each `read` is compared with the manifest."""

    def __init__(self, folder: FolderMembers, manifest: PackManifest) -> None:
        """``folder``: with its sub-folders. Raises ChecksumMismatchError where metadata are
        missing."""
        super().__init__(folder.place, opened=folder.opened)
        self._manifest = manifest
        self._refuse_lost_metadata()

    @property
    def tiles(self) -> int:
        """As many as were packed."""
        return self._manifest.tiles

    @property
    def digest(self) -> str | None:
        """As `packed_digest`."""
        return self._manifest.digest if _is_whole(self._manifest, self.opened) else None

    def read(self, position: int) -> bytes:
        name = self.names[position]
        recorded = self._manifest.files.get(name)
        if recorded is None:
            raise self._mismatch(name, "is not among the files that were packed")
        data = super().read(position)
        if len(data) != recorded.size:
            raise self._mismatch(name, f"has {len(data)} bytes, of {recorded.size}")
        if not _is_recorded(data, recorded):
            raise self._mismatch(name, "is not what was packed: its checksum is another")
        return data

    def read_at(self, position: int, offset: int, size: int) -> bytes:
        return self.read(position)[offset : offset + size]

    def _refuse_lost_metadata(self) -> None:
        """Without them, nobody would miss a whole array: all tiles would seem readable."""
        metadata = [name for name, file in self._manifest.files.items() if file.crc32c is None]
        for name in metadata:
            if name not in self.names:
                raise self._mismatch(name, "is not there")

    def _mismatch(self, name: str, what: str) -> ChecksumMismatchError:
        return ChecksumMismatchError(
            f"{name!r} in {self.place} {what}, by its {MANIFEST_FILE}. Copy the archive again "
            "from its source."
        )


def _is_recorded(data: bytes, recorded: PackedFile) -> bool:
    if recorded.crc32c is None:
        return hashlib.sha256(data).hexdigest() == recorded.sha256
    return int.from_bytes(data[-CHECKSUM_BYTES:], "little") == recorded.crc32c


def _is_whole(manifest: PackManifest, listing: Listing) -> bool:
    """Whether all files of a packed slide are there, as far as sizes show."""
    positions = listing.names.positions(pa.array(list(manifest.files), pa.large_string()))
    if (positions < 0).any():
        return False
    sizes = listing.size[positions].tolist()
    return all(size == file.size for size, file in zip(sizes, manifest.files.values(), strict=True))
