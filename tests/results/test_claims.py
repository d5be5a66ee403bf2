"""Who holds a results folder: one at a time, whoever died is succeeded, the living are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cvm_batch.errors import ResultsError, ResultsInUseError, TakenOverError
from cvm_batch.results import processes
from cvm_batch.results.claims import Claim, Claims, Hold, Timing
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.processes import Process
from cvm_batch.results.sealing import exclusive

QUICK = Timing(beat=0.05, silence=0.5, glance=0.3, look=0.02)
SLOW = replace(QUICK, silence=10.0, glance=10.0)
RUNS = [RunName.of(f"20260131T22000{n}Z-0a1b2c3d") for n in range(10)]
ELSEWHERE = replace(Process.this(), host="elsewhere")


@pytest.fixture
def results(tmp_path: Path) -> ResultsFolder:
    folder = ResultsFolder(tmp_path / "results")
    folder.prepare()
    return folder


def claims_of(results: ResultsFolder, process: Process | None = None) -> Claims:
    return Claims(ResultsFolder(results.root), QUICK, process=process)


@contextmanager
def held(results: ResultsFolder, run: RunName, process: Process | None = None) -> Iterator[Hold]:
    """Held by a process of this host unless told otherwise, and with a beat."""
    hold = claims_of(results, process).take(run.run_id)
    hold.start()
    try:
        yield hold
    finally:
        hold.release()


@pytest.mark.parametrize("process", [None, ELSEWHERE])
def test_two_runs_cannot_hold_one_folder(results: ResultsFolder, process: Process | None) -> None:
    with held(results, RUNS[0], process):
        began = time.monotonic()
        with pytest.raises(ResultsInUseError, match="Another run is writing") as caught:
            claims_of(results).take(RUNS[1].run_id)
        assert time.monotonic() - began < QUICK.silence, "the first beat tells"
        told = str(caught.value)
        assert RUNS[0].run_id in told
        assert f"process {os.getpid()} on {(process or Process.this()).host}" in told
    with held(results, RUNS[1]):
        pass


def test_who_let_go_is_succeeded_at_once(results: ResultsFolder) -> None:
    with held(results, RUNS[0], ELSEWHERE):
        pass
    began = time.monotonic()
    with held(results, RUNS[1]):
        assert time.monotonic() - began < QUICK.silence / 2


def test_who_lets_go_while_somebody_waits_is_succeeded(results: ResultsFolder) -> None:
    first = claims_of(results, ELSEWHERE).take(RUNS[0].run_id)  # without a beat
    threading.Timer(QUICK.silence / 4, first.release).start()
    began = time.monotonic()
    claims_of(results).take(RUNS[1].run_id)
    assert time.monotonic() - began < QUICK.silence


def test_who_lets_go_is_not_taken_for_one_that_lives(results: ResultsFolder) -> None:
    """Its beat goes with it, which is no sign of life."""
    slow = Claims(ResultsFolder(results.root), SLOW)
    for claimed in ("take", "holder"):
        first = claims_of(results, ELSEWHERE).take(RUNS[0].run_id)
        first.beat()
        threading.Timer(QUICK.glance / 2, first.release).start()
        began = time.monotonic()
        if claimed == "take":
            slow.take(RUNS[1].run_id).release()
        else:
            assert slow.holder() is None
        assert time.monotonic() - began < SLOW.glance


def test_who_asks_for_the_holder_is_told_of_a_successor(results: ResultsFolder) -> None:
    claims_of(results, ELSEWHERE).take(RUNS[0].run_id)  # without a beat

    def succeed() -> None:
        later = Claim(number=2, run_id=RUNS[1].run_id, since="", process=Process.this())
        assert results.put_new(later.name, later.to_json())

    threading.Timer(QUICK.glance / 2, succeed).start()
    found = Claims(ResultsFolder(results.root), SLOW).holder()
    assert found is not None
    assert found.run_id == RUNS[1].run_id


def test_who_is_hidden_on_this_host_is_watched(
    results: ResultsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's process, where /proc does not show it: its beat tells."""
    with held(results, RUNS[0]):
        monkeypatch.setattr(processes, "_look_up", lambda pid: None)
        with pytest.raises(ResultsInUseError):
            claims_of(results).take(RUNS[1].run_id)
        assert claims_of(results).holder() is not None


def test_who_is_silent_elsewhere_is_watched_before_he_is_succeeded(results: ResultsFolder) -> None:
    silent = claims_of(results, ELSEWHERE).take(RUNS[0].run_id)
    silent.beat()
    silent.check(now=True)
    began = time.monotonic()
    second = claims_of(results).take(RUNS[1].run_id)
    assert time.monotonic() - began >= QUICK.silence
    with pytest.raises(TakenOverError, match=RUNS[1].run_id):
        silent.check(now=True)
    second.check(now=True)
    silent.release()
    assert claims_of(results).newest() == second.claim, "he lets nothing go that is not his"


