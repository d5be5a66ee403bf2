"""A run in a few lines of JSON: the same for scripts, dashboards and notices.

``run-summary.schema.json`` beside this module is its published schema.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cvm_batch.pseudonyms import Pseudonyms

if TYPE_CHECKING:
    from cvm_batch.results.reading import Results

SUMMARY_VERSION = 1
_SCHEMA = Path(__file__).with_name("run-summary.schema.json")


class Lacking(NamedTuple):
    """A slide without a plain count."""

    slide_id: str
    status: str
    reason: str | None


def schema() -> dict[str, Any]:
    """The JSON schema of a run's summary."""
    found: dict[str, Any] = json.loads(_SCHEMA.read_text())
    return found


def plain_summary(manifest: Mapping[str, Any], lacking: Sequence[Lacking]) -> dict[str, Any]:
    """A run's summary with slides by their names, from its manifest and what is not complete."""
    named = [one._asdict() for one in lacking]
    return _summary(manifest, lacking) | {"slide_names": "plain", "not_complete": named}


def summary_without_names(
    manifest: Mapping[str, Any], lacking: Sequence[Lacking], pseudonyms: Pseudonyms | None
) -> dict[str, Any]:
    """The same for others: slides by their pseudonyms, or none at all where there is no key."""
    if pseudonyms is None:
        return _summary(manifest, lacking) | {"slide_names": "withheld", "not_complete": []}
    named = [one._replace(slide_id=pseudonyms.of(one.slide_id))._asdict() for one in lacking]
    return _summary(manifest, lacking) | {"slide_names": "pseudonyms", "not_complete": named}


def find_lacking(results: Results, run_id: str) -> list[Lacking]:
    """What a run's rows call not complete, by slide_id. Raises ResultsError."""
    lacking = results.query(
        "SELECT slide_id, status, reason FROM slides_all "
        "WHERE run_id = ? AND status <> 'complete' ORDER BY ALL",
        [run_id],
    )
    return [Lacking(**row) for row in lacking.to_pylist()]


def _summary(manifest: Mapping[str, Any], lacking: Sequence[Lacking]) -> dict[str, Any]:
    bundle = manifest["bundle"]
    reasons = Counter(one.reason for one in lacking if one.reason)
    return {
        "summary_version": SUMMARY_VERSION,
        "run_id": manifest["run_id"],
        "state": str(manifest["state"]),
        "exit_code": None if manifest["exit_code"] is None else int(manifest["exit_code"]),
        "started_at": manifest["started_at"],
        "finished_at": manifest["finished_at"],
        "model": {"name": bundle["name"], "digest": bundle["digest"]},
        "precision": manifest["precision"],
        "backend": manifest["backend"],
        "executor": manifest["executor"],
        "versions": dict(manifest["versions"]),
        "slides": dict(manifest["slides"]),
        "cells": dict(manifest["cells"]),
        "reasons": dict(sorted(reasons.items())),
        "replicas": len(manifest["replicas"]),
        "replicas_lost": len(manifest["replicas_lost"]),
        "seconds": dict(manifest["seconds"]),
        "tiles_per_second": manifest["tiles_per_second"],
        "audit": manifest.get("audit"),
    }
