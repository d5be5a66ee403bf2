"""Slides that become urgent, or turn up, while the run goes on."""

from __future__ import annotations

import csv
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.places.place import Place
from cvm_batch.archives.tables.slides import ListedSlide
from cvm_batch.errors import ExitCode
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.live import LiveFiles, ask_for_priority
from cvm_batch.screening import wishes
from cvm_batch.screening.plan import FreshSlide, Plan, PlannedSlide
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings
from cvm_batch.screening.summary import Progress, RunSummary
from cvm_batch.screening.wishes import ListAnew, Prioritise, TakeFurther, WatchedManifests, Wish
from tests.archives import making
from tests.screening.test_run import many_slides, tiles

Row = dict[str, Any]
SLIDES = 40


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wishes, "_LOOK_EVERY_SECONDS", 0.05)


def write_manifest(path: Path, rows: Sequence[Row]) -> None:
    """As an editor does it: beside, then renamed."""
    beside = path.with_name(f".{path.name}")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["slide_id", "uri", "priority"])
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(path)


def planned(slides: Sequence[ListedSlide], *_: object) -> Plan:
    return Plan(
        slides=tuple(
            PlannedSlide(
                slide_id=slide.slide_id,
                address=slide.address,
                info=None,
                priority=slide.priority,
            )
            for slide in slides
        ),
        failed=(),
        settled=(),
    )


def told(watched: WatchedManifests, count: int) -> list[Wish]:
    found: list[Wish] = []
    deadline = time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < deadline
        found += watched.wishes()
        time.sleep(0.01)
    return found


def test_a_manifest_that_changes_is_read_again(tmp_path: Path) -> None:
    manifest = tmp_path / "night.csv"
    known = [{"slide_id": name, "uri": name, "priority": 0} for name in ("a", "b[1]")]
    write_manifest(manifest, known)
    listed = [
        ListedSlide(slide_id=row["slide_id"], address=SlideAddress(uri=f"/{row['uri']}"))
        for row in known
    ]
    watched = WatchedManifests([str(manifest)], planned(listed), planned)
    try:
        manifest.write_text('slide_id,uri\n"half')  # half written: nothing is to be made of it
        time.sleep(0.3)
        assert watched.wishes() == []
        known[1]["priority"] = 7
        write_manifest(manifest, [*known, {"slide_id": "c", "uri": "c", "priority": 3}])
        found = told(watched, 2)
        (further,) = [wish.plan for wish in found if isinstance(wish, TakeFurther)]
        assert [(slide.slide_id, slide.priority) for slide in further.slides] == [("c", 3)]
        assert further.slides[0].address.uri == str(tmp_path / "c")
        assert ListAnew({"b[1]": 7}) in found
        manifest.unlink()
        time.sleep(0.3)
        assert watched.wishes() == []
    finally:
        watched.close()


def test_a_slide_that_just_changed_is_taken_once_it_has_settled(tmp_path: Path) -> None:
    """Though its manifest stays as it is."""
    manifest = tmp_path / "night.csv"
    write_manifest(manifest, [{"slide_id": "a", "uri": "a", "priority": 4}])
    left = replace(planned([]), fresh=(FreshSlide("a", 1.0),))
    settled = threading.Event()
    looks: list[list[str]] = []

    def plan_further(slides: Sequence[ListedSlide], *_: object) -> Plan:
        looks.append([slide.slide_id for slide in slides])
        return planned(slides) if settled.is_set() else left

    watched = WatchedManifests([str(manifest)], left, plan_further)
    try:
        deadline = time.monotonic() + 20
        while len(looks) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert watched.wishes() == [], "nothing that the run does not know"
        settled.set()
        (found,) = told(watched, 1)
        assert isinstance(found, TakeFurther)
        assert [(slide.slide_id, slide.priority) for slide in found.plan.slides] == [("a", 4)]
        count = len(looks)
        time.sleep(0.3)
        assert (watched.wishes(), len(looks)) == ([], count), "once"
    finally:
        watched.close()


def test_a_row_that_changes_holds_for_a_slide_that_is_fresh(tmp_path: Path) -> None:
    manifest = tmp_path / "night.csv"
    row = {"slide_id": "a", "uri": "a", "priority": 4}
    write_manifest(manifest, [row])
    left = replace(planned([]), fresh=(FreshSlide("a", 1.0),))
    looks: list[int] = []

    def plan_further(slides: Sequence[ListedSlide], *_: object) -> Plan:
        looks.append(slides[0].priority)
        return planned(slides) if slides[0].priority == 3 else left

    watched = WatchedManifests([str(manifest)], left, plan_further)
    try:
        deadline = time.monotonic() + 20
        while len(looks) < 2:  # the first look is over
            assert time.monotonic() < deadline
            time.sleep(0.01)
        write_manifest(manifest, [row | {"priority": 2}])
        assert told(watched, 1) == [ListAnew({"a": 2})]
        write_manifest(manifest, [row | {"priority": 3}])
        further, anew = told(watched, 2)
        assert isinstance(further, TakeFurther)
        assert [slide.priority for slide in further.plan.slides] == [3]
        assert anew == ListAnew({"a": 3}), "since it may have been asked for otherwise"
        time.sleep(0.3)
        assert watched.wishes() == []
    finally:
        watched.close()