def test_time_in_which_the_watcher_was_frozen_does_not_count(
    results: ResultsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims_of(results, ELSEWHERE).take(RUNS[0].run_id).beat()
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        time.sleep(10 * QUICK.look if looks == 1 else seconds)

    waiting = Claims(results, QUICK, sleep=sleep)
    began = time.monotonic()
    waiting.take(RUNS[1].run_id)
    assert time.monotonic() - began >= QUICK.silence + 7 * QUICK.look


@pytest.fixture
def beating() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start_holder(results: ResultsFolder, stack: ExitStack) -> subprocess.Popen[str]:
    """A process that holds the folder, and beats."""
    script = (
        "import sys; from pathlib import Path\n"
        "from cvm_batch.results.folder import ResultsFolder\n"
        "from cvm_batch.results.layout import RunName\n"
        "from cvm_batch.results.sealing import exclusive\n"
        "from tests.results.test_claims import QUICK\n"
        "folder = ResultsFolder(Path(sys.argv[1]))\n"
        "with exclusive(folder, RunName.of(sys.argv[2]), QUICK):\n"
        "    folder.store._write_beside(b'half a night', flushed=False)\n"
        "    print('held', flush=True); input()\n"
    )
    command = [sys.executable, "-c", script, str(results.root), RUNS[0].run_id]
    process = stack.enter_context(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    )
    stack.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_killed_holder_is_succeeded_at_once_and_its_leftovers_go(
    results: ResultsFolder, beating: ExitStack
) -> None:
    process = start_holder(results, beating)
    with pytest.raises(ResultsInUseError):
        claims_of(results).take(RUNS[1].run_id)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert results.names(".tmp")
    began = time.monotonic()
    with exclusive(results, RUNS[1], replace(QUICK, silence=60)):
        assert time.monotonic() - began < 5
        assert not results.names(".tmp")


def test_a_stopped_holder_is_succeeded_when_its_beat_has_stood_still(
    results: ResultsFolder, beating: ExitStack
) -> None:
    process = start_holder(results, beating)
    process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with exclusive(results, RUNS[1], QUICK):
        assert time.monotonic() - began >= QUICK.silence
        process.send_signal(signal.SIGCONT)


def test_of_newcomers_at_once_one_holds_the_folder(results: ResultsFolder) -> None:
    for _ in range(10):
        taken: list[Hold] = []
        refused: list[ResultsInUseError] = []
        gate = threading.Barrier(4)

        def come(run: RunName) -> None:
            gate.wait()  # noqa: B023
            try:
                hold = claims_of(results).take(run.run_id)
            except ResultsInUseError as error:
                refused.append(error)  # noqa: B023
            else:
                hold.start()
                taken.append(hold)  # noqa: B023

        threads = [threading.Thread(target=come, args=(run,)) for run in RUNS[:4]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(taken), len(refused)) == (1, 3)
        taken[0].release()


def test_a_number_that_was_removed_already_is_no_claim(
    results: ResultsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newcomer who was frozen between his look and his claim, for as long as 20 runs took."""
    late = claims_of(results)
    with monkeypatch.context() as patch:
        patch.setattr(late, "newest", lambda: None)
        for n in range(20):
            with exclusive(results, RUNS[n % 10], QUICK):
                pass
        holding = held(results, RUNS[0])
        with holding as hold:
            assert 1 not in late.numbers()
            looks = iter([None, hold.claim])
            patch.setattr(late, "newest", lambda: next(looks))
            with pytest.raises(ResultsInUseError):
                late.take(RUNS[1].run_id)
            hold.check(now=True)


def test_old_claims_are_removed(results: ResultsFolder) -> None:
    for n in range(20):
        with exclusive(results, RUNS[n % 10], QUICK):
            pass
    with exclusive(results, RUNS[0], QUICK):
        assert claims_of(results).numbers() == list(range(6, 22))
    assert not [name for name in results.names("lock") if name.endswith(".beat")]


def test_holder_answers_in_time(results: ResultsFolder) -> None:
    claims = claims_of(results)
    assert claims.holder() is None
    for process in (None, ELSEWHERE):
        with held(results, RUNS[0], process) as hold:
            found = claims.holder()
            assert found is not None
            assert found.run_id == hold.claim.run_id
        assert claims.holder() is None
    claims_of(results, ELSEWHERE).take(RUNS[1].run_id).beat()
    began = time.monotonic()
    assert claims.holder() is None, "nothing is heard of it"
    assert QUICK.glance <= time.monotonic() - began < QUICK.glance + 1


def test_a_damaged_claim_is_told(results: ResultsFolder) -> None:
    with held(results, RUNS[0]) as hold:
        results.replace(hold.claim.name, b"{}")
        with pytest.raises(ResultsError, match=r"lock/000001\.json .*does not say who"):
            claims_of(results).take(RUNS[1].run_id)


def test_a_claim_says_whose_it_is(results: ResultsFolder) -> None:
    with held(results, RUNS[0]):
        claim: dict[str, Any] = json.loads(results.read("lock/000001.json"))
        assert claim["run_id"] == RUNS[0].run_id
        assert claim["process"]["pid"] == os.getpid()
        assert claim["released"] is False
    assert json.loads(results.read("lock/000001.json"))["released"] is True


def test_the_beat_goes_on_by_itself_and_notices_a_successor(results: ResultsFolder) -> None:
    with held(results, RUNS[0]) as hold:
        before = results.read(hold.claim.beat_name)
        time.sleep(4 * QUICK.beat)
        assert results.read(hold.claim.beat_name) != before
        hold.check()
        later = replace(hold.claim, number=2, run_id=RUNS[1].run_id)
        assert results.put_new(later.name, later.to_json())
        time.sleep(4 * QUICK.beat)
        with pytest.raises(TakenOverError):
            hold.check()
