"""The results folder as a place to commit to: every file appears whole or not at all.

A file is written in ``.tmp``, which no reader scans, flushed to disk, and then linked
to its final name, which fails where that name exists: so a commit cannot be overwritten,
and a driver killed at any moment leaves the old state or the new one.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO

from cvm_batch.errors import CommitError, ResultsError, ResultsInUseError

_TEMPORARY = ".tmp"
_LOCK = ".lock"
_LOCK_ATTEMPTS = 4
#: Files in runs/ that mean nothing once their run has gone (results/live.py).
_OF_A_LIVING_RUN = ("*.live", "*.stop", "*.priority")


class ResultsFolder:
    """One results folder. Paths given and returned are relative to it, POSIX style."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Make the folder and prove that files can be committed. Raises ResultsError."""
        try:
            _make_folder(self.root / _TEMPORARY)
            probe = self._write_beside(b"probe")
            linked = probe.with_suffix(".linked")
            os.link(probe, linked)
            # Another run that starts at this moment may have cleared them away.
            for path in (probe, linked):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the folder for one run; the lock falls with the process.

        Raises ResultsInUseError where another run holds it, ResultsError where it cannot be
        locked.
        """
        with ExitStack() as held:
            try:
                file = held.enter_context((self.root / _LOCK).open("a"))
                _lock(file)
                self._clear_temporary()
            except BlockingIOError as error:
                raise ResultsInUseError(
                    f"Another run is writing to {self.root}. Wait for its end, or choose "
                    "another folder with --out."
                ) from error
            except OSError as error:
                raise self._unusable(error) from error
            yield

    def publish(self, path: PurePosixPath | str, data: bytes | memoryview) -> None:
        """Write the new file ``path``. Raises CommitError, also where it exists."""
        final = self.root / path
        try:
            _make_folder(final.parent)
            beside = self._write_beside(data)
            try:
                os.link(beside, final)
            finally:
                beside.unlink()
            _flush_folder(final.parent)
        except OSError as error:
            raise _commit_error(final, error) from error

    def replace(self, path: PurePosixPath | str, data: bytes | memoryview) -> None:
        """Write the file ``path``, in place of an older one if there is. Raises CommitError."""
        final = self.root / path
        try:
            _make_folder(final.parent)
            self._write_beside(data).replace(final)
            _flush_folder(final.parent)
        except OSError as error:
            raise _commit_error(final, error) from error

    def replace_unflushed(self, path: PurePosixPath | str, data: bytes) -> None:
        """Write what is out of date in a moment: whole, but not flushed. Raises OSError."""
        final = self.root / path
        beside = final.with_name(f".{final.name}")
        beside.write_bytes(data)
        beside.replace(final)

    def held(self) -> bool:
        """Whether a run holds the folder. Raises ResultsError where that cannot be told."""
        try:
            with (self.root / _LOCK).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except BlockingIOError:
            return True
        except OSError as error:
            raise self._unusable(error) from error

    def remove_except(self, folder: PurePosixPath | str, keep: set[str]) -> int:
        """Remove the files directly in ``folder`` that are not in ``keep``; return how many."""
        removed = 0
        for path in sorted((self.root / folder).glob("*")):
            if path.relative_to(self.root).as_posix() not in keep:
                with suppress(OSError):  # a leftover that stays does no harm: no row names it
                    path.unlink()
                    removed += 1
        return removed

    def _write_beside(self, data: bytes | memoryview) -> Path:
        beside = self.root / _TEMPORARY / uuid.uuid4().hex
        try:
            with beside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                beside.unlink()
            raise
        return beside

    def _clear_temporary(self) -> None:
        """Remove what a killed run left unfinished; only under the lock."""
        left = [*(self.root / _TEMPORARY).iterdir()]
        left += [path for kind in _OF_A_LIVING_RUN for path in (self.root / "runs").glob(kind)]
        for path in left:
            path.unlink(missing_ok=True)

    def _unusable(self, error: OSError) -> ResultsError:
        return ResultsError(
            f"The results folder {self.root} cannot be written: {error.strerror or error}. It "
            "must lie on a file system with hard links and locks. Choose another folder with "
            "--out, or mend its permissions or its disk."
        )


def _lock(file: IO[str]) -> None:
    """Raises BlockingIOError where another run holds it."""
    for _ in range(_LOCK_ATTEMPTS):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.05)  # whoever asks whether it is held has it for a moment
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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


def _commit_error(path: Path, error: OSError) -> CommitError:
    return CommitError(
        f"{path} could not be committed: {error.strerror or error}. Nothing half-written is "
        "visible; mend the cause and submit again, finished slides are not repeated."
    )
