"""The results folder as a place to commit to: every file appears whole or not at all.

A commit cannot be overwritten, and a driver killed at any moment leaves the old state or the
new one: `cvm_batch.results.stores` says how, on disks and on object storage.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs

from cvm_batch import signs
from cvm_batch.errors import CommitError, ResultsError
from cvm_batch.results.stores.disk import TEMPORARY
from cvm_batch.results.stores.store import Bytes, Store, results_root, store_at

#: Files in runs/ that mean nothing once their run has gone (results/live.py).
_OF_A_LIVING_RUN = (".live", ".stop", ".priority")
#: A store or a share is away, and may come back. A disk that is full, broken or forbidden does
#: not by itself, nor does a handle that is stale on one node.
_AWAY = frozenset(
    (
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    )
)
#: How long a run waits for it: slides' stores are waited for as well, and a night is long.
OUTAGE_SECONDS = 600.0
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 15.0
#: On object storage each takes its time, most of it spent waiting.
_READS_AT_ONCE = 16

Name = PurePosixPath | str


class ResultsFolder:
    """One results folder. Names given and returned are relative to it, POSIX style."""

    def __init__(self, root: Path | str, *, outage_seconds: float = 0.0) -> None:
        """``root``: a path, or an address on object storage. ``outage_seconds``: how long a
        store that is away is waited for where something is written. Raises UsageError."""
        self.root = results_root(root)
        self._outage_seconds = outage_seconds

    def __str__(self) -> str:
        return str(self.root)

    def wait_no_longer(self) -> None:
        """What is still to be written is tried once: the run is over, one way or another."""
        self._outage_seconds = 0.0

    @cached_property
    def store(self) -> Store:
        return store_at(self.root)

    @property
    def everywhere(self) -> Path | str:
        """The root, as other processes find it."""
        return self.root if isinstance(self.root, str) else self.root.resolve()

    @property
    def filesystem(self) -> pafs.FileSystem:
        """For pyarrow to read tables from, at `path_of`."""
        return self.store.filesystem

    def path_of(self, name: Name) -> str:
        return self.store.path_of(str(name))

    def prepare(self) -> None:
        """Make the folder and prove that files can be committed. Raises ResultsError."""
        try:
            self.store.prepare()
        except OSError as error:
            raise ResultsError(
                f"The results folder {self} cannot be written: {_why(error)}. It must lie on a "
                "file system with hard links, or on object storage with conditional writes. "
                "Choose another with --out, or mend its permissions or its disk."
            ) from error

    def put_new(self, name: Name, data: Bytes) -> bool:
        """Write the file ``name``, or find that another has been written there: then False.

        Raises CommitError.
        """
        with self._committing(name):
            try:
                self._waiting(lambda: self.store.put_new(str(name), data))
            except FileExistsError:
                # Ours, where only the answer to an earlier try was lost.
                with suppress(FileNotFoundError):
                    return self.store.read(str(name)) == bytes(data)
                return False
        return True

    def publish(self, name: Name, data: Bytes) -> None:
        """Write the new file ``name``. Raises CommitError, also where there is another."""
        if not self.put_new(name, data):
            raise CommitError(
                f"{self}/{name} could not be committed: File exists, with another content. "
                "Nothing is overwritten; submit again, finished slides are not repeated."
            )

    def replace(self, name: Name, data: Bytes) -> None:
        """Write the file ``name``, in place of an older one if there is. Raises CommitError."""
        with self._committing(name):
            self._waiting(lambda: self.store.put(str(name), data))

    def replace_soon(self, name: Name, data: Bytes) -> None:
        """The same of what can be made again: whole, but a power cut may undo it."""
        with self._committing(name):
            self.store.put(str(name), data, lasting=False)

    def replace_unflushed(self, name: Name, data: bytes) -> None:
        """Write what is out of date in a moment: whole, but not flushed. Raises OSError."""
        self.store.put(str(name), data, lasting=False)

    def read(self, name: Name) -> bytes:
        """Raises FileNotFoundError, or ResultsError."""
        with self._reading():
            return self.store.read(str(name))

    def read_all(self, names: Sequence[str]) -> Iterator[bytes | None]:
        """The files in turn, read ahead of time; None for one that is gone meanwhile."""
        if isinstance(self.root, Path):
            yield from map(self._read_or_none, names)
            return
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            yield from pool.map(self._read_or_none, names)

    def exists(self, name: Name) -> bool:
        with self._reading():
            return self.store.exists(str(name))

    def names(self, folder: Name, *, deep: bool = False) -> list[str]:
        """The files directly in ``folder``, or all below it. Raises ResultsError."""
        with self._reading():
            return self.store.names(str(folder), deep=deep)

    def remove(self, names: Collection[Name]) -> int:
        """Remove files whose staying does no harm; return how many could be."""
        removed = 0
        for name in names:
            with suppress(OSError):
                self.store.delete(str(name), lasting=False)
                removed += 1
        return removed

    def erase(self, name: Name) -> None:
        """Remove a file for good, also where the power fails now. Raises CommitError."""
        try:
            self.store.delete(str(name))
        except OSError as error:
            raise CommitError(
                f"{self}/{name} could not be removed: {_why(error)}. Mend the cause."
            ) from error

    def remove_except(self, folder: Name, keep: Collection[str]) -> int:
        """Remove the files directly in ``folder`` that are not in ``keep``; return how many.

        No row names them, so one that stays does no harm.
        """
        with suppress(ResultsError):
            return self.remove([name for name in self.names(folder) if name not in keep])
        return 0

    def clear_leftovers(self) -> None:
        """Remove what a killed run left behind; only while the folder is held."""
        self.clear_unfinished()
        left = self.names("runs")
        self.remove([name for name in left if name.endswith(_OF_A_LIVING_RUN)])

    def clear_unfinished(self) -> None:
        """Remove files that were not written to their end; only while the folder is held."""
        self.remove_except(TEMPORARY, ())

    def _read_or_none(self, name: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return self.read(name)
        return None

    def _waiting(self, write: Callable[[], None]) -> None:
        """Write, and again while the store is away; a file is there whole or not at all."""
        end, wait = time.monotonic() + self._outage_seconds, _FIRST_WAIT_SECONDS
        while True:
            try:
                return write()
            except OSError as error:
                if error.errno not in _AWAY or time.monotonic() + wait > end:
                    raise
            signs.note()  # else whoever waits here would be taken for one that hangs
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)

    @contextmanager
    def _committing(self, name: Name) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CommitError(
                f"{self}/{name} could not be committed: {_why(error)}. Nothing half-written "
                "is visible; mend the cause and submit again, finished slides are not repeated."
            ) from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ResultsError(
                f"The results in {self} cannot be read: {_why(error)}. Check the disk or the "
                "connection and the permissions."
            ) from error


def _why(error: OSError) -> object:
    return error.strerror or error
