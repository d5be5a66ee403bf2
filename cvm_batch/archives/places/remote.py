"""Files on object storage and web servers: `Place`s at which every look is a request.

fsspec's clients make the requests; they take credentials from the environment only, so
that an address holds none and can be shown and stored anywhere.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit

from fsspec.asyn import sync  # type: ignore[import-untyped]

from cvm_batch.archives.limits import MAX_MEMBERS
from cvm_batch.archives.places.files import FileStamp, Listing, changed, gone, reading, too_many
from cvm_batch.archives.places.local_copies import local_copies
from cvm_batch.archives.places.remote_errors import is_missing, may_pass, refusal
from cvm_batch.archives.places.remote_stores import (
    AzureStore,
    GoogleStore,
    Page,
    S3Store,
    Store,
    WebStore,
    host_and_key,
)
from cvm_batch.errors import ReadError, SlideError, UnsafeArchiveError, UsageError


class _Client(NamedTuple):
    package: str
    """What fsspec needs."""
    extra: str
    """Of ours, which brings it."""
    store: Callable[[float], Store]


_SCHEMES = {
    "s3": _Client("s3fs", "s3", S3Store),
    "gs": _Client("gcsfs", "gs", GoogleStore),
    "az": _Client("adlfs", "az", AzureStore),
    "https": _Client("aiohttp", "http", WebStore),
    "http": _Client("aiohttp", "http", WebStore),
}
_WEB = ("https", "http")
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

#: A key on object storage may hold a question mark; one before these begins a signature.
_SIGNED = re.compile(r"\?(.*&)?(x-amz-|x-goog-|awsaccesskeyid=|sig=|signature=|token=)", re.I)

#: Of bytes a second; a connection that is slower for long is as good as broken.
_SLOWEST = 32 * 1024

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a server is given. With these figures one that hangs costs about 20 s."""

    retries: int = 3
    first_wait_s: float = 0.5
    """Before the first retry; thrice as long before each further one."""
    answer_s: float = 10
    """To connect, and then for every further byte."""
    last_retry_s: float = 12
    """Counted from the first try: no retry begins later."""

    def may_retry(self, tries: int, since: float) -> bool:
        return tries <= self.retries and time.monotonic() - since < self.last_retry_s

    def wait(self, tries: int) -> None:
        # By chance a little more or less, so that those who fell together do not come
        # back together.
        time.sleep(self.first_wait_s * 3 ** (tries - 1) * random.uniform(0.5, 1.5))  # noqa: S311

    def limit_s(self, size: int) -> float:
        """For one request in all, as a server may go on for ever byte by byte."""
        return 3 * self.answer_s + size / _SLOWEST


def is_remote(text: str) -> bool:
    """Whether ``text`` is an address, not a path. Raises UsageError for schemes unheard of."""
    match = _SCHEME.match(text)
    if match is not None and match[1].lower() not in _SCHEMES:
        raise UsageError(
            f"Addresses of the kind {match[1]}:// cannot be read: known are "
            f"{', '.join(f'{scheme}://' for scheme in _SCHEMES)} and paths."
        )
    return match is not None


def remote_place(uri: str, patience: Patience = Patience()) -> RemotePlace:
    """The place at an address. Raises UsageError, also where the client is not installed."""
    scheme = uri.partition("://")[0].lower()
    host, key = host_and_key(uri)
    bare = _without_secrets(scheme, host, key)
    if bare != f"{scheme}://{host}/{key}":
        raise UsageError(
            f"{bare.rstrip('/')} was given with a user name, a password, a signature or a query. "
            "Addresses stand in logs and results: give it without, and the credentials in the "
            "environment. In names on a web server write ? as %3F and # as %23."
        )
    if not host.strip("/"):
        raise UsageError(f"{uri} names no bucket or host. Write {scheme}://bucket/name.")
    if scheme == "http" and _host_name(host) not in _LOCAL_HOSTS:
        raise UsageError(f"{uri} would bring images of patients unencrypted. Use https://.")
    if scheme in _WEB and key.rstrip("/").lower().endswith(".zarr"):
        raise UsageError(
            f"{uri} is a folder, and web servers do not tell what a folder holds. Pack it as "
            ".zarr.zip, or give its address on object storage."
        )
    client = _SCHEMES[scheme]
    if find_spec(client.package) is None:
        raise UsageError(
            f"{uri} cannot be read: {scheme}:// needs a package that is not installed. Run: "
            f"pip install 'cvm-batch[{client.extra}]'"
        )
    if scheme in _WEB:  # spaces and the like; what is encoded already stays as it is
        bare = quote(bare, safe="/%:@!$&'()*+,;=~[]", errors="surrogateescape")
    return RemotePlace(bare.rstrip("/"), patience)


@dataclass(frozen=True, order=True)
class RemotePlace:
    """A `Place` on object storage or a web server. It pickles; connections are made anew."""

    uri: str
    """Without credentials and trailing slash; percent-encoded on a web server."""
    patience: Patience = field(default=Patience(), compare=False, repr=False)

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
        return self.uri.partition("://")[0] in _WEB

    @property
    def _store(self) -> Store:
        return _store(self.uri.partition("://")[0], self.patience, os.getpid())

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
        """Ask the server, and again where the cause may pass.

        Raises FileNotFoundError, or SlideError.
        """
        since, tries = time.monotonic(), 0
        while True:
            tries += 1
            limit_s = self.patience.limit_s(size)
            try:
                answer: Answer | None = sync(
                    self._store.fs.loop, question, self.uri, *details, timeout=limit_s
                )
                if answer is not None:  # it is only where the request was cancelled
                    return answer
            except SlideError:
                raise
            except Exception as error:  # of any of the clients, which need not be installed
                if is_missing(error):
                    raise FileNotFoundError(self.uri) from None
                if not (may_pass(error) and self.patience.may_retry(tries, since)):
                    # Not chained: clients quote addresses, with the passwords of proxies.
                    raise refusal(self, error, tries) from None
            self.patience.wait(tries)


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
        return _SCHEMES[scheme].store(patience.answer_s)
    except Exception as error:  # of any of the clients; their messages may quote credentials
        raise UsageError(
            f"No connection for {scheme}:// can be set up ({type(error).__name__}). Check the "
            "account and the credentials in the environment."
        ) from None


def _without_secrets(scheme: str, host: str, key: str) -> str:
    """The address without user, password, signature, query and fragment."""
    end = re.search(r"[?#]", key) if scheme in _WEB else _SIGNED.search(key)
    bare_host = re.split(r"[?#]", host.rpartition("@")[2])[0]
    return f"{scheme}://{bare_host}/{key[: end.start()] if end else key}"


def _host_name(host: str) -> str | None:
    """Without the port; None where it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
