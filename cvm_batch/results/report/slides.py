"""The pages of all slides, made in several processes where there are many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from cvm_batch.cpus import usable_cpus
from cvm_batch.isolation import Done, run_isolated
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.report.frame import Frame
from cvm_batch.results.report.gather import RunData
from cvm_batch.results.report.overview import CELLS_SHOWN, SMALL_PX, First, first_of
from cvm_batch.results.report.slide_page import Cell, slide_page
from cvm_batch.results.report.target import Page, Target
from cvm_batch.results.report.thumbnails import thumbnail
from cvm_batch.results.report.tops import tops_of_each
from cvm_batch.results.worklist import Entry

#: Files of top cells that a share reads, each with up to twenty tiles.
_FILES_A_SHARE = 64
#: Fewer slides are done before another process has started.
_FEW_SLIDES = 150
#: More readers than this wait for the disk.
_MOST_PROCESSES = 8
_SHARE_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class SlideJob:
    """One slide of a share."""

    entry: Entry
    row: Mapping[str, Any]
    before: str | None
    """The slide_id of its neighbour in the worklist."""
    after: str | None
    on_front_page: bool

    @property
    def slide_id(self) -> str:
        return self.entry.slide_id

    @property
    def cells_files(self) -> Sequence[str]:
        return self.entry.cells_files

    @property
    def tops_files(self) -> Sequence[str]:
        return self.entry.tops_files


@dataclass(frozen=True, kw_only=True)
class Share:
    """What came of some slides."""

    written: Mapping[str, int]
    """Sizes of files by their names."""
    first: Mapping[str, First]
    """What the front page shows, by slide_id."""


def write_slides(
    results: Path | str,
    root: Path | str,
    folder: PurePosixPath,
    data: RunData,
    frame: Frame,
    on_front_page: Sequence[Entry],
) -> Share:
    """Write each slide's page to ``folder`` of ``root``.

    Raises ResultsError where a file is damaged, CommitError where a page cannot be written,
    RunAbortedError where a process does not start.
    """
    jobs = _jobs(data, {entry.slide_id for entry in on_front_page})
    # Each process is sent what all slides have in common, but no slide twice.
    common = replace(data, worklist=data.worklist.without_entries(), rows={}, lacking_before=())
    work = partial(_write_share, results, root, folder, common, frame)
    processes = min(usable_cpus(), _MOST_PROCESSES)
    shares = list(_shares(jobs))
    if processes == 1 or len(jobs) <= _FEW_SLIDES:
        done = [work(share) for share in shares]
    else:
        done = _in_processes(work, shares, processes)
    return Share(
        written={name: size for share in done for name, size in share.written.items()},
        first={slide_id: first for share in done for slide_id, first in share.first.items()},
    )


def _in_processes(
    work: partial[Share], shares: Sequence[Sequence[SlideJob]], processes: int
) -> list[Share]:
    done = []
    outcomes = run_isolated(
        work, shares, jobs=processes, timeout=_SHARE_SECONDS, name=lambda _: "The report"
    )
    with closing(outcomes):
        for outcome in outcomes:
            if not isinstance(outcome, Done):
                raise outcome.error
            done.append(outcome.result)
    return done


def _jobs(data: RunData, on_front_page: set[str]) -> list[SlideJob]:
    """By the files of their top cells, so that each file is read once, or twice."""
    entries = data.in_order
    names: list[str | None] = [None, *(entry.slide_id for entry in entries), None]
    jobs = [
        SlideJob(
            entry=entry,
            row=data.rows[entry.slide_id],
            before=names[at],
            after=names[at + 2],
            on_front_page=entry.slide_id in on_front_page,
        )
        for at, entry in enumerate(entries)
    ]
    return sorted(jobs, key=lambda job: list(job.tops_files))


def _shares(jobs: Sequence[SlideJob]) -> Iterator[Sequence[SlideJob]]:
    """Consecutive slides with about so many files together; a failed slide has none."""
    share: list[SlideJob] = []
    count = 0
    for job in jobs:
        share.append(job)
        count += max(1, len(job.tops_files))
        if count >= _FILES_A_SHARE:
            yield share
            share, count = [], 0
    if share:
        yield share


def _write_share(
    results: Path | str,
    root: Path | str,
    folder: PurePosixPath,
    data: RunData,
    frame: Frame,
    jobs: Sequence[SlideJob],
) -> Share:
    first: dict[str, First] = {}

    def pages() -> Iterator[Page]:
        tables = tops_of_each(ResultsFolder(results), jobs)
        for job, tops in zip(jobs, tables, strict=True):
            yield from _pages(data, frame, job, tops, first)

    return Share(written=Target(root, folder).put(pages()), first=first)


def _pages(
    data: RunData, frame: Frame, job: SlideJob, tops: pa.Table, first: dict[str, First]
) -> Iterator[Page]:
    names = frame.names
    page = slide_page(data, job.entry, job.row, tops, names)
    stem = f"slides/{names.file(job.slide_id)}"
    if job.on_front_page:
        pictures = list(_small(page.cells, tops["png"][:CELLS_SHOWN].to_pylist()))
        first[job.slide_id] = first_of(job.entry, names, data.groups, pictures)
    yield frame.page(
        f"{stem}.html",
        "slide.html.j2",
        names.short(job.slide_id),
        root="../",
        before=_link(frame, job.before),
        after=_link(frame, job.after),
        **page.values,
    )


def _small(cells: Sequence[Cell], tiles: Sequence[bytes]) -> Iterator[tuple[str, Any]]:
    for cell, tile in zip(cells, tiles, strict=False):
        if (picture := thumbnail(tile, SMALL_PX)) is not None:
            yield cell.class_name, picture


def _link(frame: Frame, slide_id: str | None) -> tuple[str, str] | None:
    """File and name of a neighbour in the worklist."""
    if slide_id is None:
        return None
    return f"{frame.names.file(slide_id)}.html", frame.names.short(slide_id)
