"""timm without PyTorch's compiler, a third of all that a replica imports.

torchvision and timm name three things of ``torch._dynamo`` as they are imported, and with it comes
the whole compiler: 1.1 of 3 seconds (torch 2.15, torchvision 0.29, timm 1.0.31).
A stand-in has those three while they are imported, and is gone afterwards: ``torch.compile``
finds the compiler itself.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from threading import Lock
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_importing = Lock()


def import_timm() -> ModuleType:
    """timm, imported quickly if this process has not done so already."""
    import torch  # noqa: F401  # it is not to find the stand-in in its own making

    with _importing:
        if "timm" in sys.modules or _COMPILER in sys.modules:
            return importlib.import_module("timm")
        standing = [_StandIn(_COMPILER), _StandIn(f"{_COMPILER}.utils")]
        sys.modules.update({module.__name__: module for module in standing})
        try:
            return importlib.import_module("timm")
        except ImportError:  # a version that names more of the compiler
            _step_aside()
            return importlib.import_module("timm")
        finally:
            _step_aside()


class _StandIn(ModuleType):
    """What is asked for while torchvision and timm are imported; whatever else is, is the
    compiler's own."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # it has a submodule

    def disable(
        self, function: Callable[..., Any] | None = None, recursive: bool = True, **_: Any
    ) -> Callable[..., Any]:
        """Marks what is not to be compiled: in timm 1.0.31 methods of NaFlexViT alone, which
        compile, or break the graph there by themselves."""
        return function or (lambda undecorated: undecorated)

    def is_compile_supported(self, device_type: str) -> bool:
        """Asked by torchvision where it has no kernels of its own, long after the import."""
        real = importlib.import_module(f"{_COMPILER}.utils")
        supported: bool = real.is_compile_supported(device_type)
        return supported

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _step_aside()
        return getattr(importlib.import_module(self.__name__), name)


def _step_aside() -> None:
    for name in (_COMPILER, f"{_COMPILER}.utils"):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]
