"""A job that ends with the command that started it, also where that was killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

_VARIABLE = "CVM_BATCH_ENDS_WITH"
_PR_SET_PDEATHSIG = 1


def environment_of_child() -> Mapping[str, str]:
    """This process's own, for a child that ends with it."""
    return {**os.environ, _VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """Let SIGTERM come when the process dies that gave this one its environment.

    On Linux, by PR_SET_PDEATHSIG; elsewhere, and for a job that was started by hand, nothing.
    """
    parent = os.environ.pop(_VARIABLE, None)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it died before it was asked for
        os.kill(os.getpid(), signal.SIGTERM)
