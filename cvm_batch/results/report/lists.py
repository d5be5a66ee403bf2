"""Slides as rows of tables, on pages of bounded length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cvm_batch.errors import PASSING_REASONS
from cvm_batch.results.report.gather import RunData
from cvm_batch.results.report.naming import Names
from cvm_batch.results.report.wording import LISTS, Advice, advice_on
from cvm_batch.results.schemas import Status
from cvm_batch.results.worklist import Entry

ROWS_A_PAGE = 200


@dataclass(frozen=True, kw_only=True)
class Row:
    """A slide in a table."""

    stem: str | None
    """Of the file of the slide's page; None where it has none in this report."""
    name: str
    whole_name: str
    status: str
    reason: str | None
    detail: str | None
    cells: int | None = None
    unreadable: int | None = None
    rank: int | None = None
    score: float | None = None
    grade: str | None = None
    counts: Sequence[int | None] = ()
    """By class group; at least so many, of an incomplete slide."""
    quality_control: bool = False
    run_id: str | None = None
    """Where it is another one than the report's."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows under one heading."""

    key: str
    title: str
    about: str
    rows: Sequence[Row]
    total: int
    """Rows on all pages together."""
    advice: Advice | None = None
    tried_again: bool = False
    """Whether the next submit tries these slides by itself."""
    goes_on: bool = False
    """Whether it began on an earlier page."""


def row_of(entry: Entry, names: Names, groups: Sequence[str]) -> Row:
    return Row(
        stem=names.file(entry.slide_id),
        name=names.short(entry.slide_id),
        whole_name=names.of(entry.slide_id),
        status=str(entry.status),
        reason=entry.reason,
        detail=names.told(entry.detail),
        cells=entry.cells_classified,
        unreadable=entry.cells_unreadable,
        rank=entry.rank,
        score=entry.slide_score,
        grade=entry.top_grade,
        counts=[entry.counts.get(group) for group in groups],
        quality_control=entry.quality_control,
    )


def worklist_sections(data: RunData, names: Names) -> list[Section]:
    """All lists that have a slide, in the order in which to look at them."""
    groups = data.groups
    return [
        _section(key, *LISTS[key], [row_of(entry, names, groups) for entry in entries])
        for key in LISTS
        if (entries := getattr(data.worklist, key))
    ]


def quality_control_section(data: RunData, names: Names) -> Section:
    negatives = sum(entry.negative for entry in data.worklist.ranked)
    rows = [row_of(one, names, data.groups) for one in data.worklist.quality_control]
    about = (
        f"Drawn by lot from {negatives:,} slides with a score below 0.5, to be looked at "
        "nevertheless. The threshold is a convention, not a validated one."
    )
    return _section("quality_control", "Quality control", about, rows)


def failure_sections(data: RunData, names: Names) -> list[Section]:
    """Slides that are not complete by their reasons, then those of earlier runs."""
    lacking = [entry for entry in data.in_order if entry.status is not Status.COMPLETE]
    groups = data.groups
    reasons = Counter(entry.reason for entry in lacking)
    found = []
    for reason, _ in sorted(reasons.items(), key=lambda item: (-item[1], item[0] or "")):
        rows = [row_of(entry, names, groups) for entry in lacking if entry.reason == reason]
        advice = advice_on(reason)
        section = _section(reason or "unknown", advice.title, advice.meaning, rows)
        tried = reason in PASSING_REASONS
        found.append(replace(section, advice=advice, tried_again=tried))
    if data.lacking_before:
        rows = [_older_row(row, names) for row in data.lacking_before]
        about = (
            "These slides were not complete in an earlier run and have not been classified "
            "since. `cvm-batch retry` takes up those that failed for a lasting reason."
        )
        found.append(_section("earlier", "Still open from earlier runs", about, rows))
    return found


def pages_of(sections: Iterable[Section], rows_a_page: int = ROWS_A_PAGE) -> list[list[Section]]:
    """Cut into pages of at most so many rows; at least one page."""
    pages: list[list[Section]] = [[]]
    room = rows_a_page
    for section in sections:
        for at, piece, size in _cuts(section.rows, room, rows_a_page):
            if room == 0:
                pages.append([])
                room = rows_a_page
            pages[-1].append(replace(section, rows=piece, goes_on=at > 0))
            room -= size
    return pages


def _cuts(rows: Sequence[Row], room: int, most: int) -> Iterator[tuple[int, Sequence[Row], int]]:
    at, size = 0, room or most
    while at < len(rows):
        piece = rows[at : at + size]
        yield at, piece, len(piece)
        at, size = at + len(piece), most


def _section(key: str, title: str, about: str, rows: Sequence[Row]) -> Section:
    return Section(key=key, title=title, about=about, rows=rows, total=len(rows))


def _older_row(row: Mapping[str, Any], names: Names) -> Row:
    return Row(
        stem=None,
        name=names.short(row["slide_id"]),
        whole_name=names.of(row["slide_id"]),
        status=row["status"],
        reason=row["reason"],
        detail=names.told(row["detail"]),
        unreadable=row["cells_unreadable"],
        run_id=row["run_id"],
    )


def table_data(sections: Iterable[Section]) -> dict[str, Any]:
    """All rows, small, for the script that sorts and filters; the page escapes it."""
    sections = list(sections)
    grades = sorted({row.grade for section in sections for row in section.rows if row.grade})
    return {
        "lists": [[section.key, section.title, section.about] for section in sections],
        "grades": grades,
        "rows": [
            [
                at,
                row.stem,
                row.name,
                row.whole_name if row.whole_name != row.name else 0,
                row.rank,
                None if row.score is None else round(row.score, 4),
                grades.index(row.grade) if row.grade else None,
                row.cells,
                row.unreadable,
                row.counts,
                int(row.quality_control),
            ]
            for at, section in enumerate(sections)
            for row in section.rows
        ],
    }
