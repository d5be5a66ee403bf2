"""A results folder on object storage, through fsspec's clients.

A file is one object, written by a single request (of a very large one, the last): readers see
all of it or nothing. Credentials come from the environment only.
"""

from __future__ import annotations

import errno
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cached_property
from typing import Any, TypeVar

import pyarrow.fs as pafs

from cvm_batch.errors import ResultsError
from cvm_batch.remote.addresses import host_and_key, scheme_of
from cvm_batch.remote.asking import Patience, ask
from cvm_batch.remote.clients import azure_client, google_client, s3_client
from cvm_batch.remote.errors import is_denied, is_missing, may_pass, status_of, told
from cvm_batch.results.stores.arrow import reading_from

_CLIENTS: dict[str, Callable[[float], Any]] = {
    "s3": s3_client,
    "gs": google_client,
    "az": lambda answer_s: azure_client(),
}

Answer = TypeVar("Answer")


class ObjectStore:
    """A `Store` below an address such as ``s3://bucket/results``."""

    def __init__(self, root: str, patience: Patience | None = None) -> None:
        self._root = root
        self._base = "/".join(part for part in host_and_key(root) if part)
        self._patience = patience or Patience()

    @cached_property
    def filesystem(self) -> pafs.FileSystem:
        return reading_from(self)

    def path_of(self, name: str) -> str:
        return name

    def prepare(self) -> None:
        probe = f"lock/probe-{uuid.uuid4().hex}"
        self.put_new(probe, b"first")
        try:
            self.put_new(probe, b"second")
        except FileExistsError:
            return
        finally:
            self.delete(probe)
        raise OSError(
            errno.ENOTSUP, "its server heeds no conditions (If-None-Match), as commits need them"
        )

    def put_new(self, name: str, data: bytes | memoryview) -> None:
        self._put(name, data, mode="create")

    def put(self, name: str, data: bytes | memoryview, *, lasting: bool = True) -> None:
        self._put(name, data)

    def read(self, name: str) -> bytes:
        data: bytes = self._ask(self._fs._cat_file, self._key(name))
        return data

    def exists(self, name: str) -> bool:
        async def stamp(key: str) -> Any:
            return await self._fs._info(key)

        try:
            return bool(self._ask(stamp, self._key(name))["type"] == "file")
        except FileNotFoundError:
            return False

    def names(self, folder: str, *, deep: bool = False) -> list[str]:
        async def entries(key: str) -> list[Any]:
            return list((await self._fs._find(key, detail=True)).values())

        try:
            found = self._ask(entries, self._key(folder))
        except FileNotFoundError:
            return []
        keys = (str(entry["name"]) for entry in found if entry["type"] == "file")
        return sorted(
            key.removeprefix(f"{self._base}/")
            for key in keys
            # Consoles put an empty object in each folder, to show it.
            if not key.endswith("/") and _is_in(key, self._key(folder), deep)
        )

    def delete(self, name: str, *, lasting: bool = True) -> None:
        async def delete(key: str) -> bool:
            await self._fs._rm_file(key)
            return True

        with suppress(FileNotFoundError):
            self._ask(delete, self._key(name))

    @cached_property
    def _fs(self) -> Any:
        try:
            return _CLIENTS[scheme_of(self._root)](self._patience.answer_s)
        except Exception as error:  # of any of the clients; their messages may quote credentials
            raise ResultsError(
                f"No connection to {self._root} can be set up ({type(error).__name__}). Check the "
                "account and the credentials in the environment."
            ) from None

    def _key(self, name: str) -> str:
        return f"{self._base}/{name}"

    def _put(self, name: str, data: bytes | memoryview, **how: str) -> None:
        whole = bytes(data)

        async def put(key: str) -> bool:
            await self._fs._pipe_file(key, whole, **how)
            return True

        self._ask(put, self._key(name), size=len(whole))

    def _ask(self, question: Callable[..., Awaitable[Answer]], key: str, size: int = 0) -> Answer:
        return ask(self._fs, question, key, patience=self._patience, refused=_refused, size=size)


def _is_in(key: str, folder: str, deep: bool) -> bool:
    within, name = key[: len(folder) + 1], key[len(folder) + 1 :]
    return within == f"{folder}/" and (deep or "/" not in name)


def _refused(error: Exception, tries: int) -> OSError:
    """What a request that failed for good is to whoever reads or writes results."""
    if isinstance(error, FileExistsError) or status_of(error) == 412:
        return FileExistsError(errno.EEXIST, "there is such an object already")
    if is_missing(error):
        return FileNotFoundError(errno.ENOENT, "there is no such object, or no such bucket")
    if is_denied(error):
        return PermissionError(
            errno.EACCES,
            "the server refuses access. Check the credentials in the environment, and what they "
            "may read, write, list and delete",
        )
    times = "once" if tries == 1 else f"{tries} times"
    number = errno.ETIMEDOUT if may_pass(error) else errno.EIO
    return OSError(number, f"{told(error)}, tried {times}")
