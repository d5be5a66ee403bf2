"""Contestants by turns, each in a process of its own.

So start-up and peak memory are each one's own, and whoever shares the machine disturbs all
of them alike. Only one computes at a time.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.contestants import Contestant, Ready
from cvm_batch.model.bundle import load_bundle

#: Tiles whose probabilities are compared with the reference.
COMPARED = 64
#: Of one turn: half a GB of them.
_MOST_TILES = 16_384
_MIB = 2**20

Message = TypeVar("Message")


@dataclass(frozen=True)
class Stage:
    """What all contestants are given."""

    bundle: Path
    tiles: Path
    """A .npy file of native-size tiles uint8 [n, h, w, 3]."""
    scratch: Path
    """A folder for what compilers leave behind."""
    device: torch.device
    seconds: float
    """That one turn should take."""


@dataclass(frozen=True)
class Start:
    """What a contestant did before its first turn."""

    batch: int
    lanes: int
    ready_seconds: float
    """From the start of its process, Python's and PyTorch's imports included."""
    first_batch_seconds: float
    probabilities: NDArray[np.float32]
    """Of the first COMPARED tiles."""
    device_mib: float | None
    """Memory of the GPU that was taken in the meantime, by whichever library."""
    allocated_mib: float | None
    """The most of it that PyTorch's tensors filled at once."""


@dataclass(frozen=True)
class Turn:
    tiles_per_second: float
    peak_mib: float
    """Resident memory of the process, at its peak so far."""


@dataclass(frozen=True)
class Failure:
    reason: str


@dataclass
class Standing:
    """How a contestant fared. One that fails takes no further turns."""

    contestant: Contestant
    start: Start | None = None
    turns: list[Turn] = field(default_factory=list)
    failed: str | None = None


def contest(
    contestants: Sequence[Contestant],
    stage: Stage,
    rounds: int,
    *,
    tell: Callable[[str], None],
    each_round: Callable[[], None],
) -> list[Standing]:
    """A standing for each, in order. ``tell`` hears what is going on."""
    with ExitStack() as stack:
        seats = []
        for contestant in contestants:
            tell(f"setting up {contestant}")
            seat = _Seat(contestant, stage)
            stack.callback(seat.close)
            seat.begin()
            seats.append(seat)
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}")
            each_round()
            for seat in seats:
                seat.turn()
    return [seat.standing for seat in seats]


class _Seat:
    """The parent's end of a contestant's process."""

    def __init__(self, contestant: Contestant, stage: Stage) -> None:
        self.standing = Standing(contestant)
        spawn = get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(
            target=_take_part, args=(theirs, contestant, stage, time.monotonic())
        )
        self._process.start()
        theirs.close()  # or its end would not be noticed

    def begin(self) -> None:
        self.standing.start = self._receive(Start)

    def turn(self) -> None:
        if self.standing.failed is None:
            with suppress(BrokenPipeError):
                self._pipe.send(None)
            turn = self._receive(Turn)
            if turn is not None:
                self.standing.turns.append(turn)

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.kill()

    def _receive(self, kind: type[Message]) -> Message | None:
        try:
            message = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            message = Failure(f"its process ended by itself, exit code {self._process.exitcode}")
        if isinstance(message, kind):
            return message
        self.standing.failed = message.reason
        return None


def _take_part(
    pipe: Connection[Any, Any], contestant: Contestant, stage: Stage, began: float
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and closes the pipe
    os.dup2(2, 1)  # stdout is for the report, and some exporters talk
    # Whoever compiles does so from nothing, whatever was compiled here before.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(dir=stage.scratch)
    try:
        _perform(pipe, contestant, stage, began)
    except EOFError:
        pass  # the contest is over
    except Exception as error:
        if not isinstance(error, ImportError):
            traceback.print_exc()
        pipe.send(Failure(_reason(error)))


def _perform(
    pipe: Connection[Any, Any], contestant: Contestant, stage: Stage, began: float
) -> None:
    tiles: NDArray[np.uint8] = np.load(stage.tiles)
    gpu = stage.device.type == "cuda"
    free = torch.cuda.mem_get_info(stage.device)[0] if gpu else 0
    ready = contestant.set_up(load_bundle(stage.bundle), contestant.precision, stage.device)
    at_ready = time.monotonic()
    ready.classify(tiles[: ready.batch])
    after_first = time.monotonic()
    probabilities, speed = _timed(ready, tiles, COMPARED)
    pipe.send(
        Start(
            batch=ready.batch,
            lanes=ready.lanes,
            ready_seconds=at_ready - began,
            first_batch_seconds=after_first - at_ready,
            probabilities=probabilities[:COMPARED],
            device_mib=(free - torch.cuda.mem_get_info(stage.device)[0]) / _MIB if gpu else None,
            allocated_mib=torch.cuda.max_memory_allocated(stage.device) / _MIB if gpu else None,
        )
    )
    while True:
        if gpu:
            torch.cuda.empty_cache()  # the others need the memory
        pipe.recv()
        if gpu:
            ready.classify(tiles[: ready.batch])  # fetches it again
        _, speed = _timed(ready, tiles, min(stage.seconds * speed, _MOST_TILES))
        pipe.send(Turn(speed, _peak_mib()))


def _timed(
    ready: Ready, tiles: NDArray[np.uint8], count: float
) -> tuple[NDArray[np.float32], float]:
    """Classify at least ``count`` tiles, in whole batches for every lane; the tiles repeat.

    Returns their probabilities, and tiles per second.
    """
    whole = ready.batch * ready.lanes
    chosen = tiles[np.arange(math.ceil(count / whole) * whole) % len(tiles)]
    started = time.perf_counter()
    probabilities = ready.classify(chosen)
    return probabilities, len(chosen) / (time.perf_counter() - started)


def _peak_mib() -> float:
    # Not getrusage: after a fork it starts from the parent's peak.
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    return int(line.split()[1]) / 1024


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed"
    first, *_ = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {first}"
