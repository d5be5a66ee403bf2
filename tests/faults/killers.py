"""Files that end or stop whichever process opens them, as damaged ones do to decoders.

The processes that open slides are Python's own; what a test patches does not reach them.
So they find a ``sitecustomize`` that looks at names: ``killer`` is death, ``sleeper`` a
call that does not come back, ``grenade`` death to Ray's workers alone, as of what crashes
only once its pixels are decoded.
"""

from __future__ import annotations

from pathlib import Path

import pytest

_SITECUSTOMIZE = """
import os, signal, time

opened = os.open


def open(path, *args, **kwargs):
    in_replica = "RAY_RAYLET_PID" in os.environ
    if "killer" in os.fspath(path) or (in_replica and "grenade" in os.fspath(path)):
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(60)  # Ray's handler takes its time: nothing more may come of this thread
    while "sleeper" in os.fspath(path):
        time.sleep(60)
    return opened(path, *args, **kwargs)


os.open = open
"""


def arm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, processes that this one starts obey the names of files."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", str(folder))
