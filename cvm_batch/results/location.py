"""Where a results folder lies, for those who read it: a file system and a path in it."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
from pyarrow.fs import (
    FileSelector,
    FileSystem,
    FileType,
    FSSpecHandler,
    LocalFileSystem,
    PyFileSystem,
)

from cvm_batch.errors import ResultsError


def location(results: str | os.PathLike[str]) -> tuple[FileSystem, str]:
    """The file system of a folder or URL that fsspec knows, and the folder's path in it.

    Raises ResultsError where the URL cannot be opened.
    """
    if "://" not in os.fspath(results):
        return LocalFileSystem(), str(Path(results).absolute())
    try:
        filesystem, path = fsspec.url_to_fs(os.fspath(results))
    except (ImportError, ValueError, OSError) as error:
        raise ResultsError(
            f"The results at {results} cannot be opened: {error}. Check the address, and that "
            "what reads it is installed, such as 'cvm-batch[s3]'."
        ) from error
    return PyFileSystem(FSSpecHandler(filesystem)), path


def files_below(filesystem: FileSystem, folder: str, suffix: str) -> list[str]:
    """Paths of all visible files with the suffix, sorted; none where there is no folder."""
    found = filesystem.get_file_info(FileSelector(folder, allow_not_found=True, recursive=True))
    return sorted(
        info.path
        for info in found
        if info.type is FileType.File
        and info.path.endswith(suffix)
        and not info.base_name.startswith(".")
    )
