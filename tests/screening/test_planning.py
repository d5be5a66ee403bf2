"""Plans: what is left to do, in which order, and which slides are not even opened."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cvm_batch import threads
from cvm_batch.archives import contents, describing
from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.contents import Content
from cvm_batch.archives.formats import identity_of
from cvm_batch.archives.opening import PLAIN, OpenOptions
from cvm_batch.errors import NoSlidesError, Reason, UsageError
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision
from cvm_batch.results.schemas import Status
from cvm_batch.results.slides import History, Settled
from cvm_batch.screening.plan import Plan, PlannedSlide, SettledSlide
from cvm_batch.screening.planning import make_plan, plan_slides
from cvm_batch.threads import Sign
from tests.archives.making import write_zip
from tests.conftest import coloured_tiles

NAMES = [f"slide-{number:02d}.zip" for number in range(20)]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for number, name in enumerate(NAMES):
        write_zip(folder / name, coloured_tiles(range(1 + number)))
    return folder


@pytest.fixture(scope="module")
def first(slides: Path, tiny_bundle: Bundle) -> Plan:
    """Of the first night."""
    return plan(slides, tiny_bundle, History({}))


def plan(slides: Path, bundle: Bundle, history: History, **options: Any) -> Plan:
    given = {"bundle": bundle, "precision": Precision.FP32, "history": history, "options": PLAIN}
    return make_plan([str(slides)], partial(plan_slides, **given | options))


def history_of(plan: Plan, status: Status = Status.COMPLETE) -> History:
    """As if all that was planned had ended so."""
    reason = None if status is Status.COMPLETE else Reason.BAD_FORMAT
    ended = Settled(status, reason, None)
    settled = {(slide.slide_id, str(slide.result_key)): ended for slide in plan.slides}
    failed = {} if status is Status.COMPLETE else {slide: ended for slide, _ in settled}
    return History(settled, failed)


def ids(slides: Sequence[PlannedSlide | SettledSlide]) -> list[str]:
    return [slide.slide_id for slide in slides]


def test_the_largest_go_first(first: Plan) -> None:
    assert ids(first.slides) == NAMES[::-1]
    assert first.tiles == sum(range(1, len(NAMES) + 1))


def test_what_is_done_is_not_opened(
    slides: Path, tmp_path: Path, first: Plan, tiny_bundle: Bundle
) -> None:
    copied = shutil.copytree(slides, tmp_path / "copied")
    for path in copied.iterdir():  # unreadable now, and by its stamp as it was
        status = path.stat()
        path.write_bytes(status.st_size * b"x")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = plan(copied, tiny_bundle, history_of(first))
    assert ids(again.settled) == NAMES
    assert again.slide_count == 0


def test_what_changed_is_opened(
    slides: Path, tmp_path: Path, first: Plan, tiny_bundle: Bundle
) -> None:
    copied = shutil.copytree(slides, tmp_path / "copied")
    os.utime(copied / NAMES[3], ns=(0, 0))
    (copied / NAMES[5]).write_bytes(b"damaged")
    (copied / NAMES[7]).unlink()
    again = plan(copied, tiny_bundle, history_of(first))
    assert (ids(again.slides), ids(again.failed)) == ([NAMES[3]], [NAMES[5]])
    assert set(ids(again.settled)) == set(NAMES) - {NAMES[3], NAMES[5], NAMES[7]}


def test_another_precision_is_another_result(
    slides: Path, first: Plan, tiny_bundle: Bundle
) -> None:
    again = plan(slides, tiny_bundle, history_of(first), precision=Precision.BF16)
    assert len(again.slides) == len(NAMES)


def test_retry_takes_what_failed_and_nothing_else(
    slides: Path, first: Plan, tiny_bundle: Bundle
) -> None:
    assert plan(slides, tiny_bundle, history_of(first), retry=True).slide_count == 0
    failed = history_of(first, Status.FAILED)
    assert ids(plan(slides, tiny_bundle, failed).settled) == NAMES
    assert ids(plan(slides, tiny_bundle, failed, retry=True).slides) == NAMES[::-1]


def test_retry_names_what_its_inputs_do_not_hold_until_it_joins(
    slides: Path, tmp_path: Path, first: Plan, tiny_bundle: Bundle
) -> None:
    failed = history_of(first, Status.FAILED)
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy2(slides / NAMES[0], few)
    retried = plan(few, tiny_bundle, failed, retry=True).with_unlisted(failed)
    assert ids(retried.slides) == [NAMES[0]]
    assert sorted(ids(retried.settled)) == sorted(NAMES[1:])
    assert {slide.found.status for slide in retried.settled} == {Status.FAILED}
    further = replace(first, slides=tuple(s for s in first.slides if s.slide_id == NAMES[1]))
    joined = retried.joined(further)
    assert ids(joined.slides) == NAMES[:2]
    assert sorted(ids(joined.settled)) == sorted(NAMES[2:])


def test_what_just_changed_is_left_until_it_has_settled(
    slides: Path, tmp_path: Path, first: Plan, tiny_bundle: Bundle
) -> None:
    copied = shutil.copytree(slides, tmp_path / "copied")  # with the first ones' times
    time.sleep(0.1)
    began = time.time() - 0.05
    (copied / NAMES[3]).write_bytes((slides / NAMES[4]).read_bytes())
    (copied / NAMES[5]).write_bytes(b"half of it")
    (copied / NAMES[7]).with_suffix(".cells.csv").write_text("file\n")
    shutil.copy2(copied / NAMES[8], copied / "new.zip")  # an old file that comes now
    again = plan(copied, tiny_bundle, history_of(first), quiet_since=began)
    fresh = {NAMES[3], NAMES[5], NAMES[7], "new.zip"}
    assert {slide.slide_id for slide in again.fresh} == fresh
    assert all(began < slide.changed_at < time.time() + 1 for slide in again.fresh)
    assert (again.slides, again.failed) == ((), ())
    assert set(ids(again.settled)) == set(NAMES) - fresh, "settled whatever its time"
    later = plan(copied, tiny_bundle, history_of(first), quiet_since=time.time() + 1)
    assert later.fresh == ()
    assert set(ids(later.slides)) | set(ids(later.failed)) == fresh
    joined = again.joined(later)
    assert (joined.fresh, joined.slides) == ((), later.slides)


def test_a_failed_slide_that_just_changed_is_not_unlisted(
    slides: Path, first: Plan, tiny_bundle: Bundle
) -> None:
    failed = history_of(first, Status.FAILED)
    retried = plan(slides, tiny_bundle, failed, retry=True, quiet_since=0.0).with_unlisted(failed)
    assert {slide.slide_id for slide in retried.fresh} == set(NAMES)
    assert retried.settled == ()


def test_what_files_hold_counts_not_their_times(
    slides: Path, tmp_path: Path, tiny_bundle: Bundle
) -> None:
    first = plan(slides, tiny_bundle, History({}), rehash=True)
    copied = shutil.copytree(slides, tmp_path / "copied", copy_function=shutil.copy)
    damaged = bytearray((copied / NAMES[5]).read_bytes())
    damaged[-1] ^= 1
    times = (copied / NAMES[5]).stat()
    (copied / NAMES[5]).write_bytes(damaged)
    os.utime(copied / NAMES[5], ns=(times.st_atime_ns, times.st_mtime_ns))
    again = plan(copied, tiny_bundle, history_of(first), rehash=True)
    assert set(ids(again.settled)) == set(NAMES) - {NAMES[5]}
    assert ids([*again.slides, *again.failed]) == [NAMES[5]]
    assert ids(plan(copied, tiny_bundle, history_of(first)).settled) == [], "their times differ"


def test_a_file_that_changes_after_it_was_digested(
    slides: Path, tmp_path: Path, tiny_bundle: Bundle
) -> None:
    copied = shutil.copytree(slides, tmp_path / "copied")

    def meanwhile() -> None:
        (copied / NAMES[5]).write_bytes((slides / NAMES[6]).read_bytes())

    found = plan(copied, tiny_bundle, History({}), rehash=True, work_waits=meanwhile)
    assert_one_is_tried_again(found, Reason.INPUT_CHANGED)


def assert_one_is_tried_again(found: Plan, reason: Reason) -> None:
    """The fifth fails for that reason, for now; all others are planned."""
    assert ids(found.failed) == [NAMES[5]]
    failure = found.failed[0].failure
    assert failure is not None
    assert failure.reason is reason
    assert found.failed[0].result_key is None, "so that it is tried again"
    assert len(found.slides) == len(NAMES) - 1


def test_a_slide_that_cannot_be_opened_is_told_by_what_it_holds(
    slides: Path, tmp_path: Path, tiny_bundle: Bundle
) -> None:
    copied = shutil.copytree(slides, tmp_path / "copied")
    (copied / NAMES[5]).write_bytes(b"PK no zip")
    (broken,) = plan(copied, tiny_bundle, History({}), rehash=True).failed
    assert broken.slide_id == NAMES[5]
    ended = {(NAMES[5], str(broken.result_key)): Settled(Status.FAILED, Reason.BAD_FORMAT, None)}
    os.utime(copied / NAMES[5], (1, 1))
    again = plan(copied, tiny_bundle, History(ended), rehash=True)
    assert ids(again.settled) == [NAMES[5]]


def test_digesting_ends_when_the_run_is_to_stop(
    slides: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_LOOK_SECONDS", 0.05)
    began, ended = threading.Event(), threading.Event()

    def for_ever(address: object, options: object, sign: Sign) -> Content:
        began.set()
        try:
            while True:
                sign()
                time.sleep(0.01)
        finally:
            ended.set()

    def never() -> None:
        raise AssertionError("nothing is known to wait")

    monkeypatch.setattr(contents, "content_of", for_ever)
    stopped = plan(
        *(slides, tiny_bundle, History({})),
        rehash=True,
        should_stop=began.is_set,
        work_waits=never,
    )
    assert (stopped.slides, stopped.failed, stopped.not_planned) == ((), (), len(NAMES))
    assert ended.wait(20)


def test_a_slide_of_which_nothing_comes_is_given_up(
    slides: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang, read = threading.Event(), contents.content_of

    def hanging(address: SlideAddress, options: OpenOptions, sign: Sign) -> Content:
        if address.uri.endswith(NAMES[5]):
            hang.wait(60)
        return read(address, options, sign)

    def not_again(address: SlideAddress, options: OpenOptions) -> str:
        assert not address.uri.endswith(NAMES[5]), "it would hang here as well"
        return identity_of(address, options)

    monkeypatch.setattr(threads, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(contents, "_PATIENCE_SECONDS", 4.0)
    monkeypatch.setattr(contents, "content_of", hanging)
    monkeypatch.setattr(describing, "identity_of", not_again)
    found = plan(slides, tiny_bundle, History({}), rehash=True)
    hang.set()
    assert_one_is_tried_again(found, Reason.READ_ERROR)


def test_what_is_wrong_with_the_run_is_no_slide_s(
    slides: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a store's client has no credentials."""

    def refused(*_: object) -> Content:
        raise UsageError("No connection can be set up.")

    monkeypatch.setattr(contents, "content_of", refused)
    with pytest.raises(UsageError, match="No connection"):
        plan(slides, tiny_bundle, History({}), rehash=True)


