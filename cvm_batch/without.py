"""Packages that a process does without, though they are installed."""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn


def without(*packages: str) -> None:
    """Let whoever imports ``packages`` from now on hear that they are not there.

    pyarrow imports numpy and pandas where they are: a third of a second, and a whole one, in
    which a command answers nothing. For processes that are ours alone.
    """
    sys.meta_path.insert(0, _Without(packages))


class _Without(MetaPathFinder):
    """Finds them, and refuses to load them. PyTorch's compiler asks where packages are and expects
    no error, and a None in ``sys.modules`` is a module to what Cython compiled."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self._packages = packages

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Refusing()) if fullname in self._packages else None


class _Refusing(Loader):
    def exec_module(self, module: ModuleType) -> NoReturn:
        name = module.__name__
        raise ModuleNotFoundError(f"This process does without {name}.", name=name)
