"""What runs in a worker process of `cvm_batch.isolation`."""

from __future__ import annotations

import fcntl
import os
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any


def work(connection_fd: int, lifeline_fd: int) -> None:
    """What a worker does: the function comes first, then one item after the other."""
    _die_with(lifeline_fd)
    _be_killed_first()
    # Also where a supervisor signals all processes of the service: the parent ends its workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(connection_fd)
    try:
        function = connection.recv()
    except Exception as error:
        connection.send((None, _portable(error)))
        return
    connection.send((None, None))
    with suppress(EOFError):
        while True:
            connection.send_bytes(_answer(function, connection.recv_bytes()))


def _answer(function: Callable[[Any], object], message: bytes) -> memoryview:
    try:
        return ForkingPickler.dumps((function(ForkingPickler.loads(message)), None))
    except Exception as error:
        return ForkingPickler.dumps((None, _portable(error)))


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note; a plain one where it does not survive pickling."""
    trace = "".join(traceback.format_exception(error))
    try:
        again = ForkingPickler.loads(ForkingPickler.dumps(error))
        survives = type(again) is type(error) and str(again) == str(error)
    except Exception:
        survives = False
    if not survives:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In a worker process:\n{trace}")
    return error


def _die_with(lifeline_fd: int) -> None:
    """Let the kernel kill this process once nobody holds the other end of this pipe.

    It ends code that never returns to Python too, which a waiting thread could not.
    PR_SET_PDEATHSIG would strike when the thread that started the worker ends.
    """
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline_fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, os.O_ASYNC)


def _be_killed_first() -> None:
    """When memory runs out, the kernel is to take a worker and not the run."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
