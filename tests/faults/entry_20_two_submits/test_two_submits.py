"""What happens: two submits over the same results at once, on a disk and on object storage.

Expected: while the first lives, the second is refused, exit code 2. Once the first is killed, the
second takes over in less than 3 s; where it is frozen, after it was silent for long enough, and
when the first wakes up, it ends with exit code 1. There are never two rows of a slide.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cvm_batch.errors import ExitCode, ResultsInUseError
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision
from cvm_batch.results.claims import Timing
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.manifest import manifests
from cvm_batch.results.slides import all_rows
from cvm_batch.screening import run as run_module
from cvm_batch.screening.settings import ExecutorKind, Settings
from tests.faults.forked_drivers import Drivers, Ended, drivers
from tests.faults.small_night import SLIDES, write_slides
from tests.results.stores.servers import serving

#: Long enough that a driver on a busy machine is not taken for a frozen one.
SILENCE = 3.0
TAKEN_OVER_WITHIN = 3.0


@dataclass(frozen=True)
class Two:
    """The first driver, in a process of its own, and the second, in this one."""

    first: Drivers
    results: ResultsFolder
    settings: Settings
    gate: Path

    def start_first(self) -> int:
        return self.first.start(self.results.root, self.gate)

    def let_first_go_on(self) -> Ended:
        self.gate.touch()
        return self.first.wait()

    def submit_second(self) -> ExitCode:
        return run_module.run(self.settings).exit_code

    def manifests(self) -> list[Mapping[str, Any]]:
        """The newest first."""
        return list(manifests(self.results))

    def assert_one_row_each(self) -> None:
        rows = all_rows(self.results).to_pylist()
        assert sorted(row["slide_id"] for row in rows) == [f"{n}.zip" for n in range(SLIDES)]
        assert {row["status"] for row in rows} == {"complete"}

    def rows(self) -> list[Any]:
        return list(all_rows(self.results, ["slide_id", "run_id"]).to_pylist())


@dataclass(frozen=True)
class Place:
    first: Drivers
    slides: Path
    root: str


@pytest.fixture(scope="module", params=["disk", "s3"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp(request.param)
    slides = write_slides(folder / "slides")
    with ExitStack() as stack:
        # The server first: the environment leads the drivers to it.
        root = stack.enter_context(serving("s3"))[1] if request.param == "s3" else str(folder)
        yield Place(stack.enter_context(drivers(slides, tiny_bundle.path)), slides, root)


@pytest.fixture
def two(place: Place, tmp_path: Path, tiny_bundle: Bundle) -> Two:
    settings = Settings(
        inputs=(str(place.slides),),
        model=str(tiny_bundle.path),
        out=f"{place.root}/{tmp_path.name}",
        precision=Precision.FP32,
        executor=ExecutorKind.LOCAL,
    )
    return Two(place.first, ResultsFolder(settings.out), settings, tmp_path / "gate")


def test_second_submit_is_refused_while_the_first_lives(two: Two) -> None:
    process = two.start_first()
    with pytest.raises(ResultsInUseError, match=f"process {process} ") as caught:
        two.submit_second()
    assert caught.value.exit_code is ExitCode.USAGE
    assert two.let_first_go_on().exit_code == 0
    two.assert_one_row_each()
    assert len(two.manifests()) == 1
    assert two.submit_second() is ExitCode.COMPLETE
    two.assert_one_row_each()


def test_killed_driver_is_succeeded_at_once(two: Two) -> None:
    process = two.start_first()
    before = two.rows()
    assert 0 < len(before) < SLIDES
    os.kill(process, signal.SIGKILL)
    assert two.first.wait().killed
    submitted = time.time()
    assert two.submit_second() is ExitCode.COMPLETE
    second, first = two.manifests()
    began = datetime.fromisoformat(second["started_at"]).timestamp()
    assert began - submitted < TAKEN_OVER_WITHIN
    assert (first["state"], first["sealed_by"]) == ("interrupted", second["run_id"])
    assert second["slides"]["settled_complete"] == len(before)
    two.assert_one_row_each()


def test_frozen_driver_is_succeeded_and_wakes_up_to_nothing(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = partial(run_module.exclusive, timing=Timing(silence=SILENCE))
    monkeypatch.setattr(run_module, "exclusive", impatient)
    process = two.start_first()
    before = two.rows()
    os.kill(process, signal.SIGSTOP)
    assert two.submit_second() is ExitCode.COMPLETE
    two.assert_one_row_each()
    standing = two.rows()
    os.kill(process, signal.SIGCONT)
    ended = two.let_first_go_on()
    assert ended.exit_code == ExitCode.ABORTED
    second, first = two.manifests()
    assert f"Another run took over {two.results}: {second['run_id']}" in ended.error
    assert two.rows() == standing
    assert len(standing) - len(before) == second["slides"]["complete"]
    assert (first["state"], first["sealed_by"]) == ("interrupted", second["run_id"])
