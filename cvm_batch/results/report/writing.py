"""Writes a run's report into a folder, the front page last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cvm_batch.pseudonyms import Pseudonyms
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.reading import Results
from cvm_batch.results.report.drift import Verdict
from cvm_batch.results.report.frame import Frame
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
from cvm_batch.results.report.overview import First, drift_values, overview_values, shown_first
from cvm_batch.results.report.slides import write_slides
from cvm_batch.results.report.target import Page, Target

FRONT_PAGE = "index.html"


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
    source = ResultsFolder(results)
    seen = find_run(source, run_id)
    root, folder = source.root, PurePosixPath()
    if out is None:
        folder = RunName.of(seen.run_id).report_folder(pseudonyms=pseudonyms is not None)
    else:
        root = ResultsFolder(out).root
    target = Target(root, folder)
    target.prepare()
    with Results(results) as opened:
        data = gather(opened, seen)
    names = Names(pseudonyms)
    failures = failure_sections(data, names)
    frame = Frame.of(data, names, sum(section.total for section in failures))
    first = shown_first(data)
    try:
        slides = write_slides(source.root, root, folder, data, frame, first)
        written = {**slides.written, **target.put(_lists(data, frame, failures))}
        shown = [slides.first[entry.slide_id] for entry in first]
        written.update(target.put([_front_page(data, frame, shown, failures)]))
        target.remove_older(written)
    finally:
        target.tidy()
    return Written(
        run_id=seen.run_id,
        address=target.address(FRONT_PAGE),
        files=len(written),
        bytes=sum(written.values()),
        verdict=data.verdict,
    )


def _front_page(
    data: RunData, frame: Frame, first: Sequence[First], failures: Sequence[Section]
) -> Page:
    values = overview_values(data, frame.names, first, failures)
    return frame.page(FRONT_PAGE, "index.html.j2", "Overview", **values)


def _lists(data: RunData, frame: Frame, failures: Sequence[Section]) -> Iterator[Page]:
    sections = worklist_sections(data, frame.names)
    yield from _pages(frame, "worklist", "Worklist", sections, data=table_data(sections))
    drawn = quality_control_section(data, frame.names)
    yield from _pages(frame, "quality-control", "Quality control", [drawn] if drawn.rows else [])
    yield from _pages(frame, "failures", "Not complete", failures)
    yield frame.page("drift.html", "drift.html.j2", "Drift", **drift_values(data))


def _pages(
    frame: Frame,
    stem: str,
    title: str,
    sections: Sequence[Section],
    data: Mapping[str, Any] | None = None,
) -> Iterator[Page]:
    """``data`` is for the script of the first page, which looks through all of them."""
    pages = pages_of(sections)
    files = [f"{stem}.html" if n == 1 else f"{stem}-{n}.html" for n in range(1, len(pages) + 1)]
    for number, (file, shown) in enumerate(zip(files, pages, strict=True), start=1):
        yield frame.page(
            file,
            f"{stem}.html.j2",
            title,
            sections=shown,
            number=number,
            files=files,
            total=sum(section.total for section in sections),
            data=data if number == 1 and sections else None,
        )
