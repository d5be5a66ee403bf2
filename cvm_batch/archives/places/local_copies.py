"""Whole remote files on the local disk, for libraries that read nothing else.

The copies of all processes of a machine lie in one folder, bounded in bytes. A copy that
somebody holds has a shared lock on it, one that is being written an exclusive one; both
end with their process. The copies that were held longest ago make room for new ones.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from cvm_batch import signs
from cvm_batch.archives.limits import MIB
from cvm_batch.archives.places.files import FileStamp, identity
from cvm_batch.archives.places.names import encode
from cvm_batch.archives.places.place import OpenFile
from cvm_batch.errors import OverLimitError, ReadError, UsageError

FOLDER_VARIABLE = "CVM_BATCH_CACHE_DIR"
BYTES_VARIABLE = "CVM_BATCH_CACHE_BYTES"

#: Some tens of whole-slide images.
_DEFAULT_BYTES = 50_000 * MIB
_PIECE_BYTES = 8 * MIB
#: As `_name` gives them, with a dot before them while they are written. Nothing else in
#: the folder is ever removed.
_OURS = re.compile(r"\.?[0-9a-f]{64}(\.[A-Za-z0-9]{1,11})?")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,11}")
_POLL_S = 0.1


def local_copies() -> LocalCopies:
    """The copies of this user on this machine. Raises UsageError for a senseless setting."""
    folder = Path(os.environ.get(FOLDER_VARIABLE) or tempfile.gettempdir()).absolute()
    return LocalCopies(folder / f"cvm-batch-copies-{os.getuid()}", _bytes_setting())


def _bytes_setting() -> int:
    text = os.environ.get(BYTES_VARIABLE) or str(_DEFAULT_BYTES)
    if not (text.isdecimal() and int(text) > 0):
        raise UsageError(f"{BYTES_VARIABLE} is {text!r}. Give a number of bytes above 0.")
    return int(text)


@dataclass(frozen=True)
class LocalCopies:
    """A folder of copies, which several processes share."""

    folder: Path
    max_bytes: int
    wait_s: float = 600
    """How long the end of other slides is awaited where their copies take all the room."""

    @contextmanager
    def hold(self, uri: str, file: OpenFile) -> Iterator[Path]:
        """The path of a copy of ``file``, which stays there while the context is open.

        Raises OverLimitError, ReadError, InputChangedError, or UsageError where the folder
        is another user's.
        """
        stamp = file.opened
        if stamp.size > self.max_bytes:
            raise OverLimitError(
                f"{uri} has {stamp.size} bytes, more than the {self.max_bytes} that copies of "
                f"remote files may take on this machine. Set {BYTES_VARIABLE} higher, and "
                f"{FOLDER_VARIABLE} to a disk that has the room."
            )
        copy = self.folder / _name(uri, stamp)
        with _writing(copy, uri):
            descriptor = self._held(copy, uri, file)
        try:
            yield copy
        finally:
            os.close(descriptor)

    def _held(self, copy: Path, uri: str, file: OpenFile) -> int:
        """A descriptor with a shared lock on the copy, which is brought where it is not there."""
        _make_private(self.folder)
        while True:
            descriptor = _locked(copy, fcntl.LOCK_SH)
            if descriptor is None:
                self._bring(copy, uri, file)
                continue
            status = os.fstat(descriptor)
            if status.st_size == file.opened.size:
                # What was held longest ago goes first. The other time stays: whoever reads
                # the copy takes it for that of a change.
                os.utime(descriptor, ns=(time.time_ns(), status.st_mtime_ns))
                return descriptor
            os.close(descriptor)  # somebody cut it short
            copy.unlink(missing_ok=True)

    def _bring(self, copy: Path, uri: str, file: OpenFile) -> None:
        part = copy.with_name(f".{copy.name}")
        # Whoever comes second waits here, and then finds the copy.
        descriptor = _locked(part, fcntl.LOCK_EX, os.O_CREAT | os.O_RDWR)
        if descriptor is None:
            return
        try:
            if copy.exists():
                part.unlink()
                return
            os.truncate(descriptor, 0)  # what a killed process left of it
            self._reserve(descriptor, file.opened.size, uri)
            _fill(descriptor, file)
            with _lock_of_all(self.folder):  # whoever counts meanwhile might miss it
                part.rename(copy)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def _reserve(self, descriptor: int, size: int, uri: str) -> None:
        """Give the file its size, as soon as there is room for it."""
        until = time.monotonic() + self.wait_s
        while not self._reserved(descriptor, size):
            if time.monotonic() > until:
                raise ReadError(
                    f"{uri} cannot be copied to {self.folder}: slides that are being read take "
                    f"the {self.max_bytes} bytes that copies may take. Set {BYTES_VARIABLE} "
                    "higher, or read fewer slides at once; a further submit tries again."
                )
            time.sleep(_POLL_S)
            signs.note()  # no work, but an end of its own: a watchdog need not be quicker

    def _reserved(self, descriptor: int, size: int) -> bool:
        with _lock_of_all(self.folder):
            if not self._make_room(size):
                return False
            if size:  # a full disk shows now, not in the middle
                os.posix_fallocate(descriptor, 0, size)
            return True

    def _make_room(self, size: int) -> bool:
        """Whether there is room for ``size`` bytes; what nobody holds goes as far as needed."""
        found = _files(self.folder)
        taken = sum(status.st_size for _, status in found)
        for path, status in found:
            is_part = path.name.startswith(".")
            if (is_part or taken + size > self.max_bytes) and _remove(path):
                taken -= status.st_size
        return taken + size <= self.max_bytes


def _name(uri: str, stamp: FileStamp) -> str:
    """By the file's address and version; with its suffix, by which libraries know formats."""
    digest = hashlib.sha256(encode(uri) + b"\0" + identity([stamp]).encode()).hexdigest()
    suffix = PurePath(stamp.name).suffix
    return digest + (suffix if _SUFFIX.fullmatch(suffix) else "")


