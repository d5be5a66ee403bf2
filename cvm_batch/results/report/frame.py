"""What all pages of a report have around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import cvm_batch
from cvm_batch.errors import ResultsError
from cvm_batch.results.report.gather import RunData
from cvm_batch.results.report.naming import Names
from cvm_batch.results.report.pages import render
from cvm_batch.results.report.target import Page
from cvm_batch.results.report.wording import group_name


@dataclass(frozen=True)
class Frame:
    """Makes pages of one report; can be sent to another process."""

    names: Names
    common: Mapping[str, Any]

    @classmethod
    def of(cls, data: RunData, names: Names, lacking: int) -> Frame:
        """``lacking``: slides that are not complete, those of earlier runs included."""
        manifest = data.manifest
        shown = ("exit_code", "precision", "backend", "tiles_per_second")
        common = {
            "root": "",
            "data": None,
            "manifest": {name: manifest[name] for name in shown},
            "bundle": {name: data.bundle[name] for name in ("name", "digest")},
            "run_id": data.run_id,
            "night": _night(manifest["started_at"]),
            "pseudonyms": names.withheld,
            "groups": [group_name(group) for group in data.groups],
            "verdict": data.verdict,
            "lacking": lacking,
            "written_by": cvm_batch.__version__,
        }
        return cls(names, common)

    def page(self, file: str, template: str, title: str, **values: Any) -> Page:
        common = {**self.common, "file": file, "title": title}
        return file, render(template, **common | values)


def _night(started_at: str) -> str:
    """``23 November 2026, 22:00 UTC``."""
    try:
        began = datetime.fromisoformat(started_at)
    except ValueError as error:
        raise ResultsError(f"The run's manifest has no time of start: {error}.") from error
    return f"{began.day} {began:%B %Y, %H:%M} UTC"
