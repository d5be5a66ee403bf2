"""What a run tells while it goes on, and at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cvm_batch.errors import ExitCode
from cvm_batch.pseudonyms import Pseudonyms
from cvm_batch.results.manifest import RunState
from cvm_batch.results.schemas import Status


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands."""

    tiles_done: int
    tiles: int
    slides_done: int
    slides: int
    not_complete: int
    replicas: int


@dataclass(frozen=True)
class NotComplete:
    """A slide without a plain count, and why."""

    slide_id: str
    status: Status
    reason: str | None
    detail: str | None

    def under(self, pseudonyms: Pseudonyms) -> NotComplete:
        """Without the slide's name, and without the sentence, which names files."""
        return replace(self, slide_id=pseudonyms.of(self.slide_id), detail=None)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """How a run ended."""

    run_id: str
    state: RunState
    bundle: str
    precision: str
    backend: str
    by_status: Counter[Status]
    """Slides that this run ended."""
    settled: Counter[Status]
    """Slides that earlier runs had dealt with, and that were left as they are."""
    settled_not_complete: Sequence[NotComplete]
    """Those of them that are not complete."""
    left: int
    """Slides that a stopped run left for the next one."""
    fresh: int
    """Slides that were left since they had just changed."""
    not_complete: Sequence[NotComplete]
    """Of the slides that this run ended."""
    ignored: int
    cells: int
    seconds_starting: float
    seconds_classifying: float
    tiles_per_second: float | None

    @property
    def exit_code(self) -> ExitCode:
        if self.state is RunState.STOPPED:
            return ExitCode.STOPPED
        ended = self.by_status + self.settled
        if set(ended) <= {Status.COMPLETE}:
            return ExitCode.COMPLETE
        return ExitCode.NOT_ALL_COMPLETE

    def under(self, pseudonyms: Pseudonyms) -> RunSummary:
        """The same without the name of any slide."""
        return replace(
            self,
            not_complete=[slide.under(pseudonyms) for slide in self.not_complete],
            settled_not_complete=[slide.under(pseudonyms) for slide in self.settled_not_complete],
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunSummary:
        """What `to_json` gave. Raises KeyError, TypeError or ValueError."""
        same = ("run_id", "bundle", "precision", "backend", "left", "ignored")
        figures = ("seconds_starting", "seconds_classifying", "tiles_per_second")
        return cls(
            fresh=value.get("fresh", 0),  # of a cluster with an earlier version there is none
            **{name: value[name] for name in (*same, *figures)},
            state=RunState(value["state"]),
            by_status=Counter({Status(name): count for name, count in value["slides"].items()}),
            settled=Counter({Status(name): count for name, count in value["settled"].items()}),
            settled_not_complete=[NotComplete(**one) for one in value["settled_not_complete"]],
            not_complete=[NotComplete(**one) for one in value["not_complete"]],
            cells=value["cells_classified"],
        )

    def to_json(self) -> dict[str, Any]:
        """The summary for a script; rows in full are in the slides table."""
        return {
            "run_id": self.run_id,
            "state": str(self.state),
            "exit_code": int(self.exit_code),
            "bundle": self.bundle,
            "precision": self.precision,
            "backend": self.backend,
            "slides": {str(status): self.by_status[status] for status in Status},
            "settled": {str(status): self.settled[status] for status in Status},
            "left": self.left,
            "fresh": self.fresh,
            "ignored": self.ignored,
            "cells_classified": self.cells,
            "seconds_starting": self.seconds_starting,
            "seconds_classifying": self.seconds_classifying,
            "tiles_per_second": self.tiles_per_second,
            "not_complete": [asdict(slide) for slide in self.not_complete],
            "settled_not_complete": [asdict(slide) for slide in self.settled_not_complete],
        }
