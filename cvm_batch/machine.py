"""What of this machine a process may use, beyond its CPUs (`cvm_batch.cpus`)."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

_SHARED = Path("/dev/shm")  # noqa: S108 - looked at, not written to


def usable_memory(
    cgroups: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")
) -> int:
    """Bytes: the machine's, or less where a container's limit (cgroup v2 or v1) says so."""
    sizes = [int(line.split()[1]) * 1024 for line in _lines(meminfo) if line.startswith("MemTotal")]
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(ValueError):
            sizes += [int(line) for line in _lines(cgroups / limit)]
    return min(sizes, default=0)


def shared_memory() -> int:
    """Bytes of /dev/shm, in which Ray keeps objects; 0 where there is none."""
    return shutil.disk_usage(_SHARED).total if _SHARED.is_dir() else 0


def free_disk(path: Path) -> int:
    """Bytes that may still be written at ``path``, or above it where it is not there yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def nvidia_driver(proc: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The loaded NVIDIA driver's version, None without one."""
    for line in _lines(proc):
        words = line.split()
        if "Module" in words:
            return next(
                (word for word in words[words.index("Module") :] if word[0].isdigit()), None
            )
    return None


def _lines(path: Path) -> list[str]:
    with suppress(OSError):
        return path.read_text().splitlines()
    return []
