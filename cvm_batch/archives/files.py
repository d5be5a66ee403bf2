"""Files on disk: their stamps, a slide's identity, and errors that name the file."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cvm_batch.archives.limits import MAX_MEMBER_BYTES
from cvm_batch.errors import InputChangedError, OverLimitError, ReadError


@dataclass(frozen=True, order=True, slots=True)
class FileStamp:
    """What tells one version of a file from another without reading it."""

    name: str
    """Relative to the archive, with forward slashes."""
    size: int
    """Bytes."""
    mtime_ns: int

    @classmethod
    def of(cls, name: str, status: os.stat_result) -> FileStamp:
        return cls(name, status.st_size, status.st_mtime_ns)


def identity(stamps: Iterable[FileStamp]) -> str:
    """SHA-256 over name, size and modification time of files, in the order of names."""
    digest = hashlib.sha256()
    for stamp in sorted(stamps):
        # A file name holds no NUL, so no two listings write the same bytes.
        text = f"{stamp.name}\0{stamp.size}\0{stamp.mtime_ns}\0"
        digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def stamp_if_present(path: Path) -> FileStamp | None:
    """The stamp of a regular file, links followed, or None where there is none."""
    with reading(path):
        try:
            status = path.stat()
        except OSError as error:
            # A name beyond what the file system takes is that of no file either.
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                return None
            raise
    return FileStamp.of(path.name, status) if stat.S_ISREG(status.st_mode) else None


def stamp_present(path: Path) -> FileStamp:
    """The stamp of a file that must be there. Raises InputChangedError or ReadError."""
    with reading(path):
        return FileStamp.of(path.name, path.stat())


def read_file(path: str | Path, listed: FileStamp) -> bytes:
    """The whole content of a file that was listed earlier.

    Raises ReadError, OverLimitError, or InputChangedError where it is not as listed.
    """
    if listed.size > MAX_MEMBER_BYTES:
        raise OverLimitError(
            f"{path} has {listed.size} bytes, more than the {MAX_MEMBER_BYTES} that a part of "
            "a slide archive may have. Check how it was made."
        )
    with reading(path), open(path, "rb") as file:
        # One byte more than listed: a file that grows meanwhile cannot fill the memory.
        data = file.read(listed.size + 1)
        status = os.fstat(file.fileno())
    if FileStamp.of(listed.name, status) != listed or len(data) != listed.size:
        raise changed(path)
    return data


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn what the operating system says of ``path`` into the slide's own errors."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputChangedError(
            f"{path} is gone, though it was listed before. Submit again when nothing moves "
            "or deletes the slide's files any more."
        ) from error
    except OSError as error:
        raise ReadError(
            f"{path} cannot be read: {error.strerror or error}. Check the disk or the "
            "connection and the permissions; a further submit tries again."
        ) from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Links followed; one that leads in circles or out of sight leads to no folder."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def changed(path: str | Path) -> InputChangedError:
    return InputChangedError(
        f"{path} changed after it was listed: size or modification time differ. Submit again "
        "when nothing writes to the slide any more."
    )


def printable(name: str) -> str:
    """A file name as text that can be stored anywhere; bytes that are no UTF-8 as ``\\xff``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
