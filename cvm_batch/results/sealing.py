"""Sealing: makes sure that nothing more can come of a run that did not end in order.

A driver may be frozen at any moment, be taken for dead, and wake up hours later in the middle of
a commit. What keeps it from adding a row then is the commit itself: it puts its next batch of
slides under the next number, if there is none of that number. Whoever takes over puts an empty
batch there first, and only then reads what is done. So each row of the older run is either read by
the new one, or can never be written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cvm_batch.errors import ResultsError
from cvm_batch.results.audit.runs import record_found
from cvm_batch.results.claims import Claims, Hold, Timing
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.manifest import (
    RunManifest,
    RunState,
    manifests,
    rewrite_manifest,
    write_manifest,
)
from cvm_batch.results.parquet import parquet_bytes
from cvm_batch.results.schemas import SLIDES
from cvm_batch.results.slides import all_rows


@contextmanager
def exclusive(results: ResultsFolder, run: RunName, timing: Timing | None = None) -> Iterator[Hold]:
    """Hold the folder for one run, once all others are sealed and their leftovers cleared away.

    Raises ResultsInUseError where another run holds it, ResultsError where that cannot be
    told, and CommitError where nothing can be written.
    """
    claims = Claims(results, timing)
    hold = claims.take(run.run_id)
    hold.start()
    try:
        seal_unfinished(results, claims, hold)
        results.clear_leftovers()
        yield hold
    finally:
        hold.release()


def seal_unfinished(results: ResultsFolder, claims: Claims, hold: Hold) -> None:
    """Seal every run from which a row could still come.

    They are known by their claims, as one may not have written its manifest yet, and by their
    manifests, as one may have let go while its last commit was under way.
    """
    earlier = claims.unreleased_before(hold.claim)
    unfinished = [manifest for manifest in manifests(results) if _is_unfinished(manifest)]
    # Else one of them may be of a later holder, if this process was frozen meanwhile.
    hold.check(now=True)
    run_ids = [claim.run_id for claim in earlier]
    run_ids += [str(manifest["run_id"]) for manifest in unfinished]
    for run_id in dict.fromkeys(run_ids):
        seal(results, RunName.of(run_id))
    # Before anything says that they are sealed: whoever is killed here is followed by one who
    # seals and records them again.
    record_found(results, run_ids)
    for manifest in unfinished:
        mark_sealed(results, manifest, hold.claim.run_id)
    for claim in earlier:
        claims.mark_released(claim)
    claims.prune()
    hold.check(now=True)
    clear_unnamed(results, run_ids)


def clear_unnamed(results: ResultsFolder, sealed: Sequence[str]) -> None:
    """Remove cells and tops of ``sealed`` runs that none of their rows names, and none will."""
    if not sealed:
        return
    with suppress(ResultsError):  # one that stays does no harm
        rows = all_rows(results, ["run_id", "cells_files", "tops_files"])
        rows = rows.filter(pc.is_in(rows["run_id"], pa.array(sealed)))
        named = {
            name
            for column in ("cells_files", "tops_files")
            for name in pc.list_flatten(rows[column]).to_pylist()
        }
        for run in map(RunName.of, sealed):
            for folder in (run.cells_folder, run.tops_folder):
                results.remove_except(folder, named)


def seal(results: ResultsFolder, run: RunName) -> None:
    """Put an empty batch where the run's next one would go. Raises CommitError."""
    empty = parquet_bytes(SLIDES.empty_table())
    number = _next_batch(results, run)
    while not results.put_new(run.slides_batch(number), empty):
        number += 1  # the run was quicker


def mark_sealed(results: ResultsFolder, manifest: Mapping[str, Any], by: str) -> None:
    """Say in a run's manifest that the run ``by`` has sealed it. Raises CommitError."""
    running = manifest["state"] == RunState.RUNNING
    state = RunState.INTERRUPTED if running else manifest["state"]
    told = {**manifest, "state": state, "sealed_by": by}
    rewrite_manifest(results, RunName.of(str(manifest["run_id"])), told)


def write_while_held(results: ResultsFolder, hold: Hold, manifest: RunManifest) -> None:
    """Write the manifest of the holder's own run. Raises CommitError.

    Raises TakenOverError where another run has sealed it: its manifest then says so, and stays.
    """
    run = RunName.of(manifest.run_id)
    hold.check(now=True)
    write_manifest(results, run, manifest)
    hold.look()
    if hold.successor is not None:  # since the check, before the writing
        mark_sealed(results, asdict(manifest), hold.successor.run_id)
        hold.check()


def _is_unfinished(manifest: Mapping[str, Any]) -> bool:
    """Whether the run's last commit may still be under way."""
    ended_in_order = manifest["state"] != RunState.RUNNING and manifest.get("error") is None
    return not ended_in_order and manifest.get("sealed_by") is None


def _next_batch(results: ResultsFolder, run: RunName) -> int:
    stems = (PurePosixPath(name).stem for name in results.names(run.slides_folder))
    numbers = [stem.removeprefix(f"{run.run_id}-") for stem in stems if stem.startswith(run.run_id)]
    return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1
