"""pyarrow reads tables from a store, each file by one request."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa
import pyarrow.fs as pafs

#: Files of results never change while they are read; one with tiles has some ten megabytes.
_FILES_KEPT = 8

if TYPE_CHECKING:
    from cvm_batch.results.stores.store import Store


def reading_from(
    store: Store, tell: Callable[[str, OSError], None] | None = None
) -> pafs.FileSystem:
    """A file system, to read from, of the files in ``store`` by their names there.

    Files are taken into memory whole, as results are many small ones: a request for each part
    of one would take longer; a few are kept, as slides that share a file are read one after the
    other. What the store does about failures holds for these reads too.

    With ``tell``, a file that cannot be read is told of there, and is empty: for data sets that
    others scan. pyarrow's `Scanner.to_reader` holds the lock of Python's interpreter while it
    waits for threads, and one that met an error of Python's waits for that lock: for ever.
    """
    return pafs.PyFileSystem(_Handler(store, tell))


class _OnceRead:
    """A file that several threads may ask for at once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = Lock()
        self._data: bytes | None = None

    def read(self, store: Store) -> bytes:
        """Raises OSError, and asks again the next time."""
        with self._lock:
            if self._data is None:
                self._data = store.read(self._path)
            return self._data


class _Handler(pafs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    def __init__(self, store: Store, tell: Callable[[str, OSError], None] | None) -> None:
        self._store = store
        self._tell = tell
        self._kept = lru_cache(maxsize=_FILES_KEPT)(_OnceRead)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handler) and other._store is self._store

    def __hash__(self) -> int:
        return id(self._store)

    def get_type_name(self) -> str:
        return "results"

    def normalize_path(self, path: str) -> str:
        return path.strip("/")

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return [pafs.FileInfo(path, self._type(path)) for path in paths]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        found = self._store.names(selector.base_dir, deep=selector.recursive)
        if not (found or selector.allow_not_found):
            raise FileNotFoundError(selector.base_dir)
        return [pafs.FileInfo(name, pafs.FileType.File) for name in found]

    def open_input_file(self, path: str) -> pa.NativeFile:
        try:
            data = self._kept(path).read(self._store)
        except OSError as error:
            if self._tell is None:
                raise
            self._tell(path, error)
            data = b""
        return pa.BufferReader(data)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def _type(self, path: str) -> pafs.FileType:
        if self._store.exists(path):
            return pafs.FileType.File
        holds = self._store.names(path, deep=True)
        return pafs.FileType.Directory if holds else pafs.FileType.NotFound

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError("results are written by cvm_batch.results alone")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _refuse
    delete_file = move = copy_file = open_output_stream = open_append_stream = _refuse
