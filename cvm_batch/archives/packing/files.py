"""Files that a packer writes: each appears whole, and what cannot be written is told."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvm_batch.errors import CommitError


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the operating system says of writing below ``folder`` into CommitError."""
    try:
        yield
    except OSError as error:
        raise CommitError(
            f"{folder} cannot be written: {error.strerror or error}. What is packed so far is "
            "kept: free space on its disk, or mend it, and give the same command again."
        ) from error


def write_whole(path: Path, data: bytes, beside: Path) -> None:
    """Write ``data`` to ``beside``, on the same disk, and move it to ``path``."""
    beside.write_bytes(data)
    beside.replace(path)


def commit(path: Path, data: bytes, beside: Path) -> None:
    """As `write_whole`, and it survives a power cut."""
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Make a file's content, or what a folder lists, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(folder: Path) -> None:
    """Everything below ``folder``, and itself."""
    for where, _, names in os.walk(folder, topdown=False):
        for name in names:
            flush(Path(where, name))
        flush(Path(where))


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)
