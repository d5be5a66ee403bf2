"""What becomes of memory that a process has freed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, MutableMapping

_KEPT = 1 << 30
#: Of mallopt(3): what is said to keep by `_KEPT`, and how many arenas there are.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_VARIABLES = {
    "MALLOC_TRIM_THRESHOLD_": str(_KEPT),
    "MALLOC_MMAP_THRESHOLD_": str(_KEPT),
    "MALLOC_ARENA_MAX": "1",
}


def keep_freed_memory() -> None:
    """Keep it for what is allocated next, instead of giving it back to the kernel at once.

    A batch and the tiles that it is made of are some MiB each, many times a second; glibc maps
    and unmaps such blocks, and the kernel fills each page with zeros again. Peaks stay as they
    are, but a process does not shrink after them. For processes that are ours alone; where
    somebody has set MALLOC_ variables, and without glibc, nothing is done.
    """
    if _is_chosen(os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_TRIM_THRESHOLD, _KEPT)
    # Older ones refuse more than 32 MiB here.
    if not mallopt(_M_MMAP_THRESHOLD, _KEPT):
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    mallopt(_M_ARENA_MAX, 1)


def let_children_keep_freed_memory(environment: MutableMapping[str, str]) -> None:
    """The same for processes that start with ``environment``, from their first thread on."""
    if not _is_chosen(environment):
        environment.update(_VARIABLES)


def _is_chosen(environment: Mapping[str, str]) -> bool:
    return any(name.startswith("MALLOC_") for name in environment)
