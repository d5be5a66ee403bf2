"""What a running run tells those who look at its results folder, and what they may ask of it.

    runs/<run_id>.live   where the run stands (JSON), replaced every few seconds, gone at its end;
                         while it plans, it is all that there is of the run
    runs/<run_id>.stop   somebody wants it to stop
    runs/<run_id>-<nnn>.priority   somebody wants some slides to go earlier or later (JSON)

Files, since whoever asks may sit on another machine that shares the folder: and since a job
that a scheduler stops has a few seconds, the marker is seen before any signal arrives.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cvm_batch.errors import CommitError, ResultsError
from cvm_batch.results.claims import Claims
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.manifest import RunState, manifests

_TELL_EVERY_SECONDS = 2.0
_LOOK_EVERY_SECONDS = 0.5
#: Of the run's time that goes into either of these.
_SHARE = 0.05


class LiveFiles:
    """Those files, from the running run's side."""

    def __init__(self, results: ResultsFolder, run: RunName) -> None:
        self._results = results
        self._run = run
        self._tell_at = self._look_at = self._priorities_at = float("-inf")
        self._wanted = False
        self._priorities: list[tuple[str, int]] = []
        self._priorities_told = 0

    def tell(self, now: float, standing: Mapping[str, Any]) -> None:
        """Replace what is told, if it is old."""
        if now >= self._tell_at:
            text = json.dumps({"told_at": now, **standing}).encode()
            self._tell_at = now + max(_TELL_EVERY_SECONDS, _took(self._tell, text) / _SHARE)

    def stop_wanted(self, now: float) -> bool:
        if not self._wanted and now >= self._look_at:
            self._look_at = now + max(_LOOK_EVERY_SECONDS, _took(self._look) / _SHARE)
        return self._wanted

    def priorities_wanted(self, now: float) -> list[tuple[str, int]]:
        """Patterns of slide_ids and their priorities, asked for since the last call."""
        if now >= self._priorities_at:
            took = _took(self._look_for_priorities)
            self._priorities_at = now + max(_LOOK_EVERY_SECONDS, took / _SHARE)
        new = self._priorities[self._priorities_told :]
        self._priorities_told = len(self._priorities)
        return new

    def remove(self) -> None:
        markers = map(self._run.priority_marker, range(len(self._priorities)))
        self._results.remove([self._run.live, self._run.stop_marker, *markers])

    def _tell(self, text: bytes) -> None:
        with suppress(OSError):  # an untold standing does no harm
            self._results.replace_unflushed(self._run.live, text)

    def _look(self) -> None:
        with suppress(ResultsError):  # it is looked for again
            self._wanted = self._results.exists(self._run.stop_marker)

    def _look_for_priorities(self) -> None:
        with suppress(ResultsError, FileNotFoundError):  # the first that is not there ends it
            while True:
                marker = self._run.priority_marker(len(self._priorities))
                asked = json.loads(self._results.read(marker))
                self._priorities.append((asked["pattern"], asked["priority"]))


def _took(request: Callable[..., None], *details: Any) -> float:
    """How many seconds: on object storage each waits for an answer."""
    began = time.monotonic()
    request(*details)
    return time.monotonic() - began


@dataclass(frozen=True)
class RunSeen:
    """A run as its files show it, newest first in `runs_seen`."""

    manifest: Mapping[str, Any]
    live: Mapping[str, Any] | None
    """Where it stands, if it runs, or stood when it was killed over its planning."""
    state: RunState
    """As in the manifest, but ``interrupted`` where it says running and the run does not hold the
    folder any more."""

    @property
    def run_id(self) -> str:
        return str(self.manifest["run_id"])


def runs_seen(results: ResultsFolder) -> list[RunSeen]:
    """All runs of a results folder, the newest first. Raises ResultsError where none is."""
    found = list(manifests(results))
    if not found:
        raise ResultsError(f"{results} holds no runs. Give the folder that was --out of a submit.")
    running = any(manifest["state"] == RunState.RUNNING for manifest in found)
    holder = Claims(results).holder() if running else None
    return [_seen(results, manifest, holder.run_id if holder else None) for manifest in found]


def planning_run(results: ResultsFolder) -> RunSeen | None:
    """The newest run, where it plans: it has no manifest yet. Raises ResultsError.

    ``interrupted`` where its process died over that.
    """
    names = set(results.names("runs"))
    lone = {name for name in names if name.endswith(".live")} - {
        name.removesuffix(".json") + ".live" for name in names
    }
    if not lone:
        return None
    claims = Claims(results)
    holder = claims.holder()
    newest = holder or claims.newest()
    # Of a driver that was killed in an earlier night one may have stayed behind.
    if newest is None or newest.released or RunName.of(newest.run_id).live.as_posix() not in lone:
        return None
    run = RunName.of(newest.run_id)
    state = RunState.RUNNING if holder else RunState.INTERRUPTED
    with suppress(FileNotFoundError, ValueError):
        return RunSeen({"run_id": run.run_id}, json.loads(results.read(run.live)), state)
    return None


def is_running(results: ResultsFolder, run_id: str) -> bool:
    """Whether the run holds the folder. Raises ResultsError."""
    holder = Claims(results).holder()
    return holder is not None and holder.run_id == run_id


def ask_to_stop(results: ResultsFolder) -> str:
    """Leave the marker for the run that runs; return its run_id. Raises ResultsError."""
    run_id = _running(results)
    try:
        results.replace(RunName.of(run_id).stop_marker, b"")
    except CommitError as error:
        raise ResultsError(
            f"The marker that stops {run_id} cannot be written: {error} Or send the process "
            "SIGTERM instead."
        ) from error
    return run_id


def ask_for_priority(results: ResultsFolder, pattern: str, priority: int) -> str:
    """Ask the run that runs to give matching slides a priority; return its run_id.

    Raises ResultsError, CommitError.
    """
    run = RunName.of(_running(results))
    # With the time, so that the same wish later is another file.
    asked = {"pattern": pattern, "priority": priority, "asked_at": time.time()}
    data = json.dumps(asked).encode()
    number = 0
    while not results.put_new(run.priority_marker(number), data):
        number += 1
    return run.run_id


def _running(results: ResultsFolder) -> str:
    planning = planning_run(results)
    seen = [planning] if planning else runs_seen(results)
    running = [each for each in seen if each.state == RunState.RUNNING]
    if not running:
        raise ResultsError(f"No run is running in {results}: there is nothing to ask of it.")
    return running[0].run_id


def _seen(results: ResultsFolder, manifest: Mapping[str, Any], holder: str | None) -> RunSeen:
    state = RunState(manifest["state"])
    if state is not RunState.RUNNING:
        return RunSeen(manifest, None, state)
    run = RunName.of(manifest["run_id"])
    if run.run_id != holder:
        # It may have ended since its manifest was read: it writes the last one, then lets go.
        manifest = json.loads(results.read(run.manifest))
        ended = RunState(manifest["state"])
        return RunSeen(manifest, None, RunState.INTERRUPTED if ended is state else ended)
    live = None
    with suppress(FileNotFoundError, ValueError):
        live = json.loads(results.read(run.live))
    return RunSeen(manifest, live, state)