def test_what_is_settled_stays_so_however_new(slides: Path, tiny_bundle: Bundle) -> None:
    for options in ({}, {"rehash": True}):
        before = plan(slides, tiny_bundle, History({}), **options)
        again = plan(slides, tiny_bundle, history_of(before), quiet_since=0.0, **options)
        assert set(ids(again.settled)) == set(NAMES)
        assert again.fresh == ()


def test_replicas_are_prepared_for_where_there_is_work(
    slides: Path, tmp_path: Path, first: Plan, tiny_bundle: Bundle
) -> None:
    told: list[str] = []
    plan(slides, tiny_bundle, history_of(first), work_waits=lambda: told.append("done"))
    assert not told
    write_zip(tmp_path / "new.zip", coloured_tiles(range(3)))
    plan(tmp_path, tiny_bundle, history_of(first), work_waits=lambda: told.append("new"))
    assert told == ["new"]


@pytest.mark.parametrize("looked_at", [0, 1, 3])
def test_planning_stops_between_two_slides(
    slides: Path, first: Plan, tiny_bundle: Bundle, looked_at: int
) -> None:
    """Whether they are to be opened, or settled already."""
    for known in (History({}), history_of(first)):
        asked = iter(range(1000))
        stopped = plan(
            slides, tiny_bundle, known, should_stop=lambda asked=asked: next(asked) >= looked_at
        )
        assert (stopped.slides, stopped.failed) == ((), ())
        assert stopped.slide_count == stopped.not_planned > 0
        assert len(stopped.settled) + stopped.not_planned == len(NAMES)


def test_planning_stops_while_a_slide_is_being_opened(
    slides: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that hangs is given ten minutes; who stops the run is not to wait for it."""

    def hangs(self: object, *, block: bool) -> None:
        time.sleep(0.05)

    monkeypatch.setattr("cvm_batch.isolation._Pool.collect", hangs)
    asked = iter(range(1000))
    stopped = plan(slides, tiny_bundle, History({}), should_stop=lambda: next(asked) >= 10)
    assert stopped.not_planned == len(NAMES)


def test_nothing_there_is_an_error(tmp_path: Path, tiny_bundle: Bundle) -> None:
    with pytest.raises(NoSlidesError, match="No slides found"):
        plan(tmp_path, tiny_bundle, History({}))


@pytest.mark.parametrize("executor", ["ray_executor", "local_executor"])
def test_planning_loads_no_pytorch(executor: str) -> None:
    modules = f"cvm_batch.screening.run, cvm_batch.screening.{executor}"
    script = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
