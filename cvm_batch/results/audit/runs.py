"""What the audit log says of runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

from cvm_batch.errors import ResultsError, RunAbortedError
from cvm_batch.results.audit.log import Entry, Event, append, digests, newest_entries
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.manifest import RunManifest, manifest_names
from cvm_batch.results.schemas import SCHEMA_VERSION
from cvm_batch.results.slides import batch_names

#: What of a run's settings decides its results. Inputs may name patients.
_SETTINGS = ("mpp", "arrays", "retry", "until")


def record_start(results: ResultsFolder, manifest: RunManifest) -> Entry:
    """Write that a run starts, and before it that the model is another one.

    Raises CommitError, ResultsError.
    """
    earlier, _ = _newest_start(results)
    bundle = {name: manifest.bundle[name] for name in ("name", "digest")}
    if earlier is not None and earlier.facts["bundle"]["digest"] != bundle["digest"]:
        changed = {"from": earlier.facts["bundle"], "to": bundle}
        append(results, Event.MODEL_CHANGED, changed)
    facts = {
        "run": manifest.run_id,
        "bundle": bundle,
        "precision": manifest.precision,
        "backend": manifest.backend,
        "executor": manifest.executor,
        "result_schema": SCHEMA_VERSION,
        "versions": manifest.versions,
        "settings": {name: manifest.settings.get(name) for name in _SETTINGS},
        "slides_planned": manifest.slides["planned"],
        "cells_expected": manifest.cells["expected"],
    }
    return append(results, Event.RUN_STARTED, facts)


def record_end(results: ResultsFolder, manifest: RunManifest) -> Entry:
    """Write how a run ended, with the SHA-256 of each of its slides batches.

    Raises RunAbortedError where it cannot be written, or one of these not be read.
    """
    facts = {"run": manifest.run_id, **ending(vars(manifest)), "versions": manifest.versions}
    # Else the answer to its last commit may have been lost, and a batch still appear.
    facts["in_order"] = manifest.error is None
    try:
        facts["batches"] = _digests(results, {manifest.run_id})
        return append(results, Event.RUN_ENDED, facts)
    except ResultsError as error:
        raise RunAbortedError(
            f"The audit log cannot tell of the run's end. {error} What was committed stays, and "
            "the next submit takes it up."
        ) from error


def ending(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest and the log must both say of a run's end."""
    return {name: manifest.get(name) for name in ("state", "exit_code", "slides", "cells")}


def record_found(results: ResultsFolder, sealed: Collection[str]) -> None:
    """Write the SHA-256 of all batches of the runs that were ``sealed``, or that the log lacks.

    Nothing more may come of any run that is there. Raises CommitError, ResultsError.
    """
    start, told = _newest_start(results)
    # A start tells of all that was open before it: only its own run can be open now.
    known = {str(start.facts["run"])} if start else _runs_there(results)
    if found := (known - told) | set(sealed):
        facts = {"runs": sorted(found), "batches": _digests(results, found)}
        append(results, Event.RUNS_FOUND, facts)


def run_of(batch: str) -> str:
    """The run that a slides batch is of, by its name."""
    return PurePosixPath(batch).stem.rpartition("-")[0]


def _runs_there(results: ResultsFolder) -> set[str]:
    """All runs of which there is a manifest or a slides batch."""
    told = {PurePosixPath(name).stem for name in manifest_names(results)}
    return told | {run_of(name) for name in batch_names(results)}


def _newest_start(results: ResultsFolder) -> tuple[Entry | None, set[str]]:
    """The newest start of a run, and the runs whose end is told after it."""
    told: set[str] = set()
    for entry in newest_entries(results):
        if entry.event is Event.RUN_STARTED:
            return entry, told
        if entry.event is Event.RUN_ENDED:
            told.add(entry.facts["run"])
        elif entry.event is Event.RUNS_FOUND:
            told.update(entry.facts["runs"])
    return None, told


def _digests(results: ResultsFolder, runs: Collection[str]) -> dict[str, str]:
    """SHA-256 of the runs' slides batches, by path."""
    return digests(results, [name for name in batch_names(results) if run_of(name) in runs])
