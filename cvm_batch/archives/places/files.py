"""Files: their stamps, a slide's identity, and errors that name the file."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cvm_batch import signs
from cvm_batch.archives.limits import MAX_MEMBERS
from cvm_batch.archives.places.names import Names, encode
from cvm_batch.errors import (
    BadFormatError,
    InputChangedError,
    OverLimitError,
    ReadError,
    SlideError,
)


@dataclass(frozen=True, order=True, slots=True)
class FileStamp:
    """What tells one version of a file from another without reading it."""

    name: str
    """Relative to the archive, with forward slashes."""
    size: int
    """Bytes."""
    mtime_ns: int
    version: str = ""
    """ETag or version of an object; a file on a disk has none."""
    ctime_ns: int = field(default=0, compare=False)
    """When a file on a disk was written, or came under its name: who copies one may give it the
    time of modification that the first one had. An object has none."""

    @classmethod
    def of(cls, name: str, status: os.stat_result) -> FileStamp:
        return cls(name, status.st_size, status.st_mtime_ns, ctime_ns=status.st_ctime_ns)

    @property
    def changed_ns(self) -> int:
        """By the clock of the disk's or the object's server; 0 where that does not tell."""
        return self.ctime_ns or self.mtime_ns

    def is_version_of(self, other: FileStamp) -> bool:
        """Whether both are of the same content, under whatever name."""
        own = (self.size, self.mtime_ns, self.version)
        return own == (other.size, other.mtime_ns, other.version)


@dataclass(frozen=True, eq=False)
class Listing:
    """Stamps of many files, in the order of their names."""

    names: Names
    size: NDArray[np.int64]
    """Bytes."""
    mtime_ns: NDArray[np.int64]
    ctime_ns: NDArray[np.int64]
    version: Sequence[str] | None = None

    @classmethod
    def of(cls, stamps: Iterable[FileStamp]) -> Listing:
        """Of stamps with distinct names; they are taken one by one and not kept."""
        sizes, times, changes = array("q"), array("q"), array("q")
        versions: list[str] = []

        def taken() -> Iterator[str]:
            for stamp in stamps:
                signs.note()
                sizes.append(stamp.size)
                times.append(stamp.mtime_ns)
                changes.append(stamp.ctime_ns)
                if stamp.version:
                    versions.append(stamp.version)
                yield stamp.name

        names, order = Names.sorted(taken())
        if len(versions) not in (0, len(order)):
            raise ValueError("some stamps have a version, others have none")
        return cls(
            names,
            np.frombuffer(sizes, np.int64)[order],
            np.frombuffer(times, np.int64)[order],
            np.frombuffer(changes, np.int64)[order],
            [versions[at] for at in order] if versions else None,
        )

    def __len__(self) -> int:
        return len(self.names)

    def same_as(self, other: Listing) -> bool:
        """Whether both list the same versions of the same files: as `identity`, but cheap."""
        return (
            np.array_equal(self.size, other.size)
            and np.array_equal(self.mtime_ns, other.mtime_ns)
            and self.version == other.version
            and self.names.equals(other.names)
        )

    def __iter__(self) -> Iterator[FileStamp]:
        return map(self.stamp, range(len(self)))

    def stamp(self, position: int) -> FileStamp:
        return FileStamp(
            self.names[position],
            int(self.size[position]),
            int(self.mtime_ns[position]),
            self.version[position] if self.version else "",
            int(self.ctime_ns[position]),
        )


def identity(stamps: Iterable[FileStamp]) -> str:
    """SHA-256 over name, size, modification time and version of files, as they come.

    Give them in an order that does not depend on where they were found.
    """
    digest = hashlib.sha256()
    for stamp in stamps:
        # A file name holds no NUL, so no two listings write the same bytes.
        text = f"{stamp.name}\0{stamp.size}\0{stamp.mtime_ns}\0{stamp.version}\0"
        digest.update(encode(text))
    return digest.hexdigest()


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Turn what the operating system says of ``path`` into the slide's own errors."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise gone(path) from error
    except OSError as error:
        raise ReadError(
            f"{path} cannot be read: {error.strerror or error}. Check the disk or the "
            "connection and the permissions; a further submit tries again."
        ) from error


def as_slide_error(error: Exception, where: object) -> SlideError:
    """Whatever a decoder throws costs its slide, never the run."""
    if isinstance(error, SlideError):
        return error
    if isinstance(error, (OSError, MemoryError)):
        return ReadError(
            f"Reading {where} failed: {error!r}. Check the node's memory and open files; a further "
            "submit tries again."
        )
    return BadFormatError(
        f"Reading {where} failed: {error!r}. Check the archive; if other programs read it well, "
        "report this."
    )


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Links followed; one that leads in circles or out of sight leads to no folder."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def gone(path: object) -> InputChangedError:
    return InputChangedError(
        f"{path} is gone, though it was listed before. Submit again when nothing moves or "
        "deletes the slide's files any more."
    )


def changed(path: object) -> InputChangedError:
    return InputChangedError(
        f"{path} changed after it was listed: size or modification time differ. Submit again "
        "when nothing writes to the slide any more."
    )


def too_many(where: object) -> OverLimitError:
    return OverLimitError(
        f"{where} holds more than {MAX_MEMBERS} files. Split it into slides, or pack it."
    )


def printable(name: str) -> str:
    """A file name as text that can be stored anywhere; bytes that are no UTF-8 as ``\\xff``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
