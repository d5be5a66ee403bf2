"""Files and folders of this machine, or of a share that is mounted on it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvm_batch.archives.limits import MAX_MEMBERS
from cvm_batch.archives.places.files import (
    FileStamp,
    Listing,
    changed,
    is_folder,
    reading,
    too_many,
)
from cvm_batch.errors import BadFormatError, UnsafeArchiveError

#: What says that there is nothing under a name. A name beyond what the file system takes
#: is that of no file either.
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


@dataclass(frozen=True, order=True)
class DiskPlace:
    """A `Place` on a disk. Links are followed, as laboratories link slides together."""

    uri: str
    """Absolute path. A string: planning asks for thousands, and a `Path` takes longer to make
    than to look up."""

    @classmethod
    def of(cls, path: str | Path) -> DiskPlace:
        # Not resolved: a slide is named after the path that the user gave.
        return cls(os.path.abspath(path))

    def __str__(self) -> str:
        return self.uri

    @property
    def path(self) -> Path:
        return Path(self.uri)

    @property
    def name(self) -> str:
        return os.path.basename(self.uri)

    @property
    def marks(self) -> tuple[int, int] | None:
        with reading(self):
            status = os.stat(self.uri)
        return status.st_dev, status.st_ino

    @property
    def is_link(self) -> bool:
        return os.path.islink(self.uri)

    def sibling(self, name: str) -> DiskPlace:
        return DiskPlace(os.path.join(os.path.dirname(self.uri), name))

    def child(self, name: str) -> DiskPlace:
        return DiskPlace(os.path.join(self.uri, name))

    def exists(self) -> bool:
        with reading(self):
            return self.path.exists()

    def is_file(self) -> bool:
        return self.stamp() is not None

    def is_folder(self) -> bool:
        status = self._status()
        return status is not None and stat.S_ISDIR(status.st_mode)

    def children(self) -> Sequence[DiskPlace]:
        with reading(self):
            return _Children(self, sorted(os.listdir(self.uri)))

    def stamp(self) -> FileStamp | None:
        status = self._status()
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        return FileStamp.of(self.name, status)

    def list_files(
        self, *, keep: Callable[[str], bool] = lambda _: True, deep: bool = False
    ) -> Listing:
        return Listing.of(self._stamps(keep, deep))

    def open(self, listed: FileStamp | None = None) -> DiskFile:
        file = DiskFile(self.path)
        if listed is not None and not file.opened.is_version_of(listed):
            file.close()
            raise changed(self.path)
        return file

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        yield self.path

    def _status(self) -> os.stat_result | None:
        try:  # first without `reading`, which costs more than the look: planning looks much
            return os.stat(self.uri)
        except OSError as error:
            if error.errno in _NOTHING_THERE:
                return None
            with reading(self):
                raise

    def _stamps(self, keep: Callable[[str], bool], deep: bool) -> Iterator[FileStamp]:
        found = 0
        folders = [""]
        while folders:
            prefix = folders.pop()
            folder = self.path / prefix
            with reading(folder), os.scandir(folder) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if not is_folder(entry):
                        if keep(name):
                            found += 1
                            yield _stamp(entry, name)
                    elif deep:
                        _refuse_link(entry)
                        folders.append(f"{name}/")
                    if found > MAX_MEMBERS:
                        raise too_many(self.path)


class _Children(Sequence[DiskPlace]):
    """Places that are made when they are asked for: a folder may hold 200,000 of them."""

    def __init__(self, folder: DiskPlace, names: Sequence[str]) -> None:
        self._folder = folder
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, at: Any) -> Any:
        names = self._names[at]
        if isinstance(at, slice):
            return _Children(self._folder, names)
        return self._folder.child(names)


class DiskFile:
    """An `OpenFile` on a disk. Raises ReadError, or InputChangedError where it is gone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with reading(path):
            self._descriptor: _Descriptor | None = _Descriptor(path)
        self.opened = self._stamp()

    def read_at(self, offset: int, size: int) -> bytes:
        pieces = []
        with reading(self._path):
            descriptor = self._open()
            # The kernel hands out at most 2 GiB at once, and less on some shares.
            while size and (piece := os.pread(descriptor.number, size, offset)):
                pieces.append(piece)
                offset, size = offset + len(piece), size - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def check(self) -> None:
        if self._stamp() != self.opened:
            raise changed(self._path)

    def close(self) -> None:
        self._descriptor = None

    def _stamp(self) -> FileStamp:
        with reading(self._path):
            return FileStamp.of(self._path.name, os.fstat(self._open().number))

    def _open(self) -> _Descriptor:
        descriptor = self._descriptor
        if descriptor is None:
            raise OSError(errno.EBADF, "it was closed meanwhile")
        return descriptor


class _Descriptor:
    """Closed when the last thread that reads from it lets go.

    Else the number could be another file's by the time a read begins.
    """

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        with suppress(AttributeError):  # it could not be opened
            os.close(self.number)


def _refuse_link(folder: os.DirEntry[str]) -> None:
    if folder.is_symlink():
        raise UnsafeArchiveError(
            f"{folder.path} is a link to another folder, which may lead in circles or out of "
            "the slide. Put the folder itself there."
        )


def _stamp(entry: os.DirEntry[str], name: str) -> FileStamp:
    try:
        status = entry.stat()
    except OSError as error:
        if not (entry.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP)):
            raise
        raise BadFormatError(
            f"{entry.path} is a link that leads nowhere. Mend the link or remove it."
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeArchiveError(
            f"{entry.path} is a pipe, socket or device, not a file. Remove it."
        )
    return FileStamp.of(name, status)
