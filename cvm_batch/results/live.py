"""What a running run tells those who look at its results folder, and what they may ask of it.

    runs/<run_id>.live   where the run stands (JSON), replaced every few seconds, gone at its end
    runs/<run_id>.stop   somebody wants it to stop
    runs/<run_id>-<nnn>.priority   somebody wants some slides to go earlier or later (JSON)

Files, since whoever asks may sit on another machine that shares the folder: and since a job
that a scheduler stops has a few seconds, the marker is seen before any signal arrives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cvm_batch.errors import ResultsError
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.manifest import RunState

_TELL_EVERY_SECONDS = 2.0
_LOOK_EVERY_SECONDS = 0.5


class LiveFiles:
    """The two files, from the running run's side."""

    def __init__(self, results: ResultsFolder, run: RunName) -> None:
        self._results = results
        self._run = run
        self._told = self._looked = float("-inf")
        self._wanted = False
        self._looked_for_priorities = float("-inf")
        self._priorities = 0

    def tell(self, now: float, standing: Mapping[str, Any]) -> None:
        """Replace what is told, if it is old; an untold standing does no harm."""
        if now - self._told >= _TELL_EVERY_SECONDS:
            self._told = now
            text = json.dumps({"told_at": now, **standing})
            with suppress(OSError):
                self._results.replace_unflushed(self._run.live, text.encode())

    def stop_wanted(self, now: float) -> bool:
        if not self._wanted and now - self._looked >= _LOOK_EVERY_SECONDS:
            self._looked = now
            self._wanted = (self._results.root / self._run.stop_marker).exists()
        return self._wanted

    def priorities_wanted(self, now: float) -> list[tuple[str, int]]:
        """Patterns of slide_ids and their priorities, asked for since the last call."""
        wanted: list[tuple[str, int]] = []
        if now - self._looked_for_priorities >= _LOOK_EVERY_SECONDS:
            self._looked_for_priorities = now
            with suppress(OSError, ValueError):  # the first that is not there ends it
                while True:
                    path = self._results.root / self._run.priority_marker(self._priorities)
                    asked = json.loads(path.read_bytes())
                    self._priorities += 1
                    wanted.append((asked["pattern"], asked["priority"]))
        return wanted

    def remove(self) -> None:
        markers = [self._run.priority_marker(number) for number in range(self._priorities)]
        for path in (self._run.live, self._run.stop_marker, *markers):
            with suppress(OSError):
                (self._results.root / path).unlink(missing_ok=True)


@dataclass(frozen=True)
class RunSeen:
    """A run as its files show it, newest first in `runs_seen`."""

    manifest: Mapping[str, Any]
    live: Mapping[str, Any] | None
    """Where it stands, if it runs."""
    state: str
    """As in the manifest, or ``interrupted``: it says running, and nobody holds the folder."""

    @property
    def run_id(self) -> str:
        return str(self.manifest["run_id"])


INTERRUPTED = "interrupted"


def manifests(results: ResultsFolder) -> Iterator[Mapping[str, Any]]:
    """Manifests of all runs of a results folder, the newest first."""
    for path in sorted((results.root / "runs").glob("*.json"), reverse=True):
        yield json.loads(path.read_bytes())


def runs_seen(results: ResultsFolder) -> list[RunSeen]:
    """All runs of a results folder, the newest first. Raises ResultsError where none is."""
    found = list(manifests(results))
    if not found:
        raise ResultsError(
            f"{results.root} holds no runs. Give the folder that was --out of a submit."
        )
    held = results.held()
    return [_seen(results, manifest, held=held) for manifest in found]


def ask_to_stop(results: ResultsFolder) -> str:
    """Leave the marker for the run that runs; return its run_id. Raises ResultsError."""
    run_id = _running(results)
    try:
        (results.root / "runs" / f"{run_id}.stop").touch()
    except OSError as error:
        raise ResultsError(
            f"The marker that stops {run_id} cannot be written to {results.root}: "
            f"{error.strerror}. Send the process SIGTERM instead."
        ) from error
    return run_id


def ask_for_priority(results: ResultsFolder, pattern: str, priority: int) -> str:
    """Ask the run that runs to give matching slides a priority; return its run_id.

    Raises ResultsError, CommitError.
    """
    run_id = _running(results)
    run = RunName(run_id, "")
    data = json.dumps({"pattern": pattern, "priority": priority}).encode()
    number = 0
    while (results.root / run.priority_marker(number)).exists():
        number += 1
    results.publish(run.priority_marker(number), data)
    return run_id


def _running(results: ResultsFolder) -> str:
    running = [seen for seen in runs_seen(results) if seen.state == RunState.RUNNING]
    if not running:
        raise ResultsError(f"No run is running in {results.root}: there is nothing to ask it.")
    return running[0].run_id


def _seen(results: ResultsFolder, manifest: Mapping[str, Any], *, held: bool) -> RunSeen:
    state = str(manifest["state"])
    if state != RunState.RUNNING:
        return RunSeen(manifest, None, state)
    if not held:
        return RunSeen(manifest, None, INTERRUPTED)
    live = None
    with suppress(OSError, ValueError):
        path = results.root / "runs" / f"{manifest['run_id']}.live"
        live = json.loads(path.read_bytes())
    return RunSeen(manifest, live, state)
