"""A results folder on a disk, or on a share that is mounted.

A file is written in ``.tmp``, which no reader scans, flushed to disk, and then linked to its
final name, which fails where that name exists.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

import pyarrow.fs as pafs

#: What a killed process leaves here was never visible.
TEMPORARY = ".tmp"


class DiskStore:
    """A `Store` below a folder that need not be there yet."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def filesystem(self) -> pafs.FileSystem:
        return pafs.LocalFileSystem()

    def path_of(self, name: str) -> str:
        return str(self._root.absolute() / name)

    def prepare(self) -> None:
        _make_folder(self._root / TEMPORARY)
        probe = self._write_beside(b"probe", flushed=True)
        linked = probe.with_suffix(".linked")
        os.link(probe, linked)
        # Another run that starts at this moment may have cleared them away.
        for path in (probe, linked):
            path.unlink(missing_ok=True)

    def put_new(self, name: str, data: bytes | memoryview) -> None:
        final = self._root / name
        _make_folder(final.parent)
        beside = self._write_beside(data, flushed=True)
        try:
            os.link(beside, final)
        finally:
            beside.unlink(missing_ok=True)
        _flush_folder(final.parent)

    def put(self, name: str, data: bytes | memoryview, *, lasting: bool = True) -> None:
        final = self._root / name
        _make_folder(final.parent)
        beside = self._write_beside(data, flushed=lasting)
        try:
            beside.replace(final)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        if lasting:
            _flush_folder(final.parent)

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def exists(self, name: str) -> bool:
        return (self._root / name).exists()

    def names(self, folder: str, *, deep: bool = False) -> list[str]:
        found = (self._root / folder).rglob("*") if deep else (self._root / folder).glob("*")
        return sorted(path.relative_to(self._root).as_posix() for path in found if path.is_file())

    def delete(self, name: str, *, lasting: bool = True) -> None:
        path = self._root / name
        with suppress(FileNotFoundError):
            path.unlink()
            if lasting:
                _flush_folder(path.parent)

    def _write_beside(self, data: bytes | memoryview, *, flushed: bool) -> Path:
        beside = self._root / TEMPORARY / uuid.uuid4().hex
        try:
            with beside.open("xb") as file:
                file.write(data)
                if flushed:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                beside.unlink()
            raise
        return beside


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each of which survives a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Make a rename or link in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
