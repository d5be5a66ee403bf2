"""The manifests of all runs as one table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa

from cvm_batch.errors import ResultsError
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.manifest import manifests

_TIME = pa.timestamp("us", tz="UTC")

#: One row per run. ``manifest`` is the whole of it, as JSON.
RUNS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("exit_code", pa.int32()),
        pa.field("error", pa.string()),
        pa.field("started_at", _TIME, nullable=False),
        pa.field("finished_at", _TIME),
        pa.field("bundle", pa.string(), nullable=False),
        pa.field("bundle_digest", pa.string(), nullable=False),
        pa.field("class_groups", pa.map_(pa.string(), pa.list_(pa.string())), nullable=False),
        pa.field("primary_group", pa.string()),
        pa.field("precision", pa.string(), nullable=False),
        pa.field("backend", pa.string(), nullable=False),
        pa.field("executor", pa.string(), nullable=False),
        pa.field("slides_planned", pa.int64(), nullable=False),
        pa.field("slides_settled", pa.int64(), nullable=False),
        pa.field("slides_complete", pa.int64(), nullable=False),
        pa.field("slides_incomplete", pa.int64(), nullable=False),
        pa.field("slides_failed", pa.int64(), nullable=False),
        pa.field("cells_expected", pa.int64(), nullable=False),
        pa.field("cells_classified", pa.int64(), nullable=False),
        pa.field("cells_unreadable", pa.int64(), nullable=False),
        pa.field("tiles_per_second", pa.float64()),
        pa.field("seconds_planning", pa.float64()),
        pa.field("seconds_starting", pa.float64()),
        pa.field("seconds_classifying", pa.float64()),
        pa.field("replicas", pa.int32(), nullable=False),
        pa.field("replicas_lost", pa.int32(), nullable=False),
        pa.field("versions", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("manifest", pa.string(), nullable=False),
    ]
)


def read_runs(results: ResultsFolder) -> pa.Table:
    """All runs of a results folder, by run_id. Raises ResultsError."""
    rows = []
    for manifest in manifests(results):
        try:
            rows.append(_row(manifest))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultsError(
                f"The manifest of the run {manifest['run_id']} in {results} lacks what every "
                f"version writes: {error!r}. Move it away; the slides that it classified stay."
            ) from error
    return pa.Table.from_pylist(rows[::-1], schema=RUNS)


def _row(manifest: Mapping[str, Any]) -> dict[str, Any]:
    bundle, slides, cells = manifest["bundle"], manifest["slides"], manifest["cells"]
    seconds = manifest["seconds"]
    as_told = ("run_id", "state", "exit_code", "error", "precision", "backend", "executor")
    return {
        **{name: manifest[name] for name in (*as_told, "tiles_per_second", "versions")},
        "started_at": datetime.fromisoformat(manifest["started_at"]),
        "finished_at": _time(manifest["finished_at"]),
        "bundle": bundle["name"],
        "bundle_digest": bundle["digest"],
        "class_groups": bundle["groups"],
        "primary_group": bundle["primary_group"],
        "slides_planned": slides["planned"],
        "slides_settled": sum(n for name, n in slides.items() if name.startswith("settled_")),
        **{f"slides_{name}": slides[name] for name in ("complete", "incomplete", "failed")},
        **{f"cells_{name}": cells[name] for name in ("expected", "classified", "unreadable")},
        **{f"seconds_{name}": seconds.get(name) for name in _PHASES},
        "replicas": len(manifest["replicas"]),
        "replicas_lost": len(manifest["replicas_lost"]),
        "manifest": json.dumps(manifest),
    }


_PHASES = ("planning", "starting", "classifying")


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
