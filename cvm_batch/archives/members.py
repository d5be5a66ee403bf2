"""The inner seam: the files inside one archive, whatever holds them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Protocol

from cvm_batch.archives.archive import Integrity, SlideInfo
from cvm_batch.archives.files import FileStamp, identity, is_folder, read_file, reading
from cvm_batch.archives.limits import MAX_MEMBERS
from cvm_batch.errors import BadFormatError, OverLimitError, UnsafeArchiveError


class Members(Protocol):
    """Files by name. ``read`` may be called from several threads at once."""

    path: Path
    integrity: Integrity
    """VERIFIED where every read is checked against a recorded checksum."""
    names: tuple[str, ...]
    """Sorted, with forward slashes; what was there when the archive was opened."""
    opened: tuple[FileStamp, ...]
    """The archive's files as they were then."""

    def __contains__(self, name: object) -> bool: ...

    def read(self, name: str) -> bytes:
        """The whole content of a listed member.

        Raises ReadError, OverLimitError, InputChangedError or ChecksumMismatchError.
        """
        ...

    def check_name(self, name: str) -> None:
        """Raise ChecksumMismatchError where two records of a member's name differ.

        For members that are not going to be read: a damaged name must not turn a tile
        into something that nobody asks for.
        """
        ...

    def close(self) -> None: ...


class MemberArchive:
    """What slide archives made of members share: the files they came from, and their watch."""

    _info: SlideInfo
    """Set by the subclass, of the members as they were when it opened them."""

    def __init__(
        self,
        path: Path,
        open_members: Callable[[Path], Members],
        list_files: Callable[[Path], tuple[FileStamp, ...]],
    ) -> None:
        """Raises SlideError."""
        self._path = path
        self._open_members = open_members
        self._list_files = list_files
        self._members = open_members(path)

    def describe(self) -> SlideInfo:
        if identity(self._list_files(self._path)) == self._info.identity:
            return self._info
        with closing(type(self)(self._path, self._open_members, self._list_files)) as anew:
            return anew._info

    def close(self) -> None:
        self._members.close()


class FolderMembers:
    """The files of a folder.

    Linked files are followed, as laboratories link slides together from several disks.
    """

    integrity = Integrity.UNVERIFIED

    def __init__(
        self, path: Path, *, keep: Callable[[str], bool] = lambda _: True, deep: bool = False
    ) -> None:
        """``keep`` says by name which files are members; ``deep`` takes sub-folders in.

        Raises BadFormatError, OverLimitError, ReadError or UnsafeArchiveError.
        """
        self.path = path
        self._keep = keep
        self._deep = deep
        self._listed = self._list()
        self.names = tuple(sorted(self._listed))
        self.opened = tuple(self._listed[name] for name in self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._listed

    def read(self, name: str) -> bytes:
        return read_file(f"{self.path}/{name}", self._listed[name])

    def check_name(self, name: str) -> None:
        """A file system records a name once."""

    def close(self) -> None:
        """Files are open only while they are read."""

    def _list(self) -> dict[str, FileStamp]:
        listed: dict[str, FileStamp] = {}
        folders = [""]
        while folders:
            prefix = folders.pop()
            folder = self.path / prefix
            with reading(folder), os.scandir(folder) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if not is_folder(entry):
                        if self._keep(name):
                            listed[name] = _stamp(entry, name)
                    elif self._deep:
                        _refuse_link(entry)
                        folders.append(f"{name}/")
                    if len(listed) > MAX_MEMBERS:
                        raise _too_many(self.path)
        return listed


def safe_name(name: str, path: Path) -> str:
    """A packed member's name, as ``sub/name``.

    Raises UnsafeArchiveError for a name that could reach outside of the archive: nothing
    is extracted here, but what makes such names is not to be trusted with cells either.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    drive = name[1:2] == ":"
    if not parts or ".." in parts or name.startswith("/") or "\\" in name or drive:
        raise UnsafeArchiveError(
            f"{path} has a member named {name!r}: absolute names, backslashes and '..' are "
            "refused. Pack the slide anew with plain relative names."
        )
    return "/".join(parts)


def _too_many(path: Path) -> OverLimitError:
    return OverLimitError(
        f"{path} holds more than {MAX_MEMBERS} files. Split it into slides, or pack it."
    )


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