def test_a_manifest_that_is_being_written_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a row can be a row as well, of a slide that is not there."""
    manifest = tmp_path / "night.csv"
    whole = "slide_id,uri\na,a.zip\nb,b.zip\n"
    manifest.write_text("slide_id,uri\na,a.zip\n")
    listed = [ListedSlide(slide_id="a", address=SlideAddress(uri=str(tmp_path / "a.zip")))]
    writes, read = [whole[:-7], whole[:-5], whole], []
    looked, understood = WatchedManifests._try, wishes.read_manifest

    def write_on(self: WatchedManifests, place: Place) -> str | None:
        if writes:
            manifest.write_text(writes.pop(0))
        return looked(self, place)

    def read_manifest(place: Place) -> list[ListedSlide]:
        read.append(manifest.read_text())
        return understood(place)

    monkeypatch.setattr(WatchedManifests, "_try", write_on)
    monkeypatch.setattr(wishes, "read_manifest", read_manifest)
    watched = WatchedManifests([str(manifest)], planned(listed), planned)
    try:
        (found,) = told(watched, 1)
        assert isinstance(found, TakeFurther)
        assert [slide.slide_id for slide in found.plan.slides] == ["b"]
        assert read == [whole]
    finally:
        watched.close()


def test_a_manifest_that_cannot_be_used_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And looked at again, whatever was wrong with it."""
    caplog.set_level(logging.INFO, "cvm_batch")
    manifest = tmp_path / "night.csv"
    rows = [{"slide_id": "a", "uri": "a", "priority": 0}]
    write_manifest(manifest, rows)
    failures: list[Exception] = [ValueError("not foreseen")]

    def plan_further(slides: Sequence[ListedSlide], *_: object) -> Plan:
        if failures:
            raise failures.pop()
        return planned(slides)

    def trouble(expected: str) -> bool:
        deadline = time.monotonic() + 20
        while expected not in str(watched.trouble) and time.monotonic() < deadline:
            time.sleep(0.01)
        return expected in str(watched.trouble)

    known = planned([ListedSlide(slide_id="a", address=SlideAddress(uri="/a"))])
    watched = WatchedManifests([str(manifest)], known, plan_further)
    try:
        write_manifest(manifest, [{"slide_id": "a", "uri": "a", "priority": "hihg"}])
        assert trouble("hihg")
        time.sleep(0.3)
        assert watched.wishes() == []
        write_manifest(manifest, [*rows, {"slide_id": "b", "uri": "b", "priority": 0}])
        (further,) = told(watched, 1)
        assert isinstance(further, TakeFurther)
        assert not failures, "the first look at it failed"
        assert trouble("None")
    finally:
        watched.close()
    events = [record.event for record in caplog.records if record.msg == "manifest not used"]  # type: ignore[attr-defined]
    details = [event["detail"] for event in events]
    assert len(details) == 2
    assert "hihg" in details[0]
    assert "not foreseen" in details[1]


@pytest.mark.parametrize(
    ("pattern", "slide_id", "fits"),
    [
        ("a.zip", "a.zip", True),
        ("urgent/*", "urgent/a.zip", True),
        ("urgent/*", "other/urgent/a.zip", False),
        ("a[1].zip", "a[1].zip", True),
        ("A.zip", "a.zip", False),
    ],
)
def test_patterns(pattern: str, slide_id: str, fits: bool) -> None:
    assert Prioritise(pattern, 1).of(slide_id) == (1 if fits else None)


class Night:
    """A slow run over many slides, and what happens once some of it is done."""

    def __init__(self, tmp_path: Path, bundle: Bundle) -> None:
        self.folder = tmp_path / "slides"
        self.out = tmp_path / "results"
        self._bundle = bundle
        many_slides(self.folder, SLIDES)

    def run(self, slides: Path, meanwhile: Callable[[], None], **settings: Any) -> RunSummary:
        waiting = True

        def report(progress: Progress) -> None:
            nonlocal waiting
            if waiting and progress.slides_done:
                waiting = False
                meanwhile()

        summary = run(
            Settings(
                inputs=(str(slides),),
                model=str(self._bundle.path),
                out=self.out,
                precision=Precision.FP32,
                executor=ExecutorKind.LOCAL,
                batch_size=1,
                **settings,
            ),
            report=report,
        )
        assert not waiting
        return summary

    def rows(self) -> list[Row]:
        """In the order in which the slides were begun."""
        table = pq.read_table(self.out / "slides", partitioning=None)
        return list(table.sort_by("started_at").to_pylist())


@pytest.fixture
def night(tmp_path: Path, tiny_bundle: Bundle) -> Night:
    return Night(tmp_path, tiny_bundle)


