"""What a run tells while it goes on, and at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cvm_batch.errors import ExitCode
from cvm_batch.results.manifest import RunState
from cvm_batch.results.schemas import Status
from cvm_batch.results.slides import SlideRow


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands."""

    tiles_done: int
    tiles: int
    slides_done: int
    slides: int
    not_complete: int
    replicas: int


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """How a run ended."""

    run_id: str
    state: RunState
    bundle: str
    precision: str
    by_status: Counter[Status]
    """Slides that this run ended."""
    settled: Counter[Status]
    """Slides that earlier runs had dealt with, and that were left as they are."""
    left: int
    """Slides that a stopped run left for the next one."""
    not_complete: Sequence[SlideRow]
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

    def to_json(self) -> dict[str, Any]:
        """The summary for a script; rows in full are in the slides table."""
        return {
            "run_id": self.run_id,
            "state": str(self.state),
            "exit_code": int(self.exit_code),
            "bundle": self.bundle,
            "precision": self.precision,
            "slides": {str(status): self.by_status[status] for status in Status},
            "settled": {str(status): self.settled[status] for status in Status},
            "left": self.left,
            "ignored": self.ignored,
            "cells_classified": self.cells,
            "seconds_starting": self.seconds_starting,
            "seconds_classifying": self.seconds_classifying,
            "tiles_per_second": self.tiles_per_second,
            "not_complete": [
                {
                    "slide_id": row.slide_id,
                    "status": str(row.status),
                    "reason": row.reason,
                    "detail": row.detail,
                }
                for row in self.not_complete
            ],
        }
