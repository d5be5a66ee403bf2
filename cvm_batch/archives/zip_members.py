"""The members of a zip file, checked before any is read. Nothing is extracted to disk."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path

from cvm_batch.archives.archive import Integrity
from cvm_batch.archives.files import FileStamp, changed, reading
from cvm_batch.archives.limits import (
    MAX_COMPRESSION_RATIO,
    MAX_DIRECTORY_BYTES,
    MAX_MEMBER_BYTES,
    MAX_MEMBERS,
    RATIO_EXEMPT_BYTES,
)
from cvm_batch.archives.members import safe_name
from cvm_batch.errors import (
    BadFormatError,
    ChecksumMismatchError,
    OverLimitError,
    UnsafeArchiveError,
)

_ENCRYPTED_FLAGS = 0x1 | 0x40

#: End record with its comment, and before it the wide one of large zips.
_LONGEST_END = 22 + 0xFFFF + 20 + 56

#: What zipfile raises over damaged bytes. OSError: a seek to a senseless place; that of
#: the disk itself is turned into ReadError by `_File`.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    ValueError,
)


class ZipMembers:
    """Every read goes to a member's end, where its CRC-32 is checked."""

    integrity = Integrity.VERIFIED

    def __init__(self, path: Path) -> None:
        """Raises BadFormatError, OverLimitError, ReadError or UnsafeArchiveError."""
        self.path = path
        with reading(path):
            self._file = _File(path)
        try:
            self.opened: tuple[FileStamp, ...] = (self._stamp(),)
            self._zip = self._open()
            self._infos = _checked_members(self._zip, path, self.opened[0].size)
        except BaseException:
            self._file.close()
            raise
        self.names = tuple(sorted(self._infos))

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def read(self, name: str) -> bytes:
        info = self._infos[name]
        try:
            with self._zip.open(info) as member:
                # Never more than the size that was checked, whatever the data say; the
                # last byte of it makes zipfile compare the CRC-32.
                data = member.read(info.file_size)
        except _DAMAGE as error:
            raise self._damaged(name, error) from error
        finally:
            self._refuse_change()
        if len(data) != info.file_size:
            raise self._damaged(name, f"{len(data)} bytes of {info.file_size}")
        return data

    def check_name(self, name: str) -> None:
        try:
            # Opening compares the name in the list of members with that at the data.
            self._zip.open(self._infos[name]).close()
        except _DAMAGE as error:
            raise self._damaged(name, error) from error

    def close(self) -> None:
        self._zip.close()
        self._file.close()

    def _open(self) -> zipfile.ZipFile:
        try:
            packed = zipfile.ZipFile(self._file)
            recorded = _recorded_count(self._file, self.opened[0].size)
        except _DAMAGE as error:
            raise BadFormatError(
                f"{self.path} is not a whole zip file: {error}. It may be cut short or still "
                "being copied: copy it again."
            ) from error
        finally:
            self._file.limit = None
        # zipfile passes over this number; but a damaged length in the list of members
        # swallows those that follow, and their tiles with them.
        listed = len(packed.infolist())
        if recorded not in (listed, listed % 0x10000):
            raise ChecksumMismatchError(
                f"{self.path} records {recorded} members and lists {listed}. The file is "
                "damaged: copy it again from its source."
            )
        return packed

    def _stamp(self) -> FileStamp:
        with reading(self.path):
            return FileStamp.of(self.path.name, os.fstat(self._file.fileno()))

    def _refuse_change(self) -> None:
        # A file replaced under the same name is no matter here: the open one stays whole.
        if self._stamp() != self.opened[0]:
            raise changed(self.path)

    def _damaged(self, name: str, why: object) -> ChecksumMismatchError:
        return ChecksumMismatchError(
            f"{name!r} in {self.path} differs from what the zip file recorded of it: {why}. "
            "The file is damaged: copy it again from its source."
        )


class _File(io.BufferedReader):
    """A file whose I/O errors are this package's own, and whose reads are bounded at first.

    zipfile takes an error of the disk for a bad zip file, which would be judged as
    lasting; and it reads the list of members in one piece, however large.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.limit: int | None = MAX_DIRECTORY_BYTES
        self._path = path

    def read(self, size: int | None = -1, /) -> bytes:
        if self.limit is not None and size is not None and size > self.limit:
            raise OverLimitError(
                f"{self._path} has a list of members of {size} bytes, more than the "
                f"{self.limit} that a slide may have. Split it into slides."
            )
        with reading(self._path):
            return super().read(size)


def _recorded_count(file: _File, size: int) -> int:
    """The number of members that the zip's end record tells of (APPNOTE 4.3.14, 4.3.16)."""
    file.seek(max(0, size - _LONGEST_END))
    tail = file.read(_LONGEST_END)
    end = tail.rfind(b"PK\x05\x06")
    (count,) = struct.unpack_from("<H", tail, end + 10)
    wide_end = tail.rfind(b"PK\x06\x06", 0, end)
    if count == 0xFFFF and wide_end >= 0:
        (count,) = struct.unpack_from("<Q", tail, wide_end + 32)
    return int(count)


def _checked_members(packed: zipfile.ZipFile, path: Path, size: int) -> dict[str, zipfile.ZipInfo]:
    """The files in a zip of ``size`` bytes by name, or what speaks against reading them."""
    infos = packed.infolist()
    if len(infos) > MAX_MEMBERS:
        raise OverLimitError(
            f"{path} has {len(infos)} members, more than the {MAX_MEMBERS} that a slide may "
            "have. Split it into slides."
        )
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        if info.filename == "./":
            continue
        name = safe_name(info.filename, path)
        _check_member(info, path)
        if info.is_dir():
            continue
        if name in members:
            raise UnsafeArchiveError(
                f"{path} has two members named {name!r}, and nothing says which is meant. "
                "Pack the slide anew."
            )
        members[name] = info
    _check_sizes(infos, path, size)
    return members


def _check_member(info: zipfile.ZipInfo, path: Path) -> None:
    where = f"{info.filename!r} in {path}"
    # The upper half is a Unix mode, or zero where the packing system had none.
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UnsafeArchiveError(
            f"{where} is a link or a device, not a file. Pack the files themselves."
        )
    if info.flag_bits & _ENCRYPTED_FLAGS:
        raise UnsafeArchiveError(
            f"{where} is encrypted. Pack the slide without a password; protect the disk instead."
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadFormatError(
            f"{where} is packed with method {info.compress_type}; stored and deflated members "
            "are read. Pack the slide anew."
        )
    if info.file_size > MAX_MEMBER_BYTES:
        raise OverLimitError(
            f"{where} has {info.file_size} bytes, more than the {MAX_MEMBER_BYTES} that a part "
            "of a slide archive may have. Check how it was made."
        )


def _check_sizes(infos: list[zipfile.ZipInfo], path: Path, size: int) -> None:
    if sum(info.compress_size for info in infos) > size:
        raise UnsafeArchiveError(
            f"{path} has members that overlap, as in a zip bomb. Pack the slide anew."
        )
    unpacked = sum(info.file_size for info in infos)
    if unpacked > max(RATIO_EXEMPT_BYTES, MAX_COMPRESSION_RATIO * size):
        raise OverLimitError(
            f"{path} would unpack from {size} to {unpacked} bytes, more than "
            f"{MAX_COMPRESSION_RATIO} times its size, as in a zip bomb. Check where it is from."
        )
