"""The seam between a results folder and what it lies on."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pyarrow.fs as pafs

from cvm_batch.errors import UsageError
from cvm_batch.remote.addresses import WEB, checked_address, is_remote, scheme_of
from cvm_batch.results.stores.disk import DiskStore

Bytes = bytes | memoryview


class Store(Protocol):
    """Files by their names relative to the results folder, POSIX style, each whole or not there.

    All calls raise OSError, with a ``strerror`` that may be shown.
    """

    def prepare(self) -> None:
        """Make the folder, and prove that `put_new` keeps its promise there."""
        ...

    def put_new(self, name: str, data: Bytes) -> None:
        """Write a file that is not there yet. Of several who do, one succeeds.

        Raises FileExistsError. Where an answer is lost, that may also be of this very call.
        """
        ...

    def put(self, name: str, data: Bytes, *, lasting: bool = True) -> None:
        """Write a file, in place of an older one. Not ``lasting``: a power cut may undo it."""
        ...

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        ...

    def exists(self, name: str) -> bool: ...

    def names(self, folder: str, *, deep: bool = False) -> list[str]:
        """The files directly in ``folder``, or with ``deep`` below it, sorted.

        A folder that is not there holds none.
        """
        ...

    def delete(self, name: str, *, lasting: bool = True) -> None:
        """A file that is not there is no error. ``lasting`` as in `put`."""
        ...

    @property
    def filesystem(self) -> pafs.FileSystem:
        """For pyarrow to read from, at `path_of`."""
        ...

    def path_of(self, name: str) -> str: ...


def results_root(given: Path | str) -> Path | str:
    """A path as a Path, an address on object storage as text, checked. Raises UsageError."""
    if isinstance(given, Path) or not is_remote(given):
        return Path(given)
    if scheme_of(given) in WEB:
        raise UsageError(
            f"Results cannot be written to a web server, {given}. Give a folder, or "
            "an address such as s3://bucket/results."
        )
    return checked_address(given)


def store_at(root: Path | str) -> Store:
    """The store at a root that `results_root` has checked."""
    if isinstance(root, Path):
        return DiskStore(root)
    # fsspec and asyncio take a tenth of a second to load, which no folder needs.
    from cvm_batch.results.stores.object_store import ObjectStore

    return ObjectStore(root)
