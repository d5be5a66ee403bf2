"""The front page, and the page on drift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cvm_batch.results.report.charts import Line, line
from cvm_batch.results.report.drift import UNUSUAL, Finding, Night
from cvm_batch.results.report.gather import RunData
from cvm_batch.results.report.lists import Row, Section, row_of
from cvm_batch.results.report.naming import Names
from cvm_batch.results.report.slide_page import hexadecimal
from cvm_batch.results.report.thumbnails import Thumbnail
from cvm_batch.results.report.wording import ending_of
from cvm_batch.results.worklist import Entry

#: Slides on the front page, cells of each, and how large these are.
SHOWN_FIRST = 10
CELLS_SHOWN = 6
SMALL_PX = 64
#: Nights in the table of the page on drift.
_NIGHTS_LISTED = 14


@dataclass(frozen=True, kw_only=True)
class First:
    """One of the slides to look at first."""

    row: Row
    urgent: bool
    ranks: int | None
    pictures: Sequence[tuple[str, Thumbnail]]
    """The class and the tile of its most suspicious cells."""


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A finding with its drawing."""

    finding: Finding
    chart: Line | None
    value: str
    usual: str


def shown_first(data: RunData) -> list[Entry]:
    """The slides of the front page, in their order."""
    return [*data.worklist.urgent_incomplete, *data.worklist.ranked][:SHOWN_FIRST]


def first_of(
    entry: Entry, names: Names, groups: Sequence[str], pictures: Sequence[tuple[str, Thumbnail]]
) -> First:
    return First(
        row=row_of(entry, names, groups),
        urgent=entry.rank is None,
        ranks=entry.ranks,
        pictures=pictures,
    )


def overview_values(
    data: RunData, names: Names, first: Sequence[First], failures: Sequence[Section]
) -> Mapping[str, Any]:
    """What index.html.j2 is filled with."""
    manifest = data.manifest
    slides, cells = manifest["slides"], manifest["cells"]
    by_status = Counter(str(entry.status) for entry in data.in_order)
    classifying = manifest["seconds"].get("classifying")
    return {
        "ending": ending_of(manifest, data.state),
        "error": names.told(manifest["error"]),
        "error_withheld": manifest["error"] is not None and names.withheld,
        "by_status": by_status,
        "planned": slides["planned"],
        "settled": sum(n for key, n in slides.items() if key.startswith("settled_")),
        "fresh": slides.get("fresh", 0),  # as of later versions
        "cells": cells,
        "took": _took(manifest),
        "classifying": classifying,
        "first": first,
        "worklist": data.worklist,
        "bars": class_bars(data),
        "failures": failures,
        "ignored": len(manifest["ignored"]),
        "replicas": len(manifest["replicas"]),
        "replicas_lost": len(manifest["replicas_lost"]),
    }


def class_bars(data: RunData) -> list[dict[str, Any]]:
    """Cells of the night's complete slides by class, beside the usual share."""
    mix, usual = data.tonight.mix, data.verdict.usual_mix
    names = [name for name in data.class_names if name in mix or name in usual]
    most = max([*mix.values(), *usual.values()], default=0)
    return [
        {
            "name": name,
            "colour": hexadecimal(name),
            "count": data.tonight.classes.get(name, 0),
            "share": mix.get(name, 0.0),
            "usual": usual.get(name) if usual else None,
            "width": round(100 * mix.get(name, 0.0) / most, 2) if most else 0,
            "primary": name in data.primary_classes,
        }
        for name in names
    ]


def drift_values(data: RunData) -> Mapping[str, Any]:
    """What drift.html.j2 is filled with."""
    nights: list[Night] = [data.tonight, *reversed(data.earlier)]
    return {
        "trends": list(_trends(data)),
        "bars": class_bars(data),
        "nights": nights[:_NIGHTS_LISTED],
        "primary": data.bundle["primary_group"],
    }


def _trends(data: RunData) -> Iterator[Trend]:
    for found in data.verdict.findings:
        usual = None
        if found.usual is not None and found.spread is not None:
            room = UNUSUAL * found.spread
            usual = (max(found.usual - room, 0.0), found.usual + room)
        values = [*found.earlier, *([] if found.value is None else [found.value])]
        yield Trend(
            finding=found,
            chart=line(values, usual) if found.value is not None and found.earlier else None,
            value=_written(found.measure.key, found.value),
            usual=_written(found.measure.key, found.usual),
        )


def _written(key: str, value: float | None) -> str:
    if value is None:
        return "\N{EN DASH}"
    if key in ("mix", "abnormal", "confidence"):
        return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"
    return f"{value:,.1f}"


def _took(manifest: Mapping[str, Any]) -> float | None:
    """Seconds from start to end; None while it runs, or of a killed run."""
    if manifest["finished_at"] is None:
        return None
    began = datetime.fromisoformat(manifest["started_at"])
    return (datetime.fromisoformat(manifest["finished_at"]) - began).total_seconds()
