"""What a report shows of a run, read from the results folder once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from cvm_batch.errors import ResultsError
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.live import RunSeen, runs_seen
from cvm_batch.results.manifest import RunState
from cvm_batch.results.reading import Results
from cvm_batch.results.report.drift import Night, Verdict, judge
from cvm_batch.results.report.nights import read_nights
from cvm_batch.results.worklist import Entry, Worklist

LATEST = "latest"
_QUALITY = ("confidence_mean", "brightness_mean", "brightness_std", "focus_mean")
#: As in views.sql; classes of another vocabulary follow.
_GRADES = (
    *("SCC", "HSIL", "ASC-H", "LSIL", "Dyskeratotic", "Koilocytotic", "ASC-US"),
    *("NILM", "Metaplastic", "Parabasal", "Superficial-Intermediate"),
)


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A run with its slides, and the nights before it."""

    manifest: Mapping[str, Any]
    state: RunState
    worklist: Worklist
    rows: Mapping[str, Mapping[str, Any]]
    """The slides table's rows of this run, by slide_id."""
    tonight: Night
    earlier: Sequence[Night]
    verdict: Verdict
    lacking_before: Sequence[Mapping[str, Any]]
    """Slides whose newest row is of an earlier run, and not complete."""
    groups: Sequence[str]
    """The class groups that any slide counts."""
    usual_quality: Mapping[str, float | None]
    """Medians over the run's complete slides."""

    @property
    def run_id(self) -> str:
        return str(self.manifest["run_id"])

    @property
    def bundle(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.manifest["bundle"]
        return found

    @cached_property
    def class_names(self) -> Sequence[str]:
        """From the gravest on."""
        names: Sequence[str] = self.bundle["class_names"]
        known = {name: at for at, name in enumerate(_GRADES)}
        return sorted(names, key=lambda name: known.get(name, len(known)))

    @property
    def primary_classes(self) -> Sequence[str]:
        """Classes of the primary group; none where there is no such group."""
        classes: Sequence[str] = self.bundle["groups"].get(self.bundle["primary_group"], ())
        return classes

    @property
    def in_order(self) -> Sequence[Entry]:
        return self.worklist.entries


def find_run(results: ResultsFolder, run_id: str = LATEST) -> RunSeen:
    """A run by its identifier, or the newest. Raises ResultsError."""
    seen = runs_seen(results)
    for one in seen:
        if run_id in (LATEST, one.run_id):
            return one
    raise ResultsError(
        f"{results} holds no run {run_id!r}: `cvm-batch list {results}` shows which."
    )


def gather(results: Results, seen: RunSeen) -> RunData:
    """Raises ResultsError where a file is damaged."""
    run_id = seen.run_id
    table = results.query("FROM slides_all WHERE run_id = ?", [run_id])
    rows = table.to_pylist(maps_as_pydicts="strict")
    tonight, earlier = read_nights(results, run_id, seen.manifest["bundle"]["digest"])
    worklist = Worklist.read(results, run_id=run_id)
    return RunData(
        manifest=seen.manifest,
        state=seen.state,
        worklist=worklist,
        rows={row["slide_id"]: row for row in rows},
        tonight=tonight,
        earlier=earlier,
        verdict=judge(tonight, earlier),
        lacking_before=results.query(_LACKING_BEFORE, {"run": run_id}).to_pylist(),
        groups=worklist.groups,
        usual_quality=_medians(rows),
    )


def _medians(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, float | None]:
    complete = [row for row in rows if row["status"] == "complete"]
    values = {name: [row[name] for row in complete if row[name] is not None] for name in _QUALITY}
    return {name: median(found) if found else None for name, found in values.items()}


#: As it was when the run ended: a report that is written again later says the same.
_LACKING_BEFORE = """
SELECT slide_id, run_id, status, reason, detail, cells_unreadable
FROM (
    FROM slides_all
    WHERE run_id <= $run
    QUALIFY row_number() OVER (PARTITION BY slide_id ORDER BY finished_at DESC, run_id DESC) = 1
)
WHERE run_id < $run AND status <> 'complete'
ORDER BY status, reason, slide_id
"""
