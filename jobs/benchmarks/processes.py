"""What is measured in a process of its own, so that its memory and its start are its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from cvm_batch.isolation import Done, run_isolated

T = TypeVar("T")
R = TypeVar("R")

_TIMEOUT_SECONDS = 6 * 3600.0


def alone(function: Callable[[T], R], argument: T) -> R:
    """``function(argument)``; raises what it raises."""
    with closing(run_isolated(function, [argument], jobs=1, timeout=_TIMEOUT_SECONDS)) as outcomes:
        outcome = next(outcomes)
    if not isinstance(outcome, Done):
        raise outcome.error
    return outcome.result


def submit(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """``cvm-batch submit`` as a command."""
    return subprocess.run(  # noqa: S603 - this interpreter, with our own command
        [sys.executable, "-m", "cvm_batch", "submit", *arguments], capture_output=True, check=False
    )


def peak_mib(process: int | str = "self") -> float:
    """The most memory that a process has had in use, shared pages included."""
    status = Path(f"/proc/{process}/status").read_text()
    (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024
