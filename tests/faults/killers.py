"""Files that end or stop whichever process opens them, as damaged ones do to decoders.

The processes that open slides are Python's own; what a test patches does not reach them.
So they find a ``sitecustomize`` that looks at names: ``killer`` is death, ``sleeper`` a
call that does not come back, ``stupor`` one in the threads that decode for a replica. To Ray's
workers alone, as of what only goes wrong once its pixels are decoded, ``grenade`` is death, and
``trance`` native code that neither comes back nor lets go of Python's lock.

Of a node that is started with it, the variable ``UNMOUNTED`` names a folder that its processes do
not see, and ``NO_ROOM`` one where nothing can be put.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_SITECUSTOMIZE = """
import ctypes, errno, os, signal, threading, time

opened = os.open


def open(path, *args, **kwargs):
    in_replica = "RAY_RAYLET_PID" in os.environ
    if "killer" in os.fspath(path) or (in_replica and "grenade" in os.fspath(path)):
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(60)  # Ray's handler takes its time: nothing more may come of this thread
    if in_replica and "trance" in os.fspath(path):
        ctypes.PyDLL(None).sleep(3600)
    decodes = threading.current_thread().name.startswith("decode")
    while "sleeper" in os.fspath(path) or (decodes and "stupor" in os.fspath(path)):
        time.sleep(60)
    return opened(path, *args, **kwargs)


os.open = open
unmounted, no_room = os.environ.get("UNMOUNTED"), os.environ.get("NO_ROOM")
looked, linked = os.stat, os.link


def stat(path, *args, **kwargs):
    if unmounted and str(path).startswith(unmounted):
        raise FileNotFoundError(errno.ENOENT, "not mounted", path)
    return looked(path, *args, **kwargs)


def link(source, target, *args, **kwargs):
    if no_room and str(target).startswith(no_room):
        raise OSError(errno.ENOSPC, "no room", target)
    return linked(source, target, *args, **kwargs)


os.stat, os.link = stat, link
"""


def arm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, processes that this one starts obey the names of files."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
