"""Where files lie: on a disk, or on object storage, behind the same few calls.

A place is a file or a folder by its address; nothing need be there. Errors of the
operating system or the connection become ReadError, a file that is gone InputChangedError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from cvm_batch.archives.places.disk import DiskPlace
from cvm_batch.archives.places.files import FileStamp, Listing
from cvm_batch.remote.addresses import is_remote


class OpenFile(Protocol):
    """A file that is read at any offset, by several threads at once."""

    @property
    def opened(self) -> FileStamp:
        """As the file was when it was opened."""
        ...

    def read_at(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` on; fewer only where the file ends."""
        ...

    def check(self) -> None:
        """Raise InputChangedError unless all that was read is of the file as it was opened.

        A file replaced under its name is no matter: the open one stays whole.
        """
        ...

    def close(self) -> None:
        """Calling it twice is harmless."""
        ...


class Place(Protocol):
    """The address of a file or a folder. Comparable and hashable by it."""

    @property
    def uri(self) -> str:
        """Absolute path, or URL without credentials."""
        ...

    @property
    def name(self) -> str:
        """The last part of the address."""
        ...

    @property
    def marks(self) -> tuple[int, int] | None:
        """Device and inode of what is here, to tell two paths to one folder; None elsewhere."""
        ...

    @property
    def is_link(self) -> bool: ...

    def sibling(self, name: str) -> Place:
        """A place in the same folder; ``name`` may have several parts, ``a/b``."""
        ...

    def child(self, name: str) -> Place:
        """A place in this folder; ``name`` may have several parts, ``a/b``."""
        ...

    def exists(self) -> bool: ...

    def is_file(self) -> bool: ...

    def is_folder(self) -> bool: ...

    def children(self) -> Sequence[Place]:
        """What lies directly in this folder, sorted by name, hidden things included."""
        ...

    def stamp(self) -> FileStamp | None:
        """The stamp of a regular file, links followed, or None where there is none."""
        ...

    def list_files(self, *, keep: Callable[[str], bool] = ..., deep: bool = False) -> Listing:
        """The files in this folder as they are now, by names relative to it.

        ``keep`` says by name which count; ``deep`` takes sub-folders in. Raises
        BadFormatError, OverLimitError, ReadError or UnsafeArchiveError.
        """
        ...

    def open(self, listed: FileStamp | None = None) -> OpenFile:
        """Raises InputChangedError where there is no file any more.

        ``listed``: how the file was found before, where that is known. One that is not so
        any more raises InputChangedError here or at the first `OpenFile.check`; on object
        storage this spares a request.
        """
        ...

    def on_disk(self) -> AbstractContextManager[Path]:
        """The file on a local disk, for libraries that read nothing else.

        It stays there while the context is open. A folder of remote files is not brought.
        """
        ...


def place_of(uri: str) -> Place:
    """The place at a path, or at an address on object storage. Raises UsageError."""
    # Imported here: remote places are `Place`s and know their protocol from this module.
    from cvm_batch.archives.places.remote import remote_place

    return remote_place(uri) if is_remote(uri) else DiskPlace.of(uri)
