"""The manifest of a packed archive: what each of its files is, written last.

``manifest.json`` at the top of a ``.zarr`` folder. It records of every other file its
size, SHA-256 and, for chunks, the CRC-32C that ends the chunk. So a chunk that was lost,
damaged or exchanged for another one is told from the slide's own; and as the manifest
holds neither times nor paths, its digest is the slide's identity wherever it is copied.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cvm_batch.archives.members.base import read_listed
from cvm_batch.archives.places.files import FileStamp
from cvm_batch.archives.places.place import Place
from cvm_batch.errors import BadFormatError, ChecksumMismatchError, OverLimitError

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1
#: 100,000 files of 200 bytes each.
_MOST_BYTES = 64 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PackedFile:
    """One file of a packed archive."""

    size: int
    """Bytes."""
    sha256: str
    crc32c: int | None = None
    """The last four bytes of a chunk, little-endian; None for metadata."""


@dataclass(frozen=True, kw_only=True)
class PackManifest:
    tiles: int
    files: Mapping[str, PackedFile]
    """By name relative to the archive, with forward slashes; all but the manifest itself."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that it records: the slide's identity."""
        return hashlib.sha256(_canonical(self._body())).hexdigest()

    def to_bytes(self) -> bytes:
        text = json.dumps(self._body() | {"digest": self.digest}, indent=1, sort_keys=True)
        return f"{text}\n".encode()

    def _body(self) -> dict[str, Any]:
        return {
            "manifest_version": MANIFEST_VERSION,
            "tiles": self.tiles,
            "files": {name: vars(file) for name, file in self.files.items()},
        }


def read_manifest(place: Place, listed: FileStamp | None = None) -> PackManifest | None:
    """The manifest of the archive at ``place``, or None where it is not a packed one.

    ``listed``: the file as it was listed before, where it was. Raises BadFormatError,
    ChecksumMismatchError, OverLimitError, ReadError, or InputChangedError where it is not as
    listed.
    """
    file = place.child(MANIFEST_FILE)
    stamp = listed or file.stamp()
    if stamp is None:
        return None
    if stamp.size > _MOST_BYTES:
        raise OverLimitError(
            f"{file} has {stamp.size} bytes, more than {_MOST_BYTES}. Pack the slide anew."
        )
    return parse_manifest(read_listed(file, stamp), str(file))


def parse_manifest(data: bytes, where: str) -> PackManifest:
    """Raises BadFormatError or ChecksumMismatchError; ``where`` is for messages."""
    try:
        value = json.loads(data)
        recorded = value["digest"]
        if value["manifest_version"] != MANIFEST_VERSION:
            raise ValueError(f"manifest_version {value['manifest_version']!r}")
        manifest = PackManifest(
            tiles=_whole(value["tiles"]),
            files={_name(name): _file(file) for name, file in value["files"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BadFormatError(
            f"{where} is no manifest of a packed slide that this version reads: {error!r}. Pack "
            "the slide anew."
        ) from error
    if manifest.digest != recorded:
        raise ChecksumMismatchError(
            f"{where} differs from the digest that it ends with. The archive is damaged: copy "
            "it again from its source."
        )
    return manifest


def is_packed(place: Place) -> bool:
    """Whether a folder has the manifest of a packed archive."""
    return place.is_folder() and place.child(MANIFEST_FILE).is_file()


def _name(value: str) -> str:
    # JSON can hold half a character, which no file is named after.
    return value.encode().decode()


def _file(value: Mapping[str, Any]) -> PackedFile:
    crc32c = value["crc32c"]
    if not _DIGEST.fullmatch(value["sha256"]):
        raise ValueError(f"SHA-256 {value['sha256']!r}")
    return PackedFile(
        _whole(value["size"]), value["sha256"], None if crc32c is None else _whole(crc32c)
    )


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
