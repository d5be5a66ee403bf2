"""Versions of all that decides a result, without loading any of it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import cvm_batch

_LIBRARIES = ("numpy", "openvino", "pillow", "pyarrow", "ray", "timm", "torch", "zarr")


@cache
def versions() -> Mapping[str, str]:
    """Of this package, Python, and the libraries that are installed here."""
    found = {"cvm_batch": cvm_batch.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):  # LocalExecutor runs without Ray
            found[name] = version(name)
    return found
