"""The inner seam: the files inside one archive, whatever holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.archive import Integrity, SlideInfo
from cvm_batch.archives.limits import MAX_MEMBER_BYTES
from cvm_batch.archives.opening import Opening
from cvm_batch.archives.places.files import FileStamp, Listing, changed, identity
from cvm_batch.archives.places.names import Names
from cvm_batch.archives.places.place import Place
from cvm_batch.errors import OverLimitError, UnsafeArchiveError


class Members(Protocol):
    """Files by name, and by position among their names.

    All but ``close`` may be called from several threads at once.
    """

    place: Place
    integrity: Integrity
    """VERIFIED where every `read` is checked against a recorded checksum."""
    names: Names
    """With forward slashes; what was there when the archive was opened."""

    @property
    def opened(self) -> Iterable[FileStamp]:
        """The archive's files as they were then."""
        ...

    def read(self, position: int) -> bytes:
        """The whole content of a member.

        Raises ReadError, OverLimitError, InputChangedError or ChecksumMismatchError.
        """
        ...

    def read_many(self, positions: NDArray[np.int64]) -> Iterator[bytes]:
        """The content of each member, as `read` gives it; what lies together is read at once.

        What comes of it, an error included, holds only when `check` has been asked afterwards.
        """
        ...

    def check(self) -> None:
        """Raise InputChangedError unless all that was read is of the files as they were opened."""
        ...

    def size(self, position: int) -> int:
        """Bytes that `read` gives."""
        ...

    def read_at(self, position: int, offset: int, size: int) -> bytes:
        """A part of a member, which no checksum covers; as `read` otherwise."""
        ...

    def check_name(self, position: int) -> None:
        """Raise ChecksumMismatchError where two records of a member's name differ.

        For members that are not going to be read: a damaged name must not turn a tile
        into something that nobody asks for.
        """
        ...

    def close(self) -> None: ...


class MemberArchive:
    """What slide archives made of members share: the files they came from, and their watch."""

    info: SlideInfo
    """Set by the subclass, of the members as they were when it opened them."""

    def __init__(
        self,
        slide: Opening,
        open_members: Callable[[Place], Members],
        list_files: Callable[[Opening], Iterable[FileStamp]],
    ) -> None:
        """Raises SlideError."""
        self._slide = slide
        self._open_members = open_members
        self._list_files = list_files
        self._members = open_members(slide.place)

    def describe(self) -> SlideInfo:
        if self._identity_now() == self.info.identity:
            return self.info
        with closing(type(self)(self._slide, self._open_members, self._list_files)) as anew:
            return anew.info

    def close(self) -> None:
        self._members.close()

    def _identity_now(self) -> str:
        """Of the files as they are now."""
        return identity(self._list_files(self._slide))


class FolderMembers:
    """The files of a folder."""

    integrity = Integrity.UNVERIFIED

    def __init__(
        self,
        place: Place,
        *,
        keep: Callable[[str], bool] = lambda _: True,
        deep: bool = False,
        opened: Listing | None = None,
    ) -> None:
        """``keep`` says by name which files are members; ``deep`` takes sub-folders in;
        ``opened`` is what was listed already.

        Raises BadFormatError, OverLimitError, ReadError or UnsafeArchiveError.
        """
        self.place = place
        self.opened = place.list_files(keep=keep, deep=deep) if opened is None else opened
        self.names = self.opened.names

    def read(self, position: int) -> bytes:
        return read_listed(self.place.child(self.names[position]), self.opened.stamp(position))

    def read_many(self, positions: NDArray[np.int64]) -> Iterator[bytes]:
        return map(self.read, positions.tolist())

    def check(self) -> None:
        """Each file is checked when it is read."""

    def size(self, position: int) -> int:
        return int(self.opened.size[position])

    def read_at(self, position: int, offset: int, size: int) -> bytes:
        place = self.place.child(self.names[position])
        with closing(place.open(self.opened.stamp(position))) as file:
            data = file.read_at(offset, size)
            file.check()
        return data

    def check_name(self, position: int) -> None:
        """A file system records a name once."""

    def close(self) -> None:
        """Files are open only while they are read."""


def read_named(members: Members, name: str) -> bytes:
    """The whole content of the member ``name``, which must be among the names."""
    position = members.names.find(name)
    if position is None:
        raise KeyError(name)
    return members.read(position)


def read_listed(place: Place, listed: FileStamp) -> bytes:
    """The whole content of a file that was listed earlier.

    Raises ReadError, OverLimitError, or InputChangedError where it is not as listed.
    """
    check_member_size(listed.size, place)
    with closing(place.open(listed)) as file:
        # No more than listed: a file that grows meanwhile cannot fill the memory. Of one that
        # says it is empty a byte is tried, as what is no file on a disk often says so.
        data = file.read_at(0, max(1, listed.size))
        file.check()
    if len(data) != listed.size:
        raise changed(place)
    return data


def check_member_size(size: int, where: object) -> None:
    """Raise OverLimitError before a member is read that is larger than any may be."""
    if size > MAX_MEMBER_BYTES:
        raise OverLimitError(
            f"{where} has {size} bytes, more than the {MAX_MEMBER_BYTES} that a part of a slide "
            "archive may have. Check how it was made."
        )


def sorted_names(names: Iterable[str], where: object) -> tuple[Names, NDArray[np.int64]]:
    """As `Names.sorted`. Raises UnsafeArchiveError where two are the same."""
    in_order, order = Names.sorted(names)
    if (name := in_order.repeated()) is not None:
        raise UnsafeArchiveError(
            f"{where} has two members named {name!r}, and nothing says which is meant. "
            "Pack the slide anew."
        )
    return in_order, order


def safe_name(name: str, where: object) -> str:
    """A packed member's name, as ``sub/name``.

    Raises UnsafeArchiveError for a name that could reach outside of the archive: nothing
    is extracted here, but what makes such names is not to be trusted with cells either.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    drive = name[1:2] == ":"
    odd = "\\" in name or "\0" in name
    if not parts or ".." in parts or name.startswith("/") or odd or drive:
        raise UnsafeArchiveError(
            f"{where} has a member named {name!r}: absolute names, backslashes, NULs and '..' are "
            "refused. Pack the slide anew with plain relative names."
        )
    return "/".join(parts)