def _make_private(folder: Path) -> None:
    """Make the folder of copies. Raises UsageError where others could put files there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    others = stat.S_IWGRP | stat.S_IWOTH
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & others:
        raise UsageError(
            f"{folder} is a link, or others may write to it: slides are not copied there. Set "
            f"{FOLDER_VARIABLE} to a folder of your own (chmod go-w)."
        )


def _locked(path: Path, lock: int, flags: int = os.O_RDONLY) -> int | None:
    """A descriptor of the file with a lock on it; None where there is none (any more)."""
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, lock)
        # It may have been removed or renamed between the two calls.
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@contextmanager
def _lock_of_all(folder: Path) -> Iterator[None]:
    """Files take room and change their names one at a time. Others' locks are not awaited
    under it."""
    descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Copies and what is being written, those that were held longest ago first."""
    found = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # removed meanwhile
            if _OURS.fullmatch(path.name):
                found.append((path, path.lstat()))
    return sorted(found, key=lambda one: one[1].st_atime_ns)


def _remove(path: Path) -> bool:
    """Remove a file that nobody holds."""
    descriptor = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if descriptor is None:
        return not path.exists()
    try:
        path.unlink()
    finally:
        os.close(descriptor)
    return True


def _fill(descriptor: int, file: OpenFile) -> None:
    """Copy a file whole, as it was when it was opened, down to the disk."""
    size = file.opened.size
    for offset in range(0, size, _PIECE_BYTES):
        _write(descriptor, file.read_at(offset, min(_PIECE_BYTES, size - offset)), offset)
        signs.note()
    file.check()
    os.fsync(descriptor)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        offset, left = offset + written, left[written:]


@contextmanager
def _writing(copy: Path, uri: str) -> Iterator[None]:
    """Turn what the operating system says of the folder of copies into the slide's error."""
    try:
        yield
    except OSError as error:
        raise ReadError(
            f"{uri} cannot be copied to {copy.parent}: {error.strerror or error}. Make room "
            f"there, or set {FOLDER_VARIABLE} to another folder; a further submit tries again."
        ) from error
