"""Packages that a process does without, though they are installed."""

from __future__ import annotations

import sys


def without(*packages: str) -> None:
    """Let whoever asks for ``packages`` from now on hear that they are not there.

    pyarrow imports numpy and pandas where they are: a third of a second, and a whole one, in
    which a command answers nothing. For processes that are ours alone.
    """
    for package in packages:
        # As Python itself says it: importlib.util.find_spec, too, finds nothing then, where a finder
        # of our own could only raise, which PyTorch's compiler does not expect.
        sys.modules.setdefault(package, None)  # type: ignore[arg-type]
