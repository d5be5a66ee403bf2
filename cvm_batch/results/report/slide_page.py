"""One slide's page: its most suspicious cells, where they lie, what else is known of it."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cvm_batch.errors import PASSING_REASONS
from cvm_batch.results.exporting.colours import colour_of
from cvm_batch.results.exporting.geojson import GeoJson
from cvm_batch.results.report.charts import Scatter, scatter
from cvm_batch.results.report.gather import RunData
from cvm_batch.results.report.naming import Names
from cvm_batch.results.report.thumbnails import Thumbnail, thumbnail
from cvm_batch.results.report.wording import advice_on, group_name
from cvm_batch.results.schemas import Status
from cvm_batch.results.worklist import Entry
from cvm_batch.texts import printable

#: Of the most suspicious cells, so many make a slide's score.
TOP_CELLS = 20
#: Of the other cells in tops/, for a slide that was read in parts.
_MOST_DOTS = 400


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of the gallery."""

    number: int
    name: str
    class_name: str
    colour: str
    confidence: float
    p_primary: float | None
    xy: tuple[float, float] | None
    """Level-0 pixels."""
    padded: bool
    picture: Thumbnail | None


@dataclass(frozen=True, kw_only=True)
class ClassBar:
    name: str
    colour: str
    count: int | None
    share: float | None
    """Of the slide's classified cells."""
    width: float
    """Percent of the longest bar."""
    primary: bool


@dataclass(frozen=True, kw_only=True)
class SlidePage:
    """What slide.html.j2 is filled with."""

    values: Mapping[str, Any]
    cells: Sequence[Cell]


def slide_page(
    data: RunData, entry: Entry, row: Mapping[str, Any], tops: pa.Table, names: Names
) -> SlidePage:
    """``row``: of the slides table. ``tops``: with their tiles, the most suspicious first."""
    best = tops[:TOP_CELLS]
    cells = list(_cells(best, names))
    return SlidePage(
        values={
            "entry": entry,
            "row": row,
            "name": names.of(entry.slide_id),
            "geojson": _geojson(best, entry, names),
            "file_name": names.file_name(entry.slide_id),
            "detail": names.told(entry.detail),
            "uri": names.told(row["uri"]),
            "identity": names.told(row["slide_identity"]),
            "listed": {} if names.withheld else _visible_map(row["listed"]),
            "cells": cells,
            "bars": _bars(data, row),
            "groups": _groups(entry),
            "map": _map(cells, tops[TOP_CELLS : TOP_CELLS + _MOST_DOTS]),
            "advice": advice_on(entry.reason) if entry.status is not Status.COMPLETE else None,
            "tried_again": entry.reason in PASSING_REASONS,
            "usual": data.usual_quality,
            "at_least": entry.status is Status.INCOMPLETE,
        },
        cells=cells,
    )


def _cells(tops: pa.Table, names: Names) -> Iterator[Cell]:
    for number, cell in enumerate(tops.to_pylist(), start=1):
        known = cell["cell_id"] is not None and not names.withheld
        yield Cell(
            number=number,
            name=printable(cell["cell_id"]) if known else f"#{cell['index']}",
            class_name=cell["class"],
            colour=hexadecimal(cell["class"]),
            confidence=cell["confidence"],
            p_primary=cell["p_primary"],
            xy=_place(cell["x"], cell["y"]),
            padded=cell["padded"],
            picture=thumbnail(cell["png"]),
        )


def _place(x: float | None, y: float | None) -> tuple[float, float] | None:
    if x is None or y is None or not (math.isfinite(x) and math.isfinite(y)):
        return None
    return x, y


def _bars(data: RunData, row: Mapping[str, Any]) -> list[ClassBar]:
    counts = row["class_counts"] or row["counts_at_least"] or {}
    most = max(counts.values(), default=0)
    total = row["cells_classified"]
    primary = set(data.primary_classes)
    order = {name: at for at, name in enumerate(data.class_names)}
    return [
        ClassBar(
            name=name,
            colour=hexadecimal(name),
            count=counts[name],
            share=counts[name] / total if total else None,
            width=round(100 * counts[name] / most, 2) if most else 0,
            primary=name in primary,
        )
        for name in sorted(counts, key=lambda name: (order.get(name, len(order)), name))
    ]


def _groups(entry: Entry) -> list[tuple[str, int | None, float | None]]:
    """Name, count and share of each class group."""
    shares = entry.fractions
    return [(group_name(g), count, shares.get(g)) for g, count in entry.counts.items()]


def _map(cells: Sequence[Cell], others: pa.Table) -> dict[str, Any] | None:
    placed = [(cell.xy, cell) for cell in cells if cell.xy is not None]
    pairs = zip(others["x"].to_pylist(), others["y"].to_pylist(), strict=True)
    dots = [place for x, y in pairs if (place := _place(x, y)) is not None]
    drawn: Scatter | None = scatter([xy for xy, _ in placed] + dots)
    if drawn is None or not placed:
        return None
    marks = list(zip(drawn.points, (cell for _, cell in placed), strict=False))
    # The most suspicious is drawn last, over the others.
    return {"drawn": drawn, "marks": marks[::-1], "dots": drawn.points[len(placed) :]}


def _geojson(tops: pa.Table, entry: Entry, names: Names) -> str | None:
    """A data URL for QuPath: browsers open a file beside the page instead of saving it.

    None where it is not known where the cells lie.
    """
    if not any(place is not None for place in tops["x"].to_pylist()):
        return None
    if names.withheld:  # cells' names may be made of the slide's
        nothing = pa.nulls(len(tops), pa.string())
        tops = tops.set_column(tops.column_names.index("cell_id"), "cell_id", nothing)
    # Cells' identifiers are digests of the slide's name, which could be guessed.
    called = names.of(entry.slide_id) if names.withheld else entry.slide_id
    text = "".join(GeoJson(slide_id=called).lines(tops))
    return "data:application/geo+json;base64," + base64.b64encode(text.encode()).decode("ascii")


def _visible_map(values: Mapping[str, str]) -> dict[str, str]:
    return {printable(key): printable(value or "") for key, value in values.items()}


def hexadecimal(class_name: str) -> str:
    """A class's colour, as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour_of(class_name))
