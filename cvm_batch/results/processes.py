"""Which process holds a results folder, and whether it is still there.

Only a process of the same machine, and of the same container, can be looked up.
"""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
#: States of a process that has ended, though its parent has not taken note of it.
_ENDED = ("Z", "X")


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process, told apart from every other one that there ever was."""

    host: str
    boot_id: str
    """Of the machine's running kernel."""
    pid_namespace: int
    """Within which the pid means something: a container has its own."""
    pid: int
    started: int
    """Clock ticks after the machine's start: pids are given again."""

    @classmethod
    def this(cls) -> Process:
        seen = _look_up(os.getpid())
        return cls(
            host=platform.node(),
            boot_id=_text(_PROC / "sys/kernel/random/boot_id"),
            pid_namespace=_pid_namespace(),
            pid=os.getpid(),
            started=seen[1] if seen else 0,
        )

    def lives(self) -> bool | None:
        """None where that cannot be seen from here: it is elsewhere, or another user's whose
        processes this one may not look up."""
        here = Process.this()
        ours = (here.host, here.boot_id, here.pid_namespace)
        if not self.boot_id or (self.host, self.boot_id, self.pid_namespace) != ours:
            return None
        seen = _look_up(self.pid)
        if seen is None:
            return None if _is_hidden(self.pid) else False
        return seen[0] not in _ENDED and seen[1] == self.started

    def is_gone(self) -> bool:
        """Whether it is known to have ended."""
        return self.lives() is False


def _look_up(pid: int) -> tuple[str, int] | None:
    """State, and start in clock ticks; None where there is no such process to be seen."""
    text = _text(_PROC / str(pid) / "stat")
    if not text:
        return None
    # The name in brackets, before these, may hold anything.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process all the same: /proc may be mounted with hidepid."""
    try:
        with suppress(PermissionError):
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _pid_namespace() -> int:
    with suppress(OSError):
        return (_PROC / "self/ns/pid").stat().st_ino
    return 0


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""
