"""Holds the audit log against itself, and the results folder against the log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cvm_batch.errors import ResultsError
from cvm_batch.results.audit.log import FOLDER, Entry, Event, numbers, parse, path_of
from cvm_batch.results.audit.runs import ending, run_of
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.manifest import manifest_names
from cvm_batch.results.slides import batch_names

#: A path below the results folder, and what is wrong with it.
Found = tuple[str, str]


class AuditCheck:
    """One check. ``findings`` may be taken once; ``head`` is the newest entry after it."""

    def __init__(self, results: ResultsFolder) -> None:
        self._results = results
        self.head: Entry | None = None
        self._entries: dict[int, Entry] = {}
        self._batches: dict[str, str] = {}
        """What the SHA-256 of each slides batch must be."""
        self._open: set[str] = set()
        """Runs of which a batch may still come, or has come since the log was last written."""
        self._erasing: dict[int, Entry] = {}
        """Erasures that have started, and whose end is not told."""

    def findings(self) -> Iterator[Found]:
        # What is there is listed before the log is read: a run may be writing both.
        batches, manifests = batch_names(self._results), dict(self._manifests())
        if not numbers(self._results):
            if any(manifest.get("audit") for manifest in manifests.values()):
                yield FOLDER, "is gone, though manifests of runs name entries of the log"
            return
        yield from self._read()
        for entry in self._entries.values():
            try:
                yield from self._follow(entry)
            except (KeyError, TypeError, AttributeError) as error:
                yield path_of(entry.number), f"does not say what it should: {error!r}"
        yield from self._check_batches(batches)
        for path, manifest in manifests.items():
            yield from self._check_manifest(path, manifest)
        for number in self._erasing:
            yield (
                path_of(number),
                "begins to erase a slide, and no entry ends it: erase the slide again",
            )

    def _manifests(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name in manifest_names(self._results):
            try:
                manifest = json.loads(self._results.read(name))
            except (ValueError, FileNotFoundError, ResultsError):
                continue  # told of by who checks manifests
            if isinstance(manifest, dict):
                yield name, manifest

    def _read(self) -> Iterator[Found]:
        """Each entry by itself, and that it follows the one before."""
        found = numbers(self._results)
        before: bytes | None = None
        for number in range(1, found[-1] + 1):
            path = path_of(number)
            try:
                data = self._results.read(path)
            except FileNotFoundError:
                yield path, "is missing from the audit log"
                before = None
                continue
            except ResultsError as error:
                yield path, str(error)
                before = None
                continue
            try:
                entry = self._entries[number] = parse(number, data)
            except ValueError as error:
                yield path, f"is no whole entry of the audit log: {error}"
            else:
                expected = None if before is None else sha256(before).hexdigest()
                if (number == 1 or before is not None) and entry.previous != expected:
                    yield path, "does not follow the entry before it: one of the two was changed"
            before = data
        self.head = self._entries.get(found[-1])
        names = {path_of(number) for number in found}
        for path in self._results.names(FOLDER, deep=True):
            if path not in names:
                yield path, "is no entry of the audit log"

    def _follow(self, entry: Entry) -> Iterator[Found]:
        facts = entry.facts
        match entry.event:
            case Event.RUN_STARTED:
                self._open.add(facts["run"])
            case Event.RUN_ENDED:
                if facts["in_order"]:
                    self._open.discard(facts["run"])
                self._batches |= facts["batches"]
            case Event.RUNS_FOUND:
                self._open.difference_update(facts["runs"])
                yield from self._hold_against_earlier(entry)
                self._batches |= facts["batches"]
            case Event.ERASURE_STARTED:
                yield from self._hold_against_earlier(entry)
                self._erasing[entry.number] = entry
            case Event.ERASURE_ENDED:
                for number in facts["started"]:
                    self._erasing.pop(number, None)
                self._batches |= facts["batches"]
            case Event.MODEL_CHANGED:
                pass

    def _hold_against_earlier(self, entry: Entry) -> Iterator[Found]:
        for path, digest in entry.facts["batches"].items():
            if self._batches.get(path, digest) != digest and not self._is_being_erased(path):
                yield path_of(entry.number), f"names {path}, which was changed before"

    def _is_being_erased(self, path: str) -> bool:
        return any(path in entry.facts["batches"] for entry in self._erasing.values())

    def _check_batches(self, there: list[str]) -> Iterator[Found]:
        for path in there:
            if path in self._batches or run_of(path) in self._open or self._is_seal(path):
                continue
            yield path, "is named by no entry of the audit log"
        for path, expected in self._batches.items():
            try:
                differs = sha256(self._results.read(path)).hexdigest() != expected
            except FileNotFoundError:
                yield path, "is not there, though the audit log names it"
                continue
            except ResultsError:
                continue  # told of by who reads the tables
            if differs and not self._is_being_erased(path):
                yield path, "differs from the digest that the audit log has of it"

    def _is_seal(self, path: str) -> bool:
        """Whoever puts one (results/sealing.py) may be killed before they can tell of it."""
        try:
            return not pq.read_metadata(pa.BufferReader(self._results.read(path))).num_rows
        except (pa.ArrowException, OSError, ResultsError):
            return False

    def _check_manifest(self, path: str, manifest: Mapping[str, Any]) -> Iterator[Found]:
        named = manifest.get("audit")
        if named is None:
            return  # of a run that is older than the log
        entry = next((one for one in self._entries.values() if one.reference() == named), None)
        if entry is None:
            yield path, f"names an entry of the audit log that is not there: {named!r}"
        elif entry.event is Event.RUN_ENDED and ending(manifest) != ending(entry.facts):
            yield path, f"tells of the run's end otherwise than {path_of(entry.number)}"
