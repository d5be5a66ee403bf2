"""How many CPUs this process may use, which is not how many the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cpus(
    cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int:
    """CPUs by affinity mask and cgroup quota (v2 and v1), at least 1.

    The tightest quota counts, of the process's own cgroup and all those around it.
    """
    cpus = len(os.sched_getaffinity(0))
    return max(1, min([cpus, *map(math.ceil, _quotas(cgroups, membership))]))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """CPUs' worth of time that each cgroup allows, where it has a limit."""
    for controllers, group in _groups(membership):
        mount = cgroups / "cpu" if "cpu" in controllers else cgroups
        for level in (group, *group.parents):
            # In a container the path may be the host's: then the mount itself is the group.
            folder = mount / level.relative_to("/")
            quota = _quota(folder)
            if quota is not None:
                yield quota


def _groups(membership: Path) -> Iterator[tuple[list[str], PurePosixPath]]:
    """Controllers (none for v2) and path of each cgroup that holds the process."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    found = [line.split(":", 2)[1:] for line in lines if line.count(":") >= 2]
    for controllers, path in [*found, ("", "/"), ("cpu", "/")]:
        if not controllers or "cpu" in controllers.split(","):
            yield controllers.split(","), PurePosixPath("/") / path


def _quota(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
