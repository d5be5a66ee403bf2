"""What a driver does to the disk, step by step, and a step at which it dies or the disk fails.

Steps are links, renames, flushes, and whatever else makes or removes a file or a folder. Between
two of them nothing changes but bytes in a file that no reader sees, and where a flush is to be the
last step, half of those are missing. The driver's own steps are the same in each run; those of the
replica's threads are not, which share the work out by how fast they are.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

_STEPS = ("fsync", "link", "mkdir", "remove", "rename", "replace", "rmdir", "unlink")
_NOW_AND_THEN = (".beat", ".live")


class Step(NamedTuple):
    """What was done, to which file, by which thread; or, in part, which step is meant."""

    name: str = ""
    path: str = ""
    thread: str = ""

    def is_one(self, meant: Step) -> bool:
        return all(part in whole for part, whole in zip(meant, self, strict=True))


class Trouble(NamedTuple):
    """What comes in place of a step."""

    at: int = 0
    """Counted from 1 among the steps that are one ``of`` those; 0: there is no trouble."""
    of: Step = Step()
    fails: bool = False
    """The disk is full, or does not answer; else the driver dies."""


class Steps:
    """Counts what is done through ``os``, and makes the trouble."""

    def __init__(self, trouble: Trouble) -> None:
        self.done: list[Step] = []
        self._trouble = trouble
        self._left = trouble.at
        self._lock = threading.Lock()

    def count(self) -> None:
        """From now on, in this process."""
        for name in _STEPS:
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, function: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            this = Step(name, _path(name, args), threading.current_thread().name)
            if self._is_it(this):
                if self._trouble.fails:
                    raise _failure(name)
                _die(name, args)
            return function(*args, **kwargs)

        return step

    def _is_it(self, step: Step) -> bool:
        if step.path.endswith(_NOW_AND_THEN):
            return False
        with self._lock:
            self.done.append(step)
            meant = step.is_one(self._trouble.of)
            self._left -= meant
            return meant and self._left == 0


def _path(name: str, args: Sequence[Any]) -> str:
    if name == "fsync":
        return os.readlink(f"/proc/self/fd/{args[0]}")
    return os.fspath(args[1] if name in ("link", "rename", "replace") else args[0])


def _failure(name: str) -> OSError:
    number = errno.EIO if name == "fsync" else errno.ENOSPC
    return OSError(number, os.strerror(number))


def _die(name: str, args: Sequence[Any]) -> None:
    if name == "fsync" and stat.S_ISREG((status := os.fstat(args[0])).st_mode):
        os.ftruncate(args[0], status.st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)
