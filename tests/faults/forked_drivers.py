"""Drivers in processes of their own, over the same slides.

A process that has imported everything forks one after the other: a second each, not ten.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cvm_batch.errors import CvmBatchError
from cvm_batch.model.precision import Precision
from cvm_batch.screening import commits
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings
from cvm_batch.screening.summary import Progress
from tests.faults.driver_steps import Step, Steps, Trouble

_NO_TROUBLE = Trouble()
#: Exit code of a driver that raised what is no error of ours.
_BROKE = 70


@dataclass(frozen=True)
class Ended:
    """How one driver ended."""

    exit_code: int
    """Negative: the signal that killed it."""
    error: str
    """What it was ended by, or nothing."""
    steps: Sequence[Step]
    """What it did to the disk."""

    @property
    def killed(self) -> bool:
        return self.exit_code == -signal.SIGKILL


class Drivers:
    """One driver at a time, each with results of its own choice."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def submit(
        self,
        results: Path | str,
        trouble: Trouble = _NO_TROUBLE,
        *,
        largest_file: int = resource.RLIM_INFINITY,
    ) -> Ended:
        """``largest_file``: bytes after which the kernel refuses to write on."""
        self._ask(results=str(results), trouble=trouble, largest_file=largest_file)
        return self.wait()

    def start(self, results: Path | str, gate: Path) -> int:
        """A driver that waits in mid-run, alive, until there is a file ``gate``.

        Returns its process ID, when it waits.
        """
        process = self._ask(results=str(results), gate=str(gate))
        while not _waits_at(gate).exists():
            time.sleep(0.02)
        return process

    def wait(self) -> Ended:
        """For the end of the driver that was started."""
        exit_code, error, steps = self._answer()
        return Ended(exit_code, error, [Step(*step) for step in steps])

    def _ask(self, **wanted: Any) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def drivers(slides: Path, bundle: Path) -> Iterator[Drivers]:
    command = [sys.executable, "-m", __name__, str(slides), str(bundle)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield Drivers(process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with a driver that is stopped
        process.communicate()


def _waits_at(gate: Path) -> Path:
    return gate.with_suffix(".waits")


def _wait_at(gate: Path) -> Callable[[Progress], None]:
    """Waits once, where some rows are committed and others are not."""

    def report(progress: Progress) -> None:
        if 0 < progress.slides_done < progress.slides and not gate.exists():
            _waits_at(gate).touch()
            while not gate.exists():
                time.sleep(0.02)

    return report


def _drive(settings: Settings, steps: Steps, told: int, wanted: dict[str, Any]) -> NoReturn:
    """In the forked process: one run; how it went goes to the file descriptor ``told``."""
    error, exit_code = "", _BROKE
    try:
        exit_code = _run(settings, steps, wanted)
    except CvmBatchError as raised:
        error, exit_code = str(raised), raised.exit_code
    except BaseException:
        error = traceback.format_exc()
    finally:
        with os.fdopen(told, "w") as file:
            json.dump([error, steps.done], file)
        os._exit(exit_code)


def _run(settings: Settings, steps: Steps, wanted: dict[str, Any]) -> int:
    commits._MAX_ROWS = 1  # a batch for each slide: many states between the first and the last
    gate = wanted.get("gate")
    report = _wait_at(Path(gate)) if gate else lambda progress: None
    largest = wanted.get("largest_file", resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    steps.count()
    return run(settings, report=report).exit_code


def _serve(slides: str, bundle: str) -> None:
    import timm  # noqa: F401

    import cvm_batch.screening.replica  # noqa: F401

    for line in sys.stdin:
        wanted = json.loads(line)
        settings = Settings(
            inputs=(slides,),
            model=bundle,
            out=wanted["results"],
            precision=Precision.FP32,
            executor=ExecutorKind.LOCAL,
            batch_size=2,
        )
        at, of, fails = wanted.get("trouble", _NO_TROUBLE)
        steps = Steps(Trouble(at, Step(*of), fails))
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            _drive(settings, steps, writing, wanted)
        os.close(writing)
        print(child, flush=True)
        with os.fdopen(reading) as file:
            error, done = json.loads(file.read() or '["", []]')
        _, status = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), error, done]), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
