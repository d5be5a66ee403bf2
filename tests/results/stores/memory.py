"""The test double of the seam: a `Store` in memory."""

from __future__ import annotations

import threading
from functools import cached_property

import pyarrow.fs as pafs

from cvm_batch.results.stores.arrow import reading_from


class MemoryStore:
    """Each call happens at once and as a whole."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """There is nothing that could be missing."""

    def put_new(self, name: str, data: bytes | memoryview) -> None:
        with self._lock:
            if name in self.files:
                raise FileExistsError(name)
            self.files[name] = bytes(data)

    def put(self, name: str, data: bytes | memoryview, *, lasting: bool = True) -> None:
        self.files[name] = bytes(data)

    def read(self, name: str) -> bytes:
        try:
            return self.files[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    def exists(self, name: str) -> bool:
        return name in self.files

    def names(self, folder: str, *, deep: bool = False) -> list[str]:
        inside = (name for name in self.files if name.startswith(f"{folder}/"))
        return sorted(name for name in inside if deep or "/" not in name[len(folder) + 1 :])

    def delete(self, name: str, *, lasting: bool = True) -> None:
        self.files.pop(name, None)

    @cached_property
    def filesystem(self) -> pafs.FileSystem:
        return reading_from(self)

    def path_of(self, name: str) -> str:
        return name
