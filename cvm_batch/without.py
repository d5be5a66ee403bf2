"""Packages that a process does without, though they are installed."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder


def without(*packages: str) -> None:
    """Let whoever asks for ``packages`` from now on hear that they are not there.

    pyarrow imports numpy and pandas where they are: a third of a second, and a whole one, in
    which a command answers nothing. For processes that are ours alone.
    """
    sys.meta_path.insert(0, _Without(packages))


class _Without(MetaPathFinder):
    def __init__(self, packages: tuple[str, ...]) -> None:
        self._packages = packages

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname in self._packages:
            raise ModuleNotFoundError(f"This process does without {fullname}.", name=fullname)
