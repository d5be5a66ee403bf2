"""Following a job, over connections that drop, to the exit code of a submit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cvm_batch.cluster.ending import Ending, ending_of
from cvm_batch.cluster.following import follow
from cvm_batch.cluster.jobs import JobRequest, JobState
from cvm_batch.errors import LostSightError
from tests.cluster.fake_jobs import FakeJobs

JOB = "cvm-batch-screen-20260101-00000000-1"


class Night:
    """What happens while a follower sleeps, step by step; its sleep is the clock."""

    def __init__(self, *steps: Callable[[FakeJobs], None]) -> None:
        self.client = FakeJobs()
        self.client.submit(JobRequest(submission_id=JOB, entrypoint="x"))
        self.said: list[str] = []
        self.clock = 0.0
        self._steps: Iterator[Callable[[FakeJobs], None]] = iter(steps)

    def sleep(self, seconds: float) -> None:
        self.clock += seconds
        next(self._steps, lambda client: None)(self.client)

    def followed(self, patience: float = 60.0) -> Ending:
        job, log = follow(
            self.client,
            JOB,
            say=self.said.append,
            patience_seconds=patience,
            sleep=self.sleep,
            now=lambda: self.clock,
        )
        return ending_of(job, log)


def writes(text: str) -> Callable[[FakeJobs], None]:
    return lambda client: client.writes(JOB, text)


def ends(state: JobState, text: str = "", message: str = "") -> Callable[[FakeJobs], None]:
    def end(client: FakeJobs) -> None:
        client.writes(JOB, text)
        client.becomes(JOB, state, message)

    return end


def drops(count: int) -> Callable[[FakeJobs], None]:
    def drop(client: FakeJobs) -> None:
        client.drops = count

    return drop


def test_every_line_is_said_once_and_whole() -> None:
    ending = Ending(exit_code=3, summary={"run_id": "r"})
    night = Night(
        writes("first\nsec"),
        writes("ond\n"),
        writes(""),
        ends(JobState.SUCCEEDED, f"third\n{ending.line()}\n"),
    )
    assert night.followed() == ending
    assert night.said == ["first", "second", "third"]


def test_a_dropped_connection_is_outlived() -> None:
    night = Night(
        writes("before\n"),
        drops(5),
        writes("meanwhile\n"),
        *[writes("")] * 5,
        ends(JobState.SUCCEEDED, f"after\n{Ending(exit_code=0).line()}\n"),
    )
    assert night.followed().exit_code == 0
    assert [
        line for line in night.said if "connection" not in line and "No answer" not in line
    ] == [
        "before",
        "meanwhile",
        "after",
    ]
    assert sum("No answer" in line for line in night.said) == 1


def test_the_last_line_may_come_after_the_state() -> None:
    night = Night(ends(JobState.SUCCEEDED, "first\n"), writes(f"{Ending(exit_code=3).line()}\n"))
    assert night.followed().exit_code == 3
    assert night.said == ["first"]


def test_patience_ends_and_nobody_says_that_nothing_was_run() -> None:
    with pytest.raises(LostSightError, match="may still run") as raised:
        Night(drops(10_000)).followed(patience=20)
    assert raised.value.exit_code == 1


def loses_its_node(state: JobState) -> Callable[[FakeJobs], None]:
    def lose(client: FakeJobs) -> None:
        client.node_is_gone = True
        if state.ended:
            client.becomes(JOB, state, "The node died.")

    return lose


def test_a_driver_that_dies_with_its_node_is_an_aborted_run() -> None:
    night = Night(
        writes("first\n"),
        loses_its_node(JobState.RUNNING),
        *[writes("unread\n")] * 3,
        loses_its_node(JobState.FAILED),
    )
    ending = night.followed()
    assert (ending.exit_code, ending.known_code, night.said) == (1, 1, ["first"])
    assert "The node died." in (ending.error or "")


def test_a_node_that_goes_after_the_end_takes_no_known_end_with_it() -> None:
    line = Ending(exit_code=3).line()
    night = Night(writes(f"first\n{line}\n"), loses_its_node(JobState.SUCCEEDED))
    assert night.followed().exit_code == 3


def test_an_end_that_nobody_can_read_is_not_called_complete() -> None:
    night = Night(writes("first\n"), loses_its_node(JobState.SUCCEEDED))
    ending = night.followed()
    assert (ending.exit_code, ending.known_code) == (None, 1)
    assert "cannot be read" in (ending.error or "")


@pytest.mark.parametrize(
    ("state", "log", "code"),
    [
        (JobState.STOPPED, "killed before it could say", 4),
        (JobState.FAILED, "Traceback ...", 1),
        (JobState.FAILED, Ending(exit_code=2, error="No slides.").line(), 2),
        (JobState.SUCCEEDED, Ending(exit_code=3).line(), 3),
        (JobState.STOPPED, Ending(exit_code=4).line(), 4),
        (JobState.FAILED, Ending(exit_code=2, error="cut off").line()[:-4], 1),
    ],
)
def test_the_exit_code_is_that_of_a_submit_here(state: JobState, log: str, code: int) -> None:
    ending = Night(ends(state, log, "The node died.")).followed()
    assert ending.exit_code == code
    if state is JobState.FAILED and code == 1:
        assert "The node died." in (ending.error or "")


@pytest.mark.parametrize(("code", "process"), [(0, 0), (3, 0), (4, 0), (1, 1), (2, 2)])
def test_a_job_fails_only_where_its_run_did_not_end_in_order(code: int, process: int) -> None:
    assert Ending(exit_code=code).process_code == process
