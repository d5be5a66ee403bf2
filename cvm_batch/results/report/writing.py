"""Writes a run's report into a folder, the front page last."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import cvm_batch
from cvm_batch.errors import ResultsError
from cvm_batch.pseudonyms import Pseudonyms
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.reading import Results
from cvm_batch.results.report.drift import Verdict
from cvm_batch.results.report.gather import LATEST, RunData, find_run, gather
from cvm_batch.results.report.lists import (
    Section,
    failure_sections,
    pages_of,
    quality_control_section,
    table_data,
    worklist_sections,
)
from cvm_batch.results.report.naming import Names
from cvm_batch.results.report.overview import (
    CELLS_SHOWN,
    SMALL_PX,
    First,
    drift_values,
    first_of,
    overview_values,
    shown_first,
)
from cvm_batch.results.report.pages import render
from cvm_batch.results.report.slide_page import slide_page
from cvm_batch.results.report.thumbnails import thumbnail
from cvm_batch.results.report.wording import group_name
from cvm_batch.results.stores.disk import TEMPORARY
from cvm_batch.results.worklist import Entry

FRONT_PAGE = "index.html"
#: On object storage each write takes its time, most of it spent waiting.
_WRITES_AT_ONCE = 16
#: What an earlier report may have left in the folder; nothing else is ever removed from it.
_OURS = re.compile(
    r"(?:index|drift|(?:worklist|failures|quality-control)(?:-\d+)?)\.html"
    r"|slides/(?:slide-)?[0-9a-f]{16}\.(?:html|geojson)"
)


@dataclass(frozen=True, kw_only=True)
class Written:
    """A report that has been written."""

    run_id: str
    address: str
    """Of the front page."""
    files: int
    bytes: int
    verdict: Verdict


def write_report(
    results: Path | str,
    run_id: str = LATEST,
    *,
    out: Path | str | None = None,
    pseudonyms: Pseudonyms | None = None,
) -> Written:
    """Write a run's report to ``reports/<run_id>/`` of the results folder, or to ``out``.

    In place of an older report of the same run, front page last. With ``pseudonyms`` no slide
    is named, and the report lies in ``reports/<run_id>-pseudonyms/``. Raises ResultsError where
    there is no such run or a file is damaged, CommitError where a page cannot be written.
    """
    folder = ResultsFolder(results)
    seen = find_run(folder, run_id)
    where = RunName.of(seen.run_id).report_folder(pseudonyms=pseudonyms is not None)
    elsewhere = None if out is None else _Target(ResultsFolder(out), PurePosixPath())
    target = elsewhere or _Target(folder, where)
    target.prepare()
    with Results(results) as opened:
        data = gather(opened, seen)
        report = _Report(opened, data, Names(pseudonyms))
        target.write(report.pages())
    return Written(
        run_id=seen.run_id,
        address=target.address,
        files=len(target.written),
        bytes=target.bytes,
        verdict=data.verdict,
    )


class _Target:
    """A folder of pages, in a results folder or by itself."""

    def __init__(self, root: ResultsFolder, folder: PurePosixPath) -> None:
        self._root = root
        self._folder = folder
        self.written: set[str] = set()
        self.bytes = 0

    @property
    def address(self) -> str:
        return f"{self._root}/{self._folder / FRONT_PAGE}"

    def prepare(self) -> None:
        self._root.prepare()

    def write(self, pages: Iterator[tuple[str, bytes]]) -> None:
        """Raises CommitError. Pages of an older report that this one lacks are removed."""
        try:
            if isinstance(self._root.root, Path):
                for name, content in pages:
                    self._put(name, content)
            else:
                self._write_at_once(pages)
            self._remove_older()
        finally:
            if isinstance(self._root.root, Path) and self._folder == PurePosixPath():
                with suppress(OSError):  # in a results folder it has other uses
                    (self._root.root / TEMPORARY).rmdir()

    def _write_at_once(self, pages: Iterator[tuple[str, bytes]]) -> None:
        """The last page, which leads to the others, when they are there."""
        waiting: list[tuple[str, bytes]] = []
        with ThreadPoolExecutor(_WRITES_AT_ONCE) as pool:
            for page in pages:
                waiting.append(page)
                if len(waiting) > _WRITES_AT_ONCE:  # all but the newest, which may be the last
                    list(pool.map(self._put, *zip(*waiting[:-1], strict=True)))
                    del waiting[:-1]
            if waiting[:-1]:
                list(pool.map(self._put, *zip(*waiting[:-1], strict=True)))
        for page in waiting[-1:]:
            self._put(*page)

    def _put(self, name: str, content: bytes) -> None:
        self._root.replace_soon(self._folder / name, content)
        self.written.add(name)
        self.bytes += len(content)

    def _remove_older(self) -> None:
        there = [PurePosixPath(name) for name in self._root.names(self._folder, deep=True)]
        names = {path: path.relative_to(self._folder).as_posix() for path in there}
        self._root.remove(
            [
                path
                for path, name in names.items()
                if name not in self.written and _OURS.fullmatch(name)
            ]
        )


class _Report:
    """The pages of one run's report."""

    def __init__(self, results: Results, data: RunData, names: Names) -> None:
        self._results = results
        self._data = data
        self._names = names
        self._failures = failure_sections(data, names)
        self._first: dict[str, First] = {}

    def pages(self) -> Iterator[tuple[str, bytes]]:
        """Names and contents, the front page last. Raises ResultsError."""
        yield from self._slides()
        sections = worklist_sections(self._data, self._names)
        yield from self._lists("worklist", "Worklist", sections, data=table_data(sections))
        drawn = [quality_control_section(self._data, self._names)]
        yield from self._lists("quality-control", "Quality control", drawn)
        yield from self._lists("failures", "Not complete", self._failures)
        yield self._page("drift.html", "drift.html.j2", "Drift", **drift_values(self._data))
        first = [self._first[slide_id] for slide_id in self._first]
        values = overview_values(self._data, self._names, first, self._failures)
        yield self._page(FRONT_PAGE, "index.html.j2", "Overview", **values)

    def _slides(self) -> Iterator[tuple[str, bytes]]:
        entries = self._data.in_order
        shown = {entry.slide_id for entry in shown_first(self._data)}
        tables = self._results.tops_of_each(entries)
        for at, (entry, tops) in enumerate(zip(entries, tables, strict=True)):
            page = slide_page(self._data, entry, tops, self._names)
            name = f"slides/{self._names.file(entry.slide_id)}"
            if entry.slide_id in shown:
                self._show_first(entry, tops["png"][:CELLS_SHOWN].to_pylist(), page.cells)
            if page.geojson is not None:
                yield f"{name}.geojson", page.geojson.encode("utf-8", "backslashreplace")
            yield self._page(
                f"{name}.html",
                "slide.html.j2",
                page.values["name"],
                root="../",
                before=self._link(entries, at - 1),
                after=self._link(entries, at + 1),
                has_geojson=page.geojson is not None,
                **page.values,
            )

    def _show_first(self, entry: Entry, tiles: Sequence[bytes], cells: Sequence[Any]) -> None:
        pictures = [
            (cell.class_name, picture)
            for cell, tile in zip(cells, tiles, strict=False)
            if (picture := thumbnail(tile, SMALL_PX)) is not None
        ]
        groups = self._data.worklist.groups
        self._first[entry.slide_id] = first_of(entry, self._names, groups, pictures)

    def _link(self, entries: Sequence[Entry], at: int) -> tuple[str, str] | None:
        """File and name of a neighbour in the worklist."""
        if not 0 <= at < len(entries):
            return None
        slide_id = entries[at].slide_id
        return f"{self._names.file(slide_id)}.html", self._names.short(slide_id)

    def _lists(
        self,
        stem: str,
        title: str,
        sections: Sequence[Section],
        data: Mapping[str, Any] | None = None,
    ) -> Iterator[tuple[str, bytes]]:
        pages = pages_of(sections)
        files = [f"{stem}.html" if n == 1 else f"{stem}-{n}.html" for n in range(1, len(pages) + 1)]
        for number, (file, shown) in enumerate(zip(files, pages, strict=True), start=1):
            yield self._page(
                file,
                f"{stem}.html.j2",
                title,
                sections=shown,
                number=number,
                files=files,
                total=sum(section.total for section in sections),
                # The script looks through all slides from the first page.
                data=data if number == 1 else None,
            )

    def _page(self, file: str, template: str, title: str, **values: Any) -> tuple[str, bytes]:
        data = self._data
        common = {
            "file": file,
            "title": title,
            "root": "",
            "data": None,
            "manifest": data.manifest,
            "bundle": data.bundle,
            "run_id": data.run_id,
            "night": _night(data.manifest["started_at"]),
            "pseudonyms": self._names.withheld,
            "groups": [group_name(group) for group in data.worklist.groups],
            "verdict": data.verdict,
            "lacking": sum(section.total for section in self._failures),
            "written_by": cvm_batch.__version__,
        }
        return file, render(template, **common | values)


def _night(started_at: str) -> str:
    """``23 November 2026, 22:00 UTC``."""
    try:
        began = datetime.fromisoformat(started_at)
    except ValueError as error:
        raise ResultsError(f"The run's manifest has no time of start: {error}.") from error
    return f"{began.day} {began:%B %Y, %H:%M} UTC"
