"""The run manifest: what a run was asked, what it ran with, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from cvm_batch.errors import ResultsError
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName

MANIFEST_VERSION = 1


class RunState(StrEnum):
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    """Ended before all slides were done; the next submit goes on."""
    ABORTED = "aborted"
    INTERRUPTED = "interrupted"
    """It went without a word: killed, or taken over. As status tells it, and the run that sealed
    it (results/sealing.py)."""


@dataclass(frozen=True, kw_only=True)
class RunManifest:
    """``runs/<run_id>.json``. Written at the start of a run and replaced at its end."""

    run_id: str
    state: RunState
    started_at: str
    """ISO 8601, UTC."""
    settings: Mapping[str, Any]
    """As given on the command line."""
    bundle: Mapping[str, Any]
    precision: str
    backend: str
    """What ran the network: torch-eager, torch-compile or openvino."""
    executor: str
    versions: Mapping[str, str]
    host: Mapping[str, Any]
    slides: Mapping[str, int]
    """Slides planned, left as too fresh, settled by earlier runs, and ended by this one, by
    status."""
    cells: Mapping[str, int]
    """Cells expected in the planned slides, classified and unreadable."""
    ignored: Sequence[Mapping[str, str]]
    """Files and folders among the inputs that hold no slide, and why."""
    replicas: Sequence[Mapping[str, Any]] = ()
    replicas_lost: Sequence[str] = ()
    """What is known of each replica that died or did not come up."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Planning, starting replicas, and classifying; ``serving`` is that of all replicas added up,
    so that the run's speed can be told for another number of them."""
    tiles_per_second: float | None = None
    """While classifying."""
    finished_at: str | None = None
    exit_code: int | None = None
    error: str | None = None
    audit: Mapping[str, Any] | None = None
    """Number and digest of the run's newest entry in the audit log."""
    notices: Sequence[Mapping[str, Any]] = ()
    """What became of each notice of the run's end."""
    sealed_by: str | None = None
    """The run that made sure that nothing more can come of this one."""
    manifest_version: int = MANIFEST_VERSION


def write_manifest(results: ResultsFolder, run: RunName, manifest: RunManifest) -> None:
    """Write or replace the run's manifest. Raises CommitError."""
    rewrite_manifest(results, run, asdict(manifest))


def rewrite_manifest(results: ResultsFolder, run: RunName, manifest: Mapping[str, Any]) -> None:
    """The same of a manifest that was read. Raises CommitError."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False, default=str)
    results.replace(run.manifest, f"{text}\n".encode("utf-8", "backslashreplace"))


def manifest_names(results: ResultsFolder) -> list[str]:
    """The manifests of all runs, the newest first. Raises ResultsError."""
    return [name for name in reversed(results.names("runs")) if name.endswith(".json")]


def manifests(results: ResultsFolder) -> Iterator[Mapping[str, Any]]:
    """What they hold, in that order. Raises ResultsError where one is damaged."""
    names = manifest_names(results)
    for name, data in zip(names, results.read_all(names), strict=True):
        if data is None:
            continue
        try:
            manifest = json.loads(data)
            RunState(manifest["state"])
            RunName.of(manifest["run_id"])
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(
                f"{results}/{name} cannot be read as the manifest of a run: {error!r}. Move it "
                "away; the slides that the run classified stay."
            ) from error
        yield manifest
