"""Files on object storage and web servers: `Place`s at which every look is a request.

fsspec's clients make the requests; they take credentials from the environment only, so
that an address holds none and can be shown and stored anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from cvm_batch.archives.limits import MAX_MEMBERS
from cvm_batch.archives.places.files import FileStamp, Listing, changed, gone, reading, too_many
from cvm_batch.archives.places.local_copies import local_copies
from cvm_batch.archives.places.remote_errors import refusal
from cvm_batch.archives.places.remote_stores import (
    AzureStore,
    GoogleStore,
    Page,
    S3Store,
    Store,
    WebStore,
)
from cvm_batch.errors import ReadError, SlideError, UnsafeArchiveError, UsageError
from cvm_batch.remote.addresses import WEB, checked_address, host_and_key, scheme_of
from cvm_batch.remote.asking import Patience, ask
from cvm_batch.remote.errors import is_missing

_STORES: dict[str, Callable[[float], Store]] = {
    "s3": S3Store,
    "gs": GoogleStore,
    "az": AzureStore,
    "https": WebStore,
    "http": WebStore,
}
_PATIENCE = Patience()
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

Answer = TypeVar("Answer")


def remote_place(uri: str, patience: Patience = _PATIENCE) -> RemotePlace:
    """The place at an address. Raises UsageError, also where the client is not installed."""
    bare, scheme = checked_address(uri), scheme_of(uri)
    host, key = host_and_key(bare)
    if scheme == "http" and _host_name(host) not in _LOCAL_HOSTS:
        raise UsageError(f"{uri} would bring images of patients unencrypted. Use https://.")
    if scheme in WEB and key.lower().endswith(".zarr"):
        raise UsageError(
            f"{uri} is a folder, and web servers do not tell what a folder holds. Pack it as "
            ".zarr.zip, or give its address on object storage."
        )
    if scheme in WEB:  # spaces and the like; what is encoded already stays as it is
        bare = quote(bare, safe="/%:@!$&'()*+,;=~[]", errors="surrogateescape")
    return RemotePlace(bare, patience)


@dataclass(frozen=True, order=True)
class RemotePlace:
    """A `Place` on object storage or a web server. It pickles; connections are made anew."""

    uri: str
    """Without credentials and trailing slash; percent-encoded on a web server."""
    patience: Patience = field(default=_PATIENCE, compare=False, repr=False)

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        last = self.uri.rpartition("/")[2]
        return unquote(last, errors="surrogateescape") if self._is_web else last

    @property
    def marks(self) -> None:
        return None

    @property
    def is_link(self) -> bool:
        return False

    def sibling(self, name: str) -> RemotePlace:
        # Beside a bucket lie other people's buckets: what belongs to it lies in it.
        if not host_and_key(self.uri)[1]:
            return self.child(name)
        return replace(self, uri=self.uri.rpartition("/")[0]).child(name)

    def child(self, name: str) -> RemotePlace:
        if self._is_web:
            name = quote(name, errors="surrogateescape")
        return replace(self, uri=f"{self.uri}/{name}" if name else self.uri)

    def exists(self) -> bool:
        return self.is_file() or self.is_folder()

    def is_file(self) -> bool:
        return self.stamp() is not None

    def is_folder(self) -> bool:
        try:
            return self._ask(self._store.is_folder)
        except FileNotFoundError:
            return False

    def children(self) -> Sequence[RemotePlace]:
        names: set[str] = set()
        for page in self._pages(deep=False):
            names.update(page.folders, (stamp.name for stamp in page.files))
            if len(names) > MAX_MEMBERS:
                raise too_many(self)
        return [self.child(name) for name in sorted(names)]

    def stamp(self) -> FileStamp | None:
        try:
            return replace(self._ask(self._store.stamp), name=self.name)
        except FileNotFoundError:
            return None

    def list_files(
        self, *, keep: Callable[[str], bool] = lambda _: True, deep: bool = False
    ) -> Listing:
        return Listing.of(self._kept(keep, deep))

    def open(self, listed: FileStamp | None = None) -> RemoteFile:
        return RemoteFile(self, listed)

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        with closing(self.open()) as file, local_copies().hold(self.uri, file) as path:
            yield path

    def read(self, offset: int, size: int, opened: FileStamp) -> bytes:
        """``size`` bytes, all of which must lie inside of the file."""
        with reading(self):
            return self._ask(self._store.read, offset, size, opened, size=size)

    @property
    def is_guarded(self) -> bool:
        """Whether no read gives anything of a file that was changed since it was opened."""
        return self._store.is_guarded

    @property
    def _is_web(self) -> bool:
        return scheme_of(self.uri) in WEB

    @property
    def _store(self) -> Store:
        return _store(scheme_of(self.uri), self.patience, os.getpid())

    def _kept(self, keep: Callable[[str], bool], deep: bool) -> Iterator[FileStamp]:
        found = 0
        for page in self._pages(deep):
            for stamp in page.files:
                if keep(stamp.name):
                    found += 1
                    if found > MAX_MEMBERS:
                        raise too_many(self)
                    yield stamp

    def _pages(self, deep: bool) -> Iterator[Page]:
        page, is_first, is_empty = Page([], []), True, True
        while page.following or is_first:
            with reading(self):
                page = self._ask(self._store.page, deep, page.following)
            is_first, is_empty = False, is_empty and not (page.files or page.folders)
            # Consoles of object storage put an empty object in each folder, to show it.
            files = [stamp for stamp in page.files if stamp.size or stamp.name[-1:] not in "/"]
            for name in (*page.folders, *(stamp.name for stamp in files)):
                if "" in name.split("/"):
                    raise UnsafeArchiveError(
                        f"{self} holds an object with an empty part of a name, {name!r}, which is "
                        "no file anywhere else. Rename or remove it."
                    )
            yield page._replace(files=files)
        if is_empty:
            raise gone(self)

    def _ask(
        self, question: Callable[..., Awaitable[Answer]], *details: Any, size: int = 0
    ) -> Answer:
        """Raises FileNotFoundError, or SlideError."""

        def refused(error: Exception, tries: int) -> Exception:
            if isinstance(error, SlideError):
                return error
            if is_missing(error):
                return FileNotFoundError(self.uri)
            return refusal(self, error, tries)

        return ask(
            self._store.fs,
            question,
            self.uri,
            *details,
            patience=self.patience,
            refused=refused,
            size=size,
        )


class RemoteFile:
    """An `OpenFile` on object storage or a web server: each read is one ranged request."""

    def __init__(self, place: RemotePlace, listed: FileStamp | None) -> None:
        found = listed or place.stamp()
        if found is None:
            raise gone(place)
        self.opened = replace(found, name=place.name)
        self._place = place
        self._is_checked = listed is None
        if not (found.version or found.mtime_ns):
            raise ReadError(
                f"{place} could change between two reads unnoticed: its server tells neither "
                "ETag nor Last-Modified. Have the server tell one, or copy the file to a disk."
            )

    def read_at(self, offset: int, size: int) -> bytes:
        size = min(size, self.opened.size - offset)
        if size <= 0:
            return b""
        data = self._place.read(offset, size, self.opened)
        self._is_checked = self._place.is_guarded
        return data

    def check(self) -> None:
        if not self._is_checked:
            found = self._place.stamp()
            if found is None:
                raise gone(self._place)
            if found != self.opened:
                raise changed(self._place)
            self._is_checked = self._place.is_guarded

    def close(self) -> None:
        """Nothing is held between reads."""


@cache
def _store(scheme: str, patience: Patience, pid: int) -> Store:
    """The connections of one process: a child would share its parent's sockets."""
    try:
        return _STORES[scheme](patience.answer_s)
    except Exception as error:  # of any of the clients; their messages may quote credentials
        raise UsageError(
            f"No connection for {scheme}:// can be set up ({type(error).__name__}). Check the "
            "account and the credentials in the environment."
        ) from None


def _host_name(host: str) -> str | None:
    """Without the port; None where it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
