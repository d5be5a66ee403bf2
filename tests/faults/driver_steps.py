"""A driver that is killed at a chosen step of what it does to the disk.

Steps are links, renames, flushes, and whatever else makes or removes a file or a folder. Between
two of them nothing changes but bytes in a file that no reader sees, and where a flush is to be the
last step, half of those are missing. The driver's own steps are the same in each run; those of the
replica's threads are not, which share the work out by how fast they are.

The process that imports everything forks one driver after the other: a second each, not ten.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

_STEPS = ("fsync", "link", "mkdir", "remove", "rename", "replace", "rmdir", "unlink")
_NOW_AND_THEN = (".beat", ".live")


class Step(NamedTuple):
    """What was done, to which file, by which thread; or, in part, which step is meant."""

    name: str = ""
    path: str = ""
    thread: str = ""

    def is_one(self, meant: Step) -> bool:
        return all(part in whole for part, whole in zip(meant, self, strict=True))


ANY = Step()


@dataclass(frozen=True)
class Ended:
    """How one driver ended."""

    exit_code: int
    """Negative: the signal that killed it."""
    steps: Sequence[Step]
    """Where it was killed, none."""

    @property
    def killed(self) -> bool:
        return self.exit_code == -signal.SIGKILL


class Drivers:
    """Drivers of one night, one after the other, each with results of its own choice."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def submit(self, results: Path, *, die_at: int = 0, of: Step = ANY) -> Ended:
        """``die_at``: the step in place of which it dies, counted from 1 among those that are
        one ``of`` these; 0 lets it live."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(results), die_at, of]) + "\n")
        self._process.stdin.flush()
        exit_code, steps = json.loads(self._process.stdout.readline())
        return Ended(exit_code, [Step(*step) for step in steps])


@contextmanager
def drivers(slides: Path, bundle: Path) -> Iterator[Drivers]:
    command = [sys.executable, "-m", __name__, str(slides), str(bundle)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield Drivers(process)
    finally:
        process.kill()
        process.communicate()


class _Steps:
    """Counts what is done through ``os``, and ends the process at one of them."""

    def __init__(self, die_at: int, of: Step) -> None:
        self.done: list[Step] = []
        self._left, self._of = die_at, of
        self._lock = threading.Lock()

    def count(self) -> None:
        """From now on, in this process."""
        for name in _STEPS:
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, function: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            this = Step(name, _path(name, args), threading.current_thread().name)
            if not this.path.endswith(_NOW_AND_THEN):
                with self._lock:
                    self.done.append(this)
                    self._left -= this.is_one(self._of)
                    if self._left == 0 and this.is_one(self._of):
                        _die(name, args)
            return function(*args, **kwargs)

        return step


def _path(name: str, args: Sequence[Any]) -> str:
    if name == "fsync":
        return os.readlink(f"/proc/self/fd/{args[0]}")
    return os.fspath(args[1] if name in ("link", "rename", "replace") else args[0])


def _die(name: str, args: Sequence[Any]) -> None:
    if name == "fsync" and stat.S_ISREG((status := os.fstat(args[0])).st_mode):
        os.ftruncate(args[0], status.st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def _drive(slides: str, bundle: str, results: str, steps: _Steps, told: int) -> int:
    """In the forked process: one run; what it did goes to the file descriptor ``told``."""
    from cvm_batch.model.precision import Precision
    from cvm_batch.screening import commits
    from cvm_batch.screening.run import run
    from cvm_batch.screening.settings import ExecutorKind, Settings

    commits._MAX_ROWS = 1  # a batch for each slide: many states between the first and the last
    steps.count()
    summary = run(
        Settings(
            inputs=(slides,),
            model=bundle,
            out=Path(results),
            precision=Precision.FP32,
            executor=ExecutorKind.LOCAL,
        )
    )
    with os.fdopen(told, "w") as file:
        json.dump(steps.done, file)
    return summary.exit_code


def _serve(slides: str, bundle: str) -> None:
    import timm  # noqa: F401

    import cvm_batch.screening.replica
    import cvm_batch.screening.run  # noqa: F401

    for line in sys.stdin:
        results, die_at, of = json.loads(line)
        steps = _Steps(die_at, Step(*of))
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            os._exit(_drive(slides, bundle, results, steps, writing))
        os.close(writing)
        with os.fdopen(reading) as file:
            done = json.loads(file.read() or "[]")
        _, status = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), done]), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