def test_an_urgent_slide_goes_next(night: Night) -> None:
    names = sorted(path.name for path in night.folder.iterdir())

    def meanwhile() -> None:
        ask_for_priority(ResultsFolder(night.out), names[-1], 9)

    summary = night.run(night.folder, meanwhile)
    assert summary.exit_code is ExitCode.COMPLETE
    rows = night.rows()
    assert len(rows) == SLIDES
    place = next(n for n, row in enumerate(rows) if row["slide_id"] == names[-1])
    assert rows[place]["priority"] == 9
    assert place < SLIDES - 1, "it overtook"
    assert [path.suffix for path in (night.out / "runs").iterdir()] == [".json"]


def test_a_slide_that_is_added_to_a_manifest_is_classified_too(
    night: Night, tmp_path: Path
) -> None:
    manifest = tmp_path / "night.csv"
    listed = [
        {"slide_id": path.name, "uri": str(path), "priority": 0}
        for path in sorted(night.folder.iterdir())
    ]
    write_manifest(manifest, listed)
    making.write_zip(tmp_path / "late.zip", tiles(9, seed=5))
    (tmp_path / "broken.zip").write_bytes(b"PK no zip")

    def meanwhile() -> None:
        further = [
            {"slide_id": "late", "uri": "late.zip", "priority": 5},
            {"slide_id": "broken", "uri": "broken.zip", "priority": 5},
        ]
        write_manifest(manifest, [*listed, *further])

    summary = night.run(manifest, meanwhile)
    assert summary.exit_code is ExitCode.NOT_ALL_COMPLETE
    assert summary.by_status == {"complete": SLIDES + 1, "failed": 1}
    rows = {row["slide_id"]: row for row in night.rows()}
    assert len(rows) == SLIDES + 2
    assert rows["late"]["cells_classified"] == 9
    assert rows["broken"]["status"] == "failed"


def test_a_listed_slide_that_is_fresh_is_taken_once_it_has_settled(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes where it was asked to go while it was not there yet."""
    manifest = tmp_path / "night.csv"
    names = sorted(night.folder.iterdir())
    listed = [{"slide_id": path.name, "uri": str(path), "priority": 0} for path in names]
    time.sleep(0.1)
    boundary = time.time()
    time.sleep(0.1)
    for name in ("late-1", "late-2"):
        making.write_zip(tmp_path / f"{name}.zip", tiles(9, seed=5))
        listed.append({"slide_id": name, "uri": f"{name}.zip", "priority": 0})
    write_manifest(manifest, listed)
    settled = threading.Event()
    monkeypatch.setattr(
        Settings, "quiet_since", lambda self, now: None if settled.is_set() else boundary
    )
    asked = threading.Event()
    priorities_wanted = LiveFiles.priorities_wanted

    def heard(self: LiveFiles, now: float) -> list[tuple[str, int]]:
        wanted = priorities_wanted(self, now)
        if wanted:
            asked.set()
        elif asked.is_set():
            settled.set()  # once the driver has granted that
        return wanted

    monkeypatch.setattr(LiveFiles, "priorities_wanted", heard)

    def meanwhile() -> None:
        ask_for_priority(ResultsFolder(night.out), "late-*", 9)

    summary = night.run(manifest, meanwhile)
    assert (summary.exit_code, summary.fresh) == (ExitCode.COMPLETE, 0)
    assert summary.by_status == {"complete": SLIDES + 2}
    priorities = {row["slide_id"]: row["priority"] for row in night.rows()}
    assert len(priorities) == SLIDES + 2
    assert (priorities["late-1"], priorities["late-2"]) == (9, 9)


def test_priorities_given_at_the_start_hold(night: Night) -> None:
    names = sorted(path.name for path in night.folder.iterdir())
    night.run(night.folder, lambda: None, priorities=((names[20], 3), ("*", -1), (names[9], 4)))
    rows = night.rows()
    assert {row["slide_id"]: row["priority"] for row in rows}[names[9]] == 4
    assert rows[0]["slide_id"] == names[9]


def test_priorities_given_at_the_start_hold_over_a_manifest(night: Night, tmp_path: Path) -> None:
    """Its rows say otherwise, and are read again while the run goes on; a row that changes
    holds from then on."""
    manifest = tmp_path / "night.csv"
    listed = [
        {"slide_id": path.name, "uri": str(path), "priority": 0}
        for path in sorted(night.folder.iterdir())
    ]
    write_manifest(manifest, listed)
    for name in ("late-1", "late-2"):
        making.write_zip(tmp_path / f"{name}.zip", tiles(9, seed=5))
    first, last, changed = (listed[place]["slide_id"] for place in (0, -1, -2))

    def meanwhile() -> None:
        further = [
            {"slide_id": name, "uri": f"{name}.zip", "priority": 2} for name in ("late-1", "late-2")
        ]
        rows = [{**row, "priority": 5} if row["slide_id"] == changed else row for row in listed]
        write_manifest(manifest, [*rows, *further])
        time.sleep(0.5)  # it is looked at

    overrides = ((first, 100), (last, -9), (changed, -9), ("*-1", -9))
    night.run(manifest, meanwhile, priorities=overrides)
    rows = {row["slide_id"]: row["priority"] for row in night.rows()}
    assert len(rows) == SLIDES + 2
    assert (rows[first], rows[last], rows[changed]) == (100, -9, 5)
    assert (rows["late-1"], rows["late-2"]) == (-9, 2)
