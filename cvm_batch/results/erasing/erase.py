"""Erases one slide, in steps of which each can be the last."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any

from cvm_batch.errors import ResultsError, RunAbortedError
from cvm_batch.pseudonyms import Pseudonyms, as_bytes
from cvm_batch.results.audit.log import Entry, Event, append, digests, whole_entries
from cvm_batch.results.claims import Hold
from cvm_batch.results.erasing.holdings import Holdings
from cvm_batch.results.erasing.manifests import without_slide
from cvm_batch.results.erasing.tables import read_table, rewrite_without
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.manifest import manifest_names, rewrite_manifest
from cvm_batch.results.sealing import exclusive


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """What was erased."""

    rows: int
    runs: int
    """Runs that these rows were of."""
    files_removed: int
    files_rewritten: int
    """Files of cells and tiles that held other slides' as well."""
    reports_removed: int
    """Of runs that may have shown the slide."""
    entry: Mapping[str, Any]
    """The entry of the audit log that tells of it."""
    already: bool = False
    """An earlier call has done it."""


def erase_slide(
    results: ResultsFolder, slide_id: str, pseudonyms: Pseudonyms | None = None
) -> Erasure:
    """Erase all that the folder holds of a slide, in every run.

    With ``pseudonyms`` the audit log names the slide by its digest under their key. Raises
    ResultsError where there is no such slide, where a run holds the folder, or where a file is
    damaged: nothing of the slide has changed then. Raises RunAbortedError where something could
    not be written or removed, or another took the folder over; call again.
    """
    if not manifest_names(results):
        raise ResultsError(f"{results} holds no runs. Give the folder that was --out of a submit.")
    results.prepare()
    with exclusive(results, RunName.new(datetime.now(UTC))) as hold:
        try:
            return _Erasing(results, hold, slide_id, pseudonyms).erase()
        except RunAbortedError as error:
            raise type(error)(
                f"The slide is not erased yet. {error} Then erase it again: the second time "
                "finishes what was begun."
            ) from error


class _Erasing:
    def __init__(
        self,
        results: ResultsFolder,
        hold: Hold,
        slide_id: str,
        pseudonyms: Pseudonyms | None,
    ) -> None:
        self._results = results
        self._hold = hold
        self._slide_id = slide_id
        self._named = {
            "algorithm": "hmac-sha256" if pseudonyms else "sha256",
            "slide": pseudonyms.digest(slide_id) if pseudonyms else _plain_digest(slide_id),
        }

    def erase(self) -> Erasure:
        held = Holdings(self._results, self._slide_id)
        for name in held.shared:  # all must be readable before anything changes
            read_table(self._results, name, ["slide_id"])
        begun, done = self._earlier()
        if not (held or begun):
            return self._nothing_to_do(done)
        before = digests(self._results, held.batches)
        facts = {**self._named, "batches": before, "rows": held.rows}
        begun.append(append(self._results, Event.ERASURE_STARTED, facts))
        reports = self._remove(_reports_that_may_show(self._results, held.runs))
        self._scrub_manifests(held.uris)
        for name in [*held.shared, *held.batches]:
            self._hold.check(now=True)
            rewrite_without(self._results, name, self._slide_id)
        removed = self._remove(held.own)
        batches = {name for entry in begun for name in entry.facts["batches"]}
        facts = {
            **self._named,
            "started": [entry.number for entry in begun],
            "batches": digests(self._results, sorted(batches)),
            "rows": held.rows,
            "files_removed": removed,
            "files_rewritten": len(held.shared),
        }
        return Erasure(
            rows=held.rows,
            runs=len(held.runs),
            files_removed=removed,
            files_rewritten=len(held.shared),
            reports_removed=reports,
            entry=append(self._results, Event.ERASURE_ENDED, facts).reference(),
        )

    def _earlier(self) -> tuple[list[Entry], Entry | None]:
        """This slide's erasures that have begun and not ended, and the last one that has."""
        begun: dict[int, Entry] = {}
        done = None
        for entry in whole_entries(self._results):
            if entry.facts.get("slide") != self._named["slide"]:
                continue
            if entry.event is Event.ERASURE_STARTED:
                begun[entry.number] = entry
            elif entry.event is Event.ERASURE_ENDED:
                done = entry
                for number in entry.facts["started"]:
                    begun.pop(number, None)
        return [*begun.values()], done

    def _nothing_to_do(self, done: Entry | None) -> Erasure:
        if done is None:
            raise ResultsError(
                f"{self._results} holds nothing of a slide {self._slide_id!r}. Give its slide_id "
                "exactly, as the JSON of `cvm-batch query` shows it. Where an erasure was "
                "interrupted, set the key for pseudonyms that was set then."
            )
        nothing = dict.fromkeys(
            ("rows", "runs", "files_removed", "files_rewritten", "reports_removed"), 0
        )
        return Erasure(**nothing, entry=done.reference(), already=True)

    def _remove(self, names: Iterable[str]) -> int:
        removed = 0
        for name in names:
            self._hold.check()
            self._results.erase(name)
            removed += 1
        return removed

    def _scrub_manifests(self, uris: set[str]) -> None:
        for name in manifest_names(self._results):
            manifest = json.loads(self._results.read(name))
            scrubbed = without_slide(manifest, self._slide_id, uris)
            if scrubbed != manifest:
                # Else it could be the running manifest of one who took over, which has ended since.
                self._hold.check(now=True)
                rewrite_manifest(self._results, RunName.of(PurePosixPath(name).stem), scrubbed)


def _reports_that_may_show(results: ResultsFolder, runs: set[str]) -> Iterator[str]:
    """Files of the reports of the first run that had the slide, and of all later ones."""
    first = min(runs, default=None)
    for name in results.names("reports", deep=True):
        # A run's identifier begins with its time.
        if first is not None and PurePosixPath(name).parts[1] >= first:
            yield name


def _plain_digest(slide_id: str) -> str:
    return sha256(as_bytes(slide_id)).hexdigest()
