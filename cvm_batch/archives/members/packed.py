"""The members of a zip or tar file. Nothing is extracted to disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.archive import Integrity
from cvm_batch.archives.companions import stamp_present
from cvm_batch.archives.members import tar_directory, zip_content, zip_directory
from cvm_batch.archives.places.disk import DiskPlace
from cvm_batch.archives.places.files import FileStamp
from cvm_batch.archives.places.place import OpenFile, Place


class _OneFile(ABC):
    """What containers of one file share."""

    _file: OpenFile
    _directory: zip_content.ZipDirectory | tar_directory.TarDirectory

    @abstractmethod
    def read_many(self, positions: NDArray[np.int64]) -> Iterator[bytes]: ...

    def read(self, position: int) -> bytes:
        try:
            (content,) = self.read_many(np.array([position]))
            return content
        finally:
            # What looks damaged may only be half overwritten, which is another matter.
            self.check()

    def check(self) -> None:
        self._file.check()

    def size(self, position: int) -> int:
        return int(self._directory.size[position])


class ZipMembers(_OneFile):
    """Every whole read is compared with the member's CRC-32."""

    integrity = Integrity.VERIFIED
    _directory: zip_content.ZipDirectory

    def __init__(self, place: Place) -> None:
        """Raises SlideError."""
        self.place = place
        self._file = place.open()
        try:
            self._directory = zip_directory.read_directory(self._file, place.uri)
        except BaseException:
            self._file.close()
            raise
        self.names = self._directory.names

    @property
    def opened(self) -> tuple[FileStamp]:
        return (self._file.opened,)

    def read_many(self, positions: NDArray[np.int64]) -> Iterator[bytes]:
        return zip_content.read_members(self._file, self._directory, positions, self.place.uri)

    def read_at(self, position: int, offset: int, size: int) -> bytes:
        try:
            return zip_content.read_member_at(
                self._file, self._directory, position, offset, size, self.place.uri
            )
        finally:
            self.check()

    def check_name(self, position: int) -> None:
        zip_content.check_member_name(self._file, self._directory, position, self.place.uri)

    def close(self) -> None:
        self._file.close()


class TarMembers(_OneFile):
    """A tar file has no checksum of its members' content.

    Its headers lie between the members, so one on object storage is brought to a local
    disk first.
    """

    integrity = Integrity.UNVERIFIED
    _directory: tar_directory.TarDirectory

    def __init__(self, place: Place) -> None:
        """Raises SlideError."""
        self.place = place
        # Of the file itself: a copy on a disk has another time, and no version.
        self.opened = (stamp_present(place),)
        with ExitStack() as undo:
            path = undo.enter_context(place.on_disk())
            self._file = DiskPlace.of(path).open()
            undo.callback(self._file.close)
            self._directory = tar_directory.read_directory(
                self._file, self._file.opened.size, place.uri
            )
            self._held = undo.pop_all()
        self.names = self._directory.names

    def read_many(self, positions: NDArray[np.int64]) -> Iterator[bytes]:
        return tar_directory.read_members(self._file, self._directory, positions, self.place.uri)

    def read_at(self, position: int, offset: int, size: int) -> bytes:
        size = max(0, min(size, self.size(position) - offset))
        data = self._file.read_at(int(self._directory.data_at[position]) + offset, size)
        self.check()
        return data

    def check_name(self, position: int) -> None:
        """A tar file records a name once, under the checksum of its header."""

    def close(self) -> None:
        self._held.close()
