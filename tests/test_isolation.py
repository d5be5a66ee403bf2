"""Real processes and real signals: what a crash, a hang or an early end costs."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from cvm_batch import isolation
from cvm_batch.errors import (
    BadFormatError,
    DecoderCrashedError,
    DecoderTimeoutError,
    RunAbortedError,
)
from cvm_batch.isolation import Done, Outcome, run_isolated

ROOT = Path(__file__).parent.parent
SOON = 10.0
"""Seconds in which what should happen at once has happened, on a busy machine too."""


#: What runs in workers, and in drivers: a module of its own, for importing pytest takes longer
#: than all else that a worker does.
WORK = '''
import ctypes, os, signal, sys, threading, time
from cvm_batch.errors import BadFormatError

calls = 0


def work(task):
    """Do what the first word says."""
    global calls
    calls += 1
    verb, _, rest = task.partition(" ")
    return VERBS[verb](rest)


def note(path):
    """Leave this process's id in a file, a line per call."""
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\\n")


def note_and_hang(path):
    note(path)
    while True:
        time.sleep(60)


def note_and_hang_in_c(path):
    """As a decoder that holds the interpreter's lock: no Python thread runs any more."""
    note(path)
    ctypes.PyDLL(None).sleep(60)


def note_and_crash(path):
    note(path)
    os.kill(os.getpid(), signal.SIGSEGV)


def await_two(path):
    """Wait until two others have left their notes."""
    while not os.path.exists(path) or len(open(path).readlines()) < 2:
        time.sleep(0.01)


def crash_unless_fresh(text):
    if calls > 1:
        os.abort()
    return text


class OddError(Exception):
    """Does not survive pickling: it is made of two arguments and keeps one."""

    def __init__(self, name, problem):
        super().__init__(f"{name}: {problem}")


class ChangingError(Exception):
    """Says something else after pickling."""

    def __init__(self, name):
        super().__init__(f"cannot read {name}")


class Spoilt:
    """A result that can be pickled, but not unpickled."""

    def __reduce__(self):
        return int, ("many",)


def refuse(message):
    raise BadFormatError(message)


def raise_odd(name):
    raise OddError(name, "is odd")


def raise_changing(name):
    raise ChangingError(name)


def speak(text):
    print(text)
    os.write(1, f"{text} from C\\n".encode())
    return text


VERBS = {
    "await-two": await_two,
    "changing": raise_changing,
    "count": lambda _: calls,
    "crash": lambda name: os.kill(os.getpid(), signal.Signals[name]),
    "exit": lambda code: sys.exit(int(code)),
    "fragile": crash_unless_fresh,
    "hang": note_and_hang,
    "hang-in-c": note_and_hang_in_c,
    "kill": lambda number: os.kill(os.getpid(), int(number)),
    "lock": lambda _: threading.Lock(),
    "long": lambda size: b"x" * int(size),
    "note": note,
    "note-and-crash": note_and_crash,
    "odd": raise_odd,
    "pid": lambda _: os.getpid(),
    "refuse": refuse,
    "say": lambda text: text,
    "sleep": lambda seconds: time.sleep(float(seconds)),
    "speak": speak,
    "spoilt": lambda _: Spoilt(),
    "stdin": lambda _: sys.stdin.read(),
}
'''


@pytest.fixture(scope="module", autouse=True)
def work_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """PYTHONPATH of a process that is to find `isolated_work`."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "isolated_work.py").write_text(WORK)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield os.pathsep.join([str(folder), str(ROOT)])
    sys.modules.pop("isolated_work", None)


# Helpers


def run(
    tasks: Iterable[str], *, jobs: int = 1, timeout: float = 60.0, **options: Any
) -> Generator[Outcome[str, Any], None, None]:
    work = import_module("isolated_work").work
    return run_isolated(work, tasks, jobs=jobs, timeout=timeout, **options)


def outcomes(*tasks: str, **options: Any) -> list[Outcome[str, Any]]:
    return list(run(tasks, **options))


def error_of(task: str) -> Exception:
    (found,) = outcomes(task)
    assert found.error is not None
    return found.error


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


def children() -> set[int]:
    """This process's own, those not yet reaped included."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(path.parent.name))
    return found


@pytest.fixture(autouse=True)
def _no_process_is_left_behind() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


# Outcomes


def test_results_in_order_whoever_is_first() -> None:
    tasks = ["sleep 0.3", "say b", "say c", "sleep 0.05", "say e"]
    found = outcomes(*tasks, jobs=3)
    assert found == [
        Done("sleep 0.3", None),
        Done("say b", "b"),
        Done("say c", "c"),
        Done("sleep 0.05", None),
        Done("say e", "e"),
    ]


def test_outcomes_may_bring_more_items() -> None:
    waiting = deque(["say first"])

    class Waiting:
        def __iter__(self) -> Iterator[str]:
            return self

        def __next__(self) -> str:
            if not waiting:
                raise StopIteration
            return waiting.popleft()

    found = []
    for outcome in run(Waiting(), jobs=2):
        found.append(outcome.result)
        if outcome.result == "first":
            waiting.extend(["say second", "say third"])
    assert found == ["first", "second", "third"]


def test_nothing_to_do_starts_nothing() -> None:
    before = children()
    assert outcomes() == []
    assert children() <= before


def test_workers_are_reused() -> None:
    pids = {one.result for one in outcomes(*["pid"] * 50, jobs=2) if isinstance(one, Done)}
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids


def test_jobs_run_at_once() -> None:
    started = time.monotonic()
    outcomes(*["sleep 0.4"] * 6, jobs=6)
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS"])
def test_a_crash_is_an_error_of_its_item_alone(name: str) -> None:
    first, crashed, last = outcomes("say a", f"crash {name}", "say b")
    assert (first, last) == (Done("say a", "a"), Done("say b", "b"))
    assert type(crashed.error) is DecoderCrashedError
    assert str(crashed.error) == (
        f"crash {name}: the process that read it died of {name}. Its data are damaged, or its "
        "decoder is at fault. Re-export the slide; if it opens elsewhere, report it with its "
        "format."
    )


def test_a_kill_may_mean_that_memory_ran_out() -> None:
    error = error_of("crash SIGKILL")
    assert type(error) is DecoderCrashedError
    assert "crash SIGKILL: the process that read it was killed (SIGKILL), as happens" in str(error)
    assert "Free memory or use fewer jobs" in str(error)


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_is_a_crash(code: int) -> None:
    error = error_of(f"exit {code}")
    assert type(error) is DecoderCrashedError
    assert f"the process that read it ended with exit code {code}." in str(error)


def test_a_signal_without_a_name() -> None:
    assert "the process that read it died of signal 40." in str(error_of("kill 40"))


@pytest.mark.parametrize("verb", ["hang", "hang-in-c"])
def test_a_hang_ends_at_its_timeout(verb: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    started = time.monotonic()
    first, hung, last = outcomes("say a", f"{verb} {pids}", "say b", timeout=1.0)
    assert 1.0 < time.monotonic() - started < SOON
    assert (first, last) == (Done("say a", "a"), Done("say b", "b"))
    assert type(hung.error) is DecoderTimeoutError
    assert str(hung.error) == (
        f"{verb} {pids}: reading it took more than 1 s and was ended. Check that its disk "
        "answers. Re-export the slide; if it opens elsewhere, report it with its format."
    )
    assert [alive(pid) for pid in pids_in(pids)] == [False]


def test_crashes_and_a_hang_among_many() -> None:
    tasks = ["say ok"] * 60 + ["crash SIGSEGV"] * 6 + ["refuse it"] * 20 + ["hang /dev/null"]
    random.Random(0).shuffle(tasks)
    expected = {
        "say": type(None),
        "crash": DecoderCrashedError,
        "refuse": BadFormatError,
        "hang": DecoderTimeoutError,
    }
    found = outcomes(*tasks, jobs=3, timeout=1.0)
    assert [one.item for one in found] == tasks
    assert [type(one.error) for one in found] == [expected[task.split()[0]] for task in tasks]


def test_one_item_does_not_pay_for_what_another_did_to_its_worker() -> None:
    assert outcomes("say a", "fragile b")[1] == Done("fragile b", "b")


def test_a_crash_counts_in_a_fresh_worker_and_nothing_else_runs_twice(tmp_path: Path) -> None:
    before, crash, after = (tmp_path / name for name in ("before", "crash", "after"))
    outcomes(f"note {before}", f"note-and-crash {crash}", f"note {after}")
    assert len(pids_in(before)) == len(pids_in(after)) == 1
    assert len(set(pids_in(crash))) == 2
    first = tmp_path / "first"
    outcomes(f"note-and-crash {first}")
    assert len(pids_in(first)) == 1


def test_the_items_name_is_the_callers() -> None:
    (found,) = run(["exit 1"], name=lambda task: f"slide <{task}>")
    assert str(found.error).startswith("slide <exit 1>: the process")


# Errors and results on their way


def test_errors_pass_with_their_type_message_and_traceback() -> None:
    error = error_of("refuse a.zarr: not an archive.")
    assert type(error) is BadFormatError
    assert error.args == ("a.zarr: not an archive.",)
    (where,) = error.__notes__
    assert where.startswith("In a worker process:\nTraceback")
    assert "in refuse\n" in where


@pytest.mark.parametrize(
    ("verb", "message"),
    [("odd", "OddError: a.zip: is odd"), ("changing", "ChangingError: cannot read a.zip")],
)
def test_an_error_that_does_not_survive_pickling_is_told_all_the_same(
    verb: str, message: str
) -> None:
    error = error_of(f"{verb} a.zip")
    assert type(error) is RuntimeError
    assert str(error) == message
    assert "in raise_" in error.__notes__[0]


def test_a_result_that_cannot_be_pickled_is_an_error_of_its_item() -> None:
    found = outcomes("lock", "say b")
    assert isinstance(found[0].error, TypeError)
    assert "pickle" in str(found[0].error)
    assert found[1] == Done("say b", "b")


def test_a_long_result_passes() -> None:
    # The caller is busy while more than a pipe holds lies waiting; that is not late.
    with closing(run(["say a", "long 5000000"], jobs=2, timeout=0.4)) as found:
        assert next(found).error is None
        time.sleep(0.6)
        assert next(found) == Done("long 5000000", b"x" * 5_000_000)


def test_partials_travel() -> None:
    done, failed = run_isolated(partial(divmod, 7), [2, 0], jobs=1, timeout=60)
    assert done == Done(2, (3, 1))
    assert isinstance(failed.error, ZeroDivisionError)


def test_a_result_that_cannot_be_unpickled_is_an_error_of_its_item() -> None:
    found = outcomes("spoilt", "say b")
    assert isinstance(found[0].error, ValueError)
    assert found[1] == Done("say b", "b")


# Starting


def write_module(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Callable[[str], str]:
    """A function `echo` in a module that does more than that in workers."""
    name = f"made_{folder.name}".replace("-", "_")
    source = f"import os, time\nif os.getpid() != {os.getpid()}:\n{textwrap.indent(body, '    ')}\n"
    (folder / f"{name}.py").write_text(f"{source}\ndef echo(text):\n    return text\n")
    monkeypatch.syspath_prepend(folder)
    echo: Callable[[str], str] = __import__(name).echo
    return echo


def test_starting_takes_no_time_from_an_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo = write_module(tmp_path, monkeypatch, "time.sleep(1.0)")
    assert list(run_isolated(echo, ["a"], jobs=1, timeout=0.8)) == [Done("a", "a")]


def test_who_waits_for_a_worker_is_asked_whether_to_go_on() -> None:
    began, asked = time.monotonic(), []

    def waiting() -> None:
        asked.append(time.monotonic() - began)
        if len(asked) == 3:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        list(run_isolated(time.sleep, [50.0], jobs=1, timeout=60, waiting=waiting))
    assert asked[-1] < 20


def test_workers_that_do_not_start_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo = write_module(tmp_path, monkeypatch, "os.abort()")
    with pytest.raises(RunAbortedError, match=r"do not start: the last of 3 died of SIGABRT\."):
        list(run_isolated(echo, ["a"], jobs=1, timeout=60))


def test_workers_that_hang_as_they_start_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "_START_SECONDS", 0.3)
    echo = write_module(tmp_path, monkeypatch, "time.sleep(60)")
    with pytest.raises(RunAbortedError, match=r"was not ready after 0\.3 s\."):
        list(run_isolated(echo, ["a"], jobs=1, timeout=60))


def test_a_start_that_failed_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    body = f"if not os.path.exists({str(mark)!r}):\n    open({str(mark)!r}, 'w')\n    os.abort()"
    echo = write_module(tmp_path, monkeypatch, body)
    assert list(run_isolated(echo, ["a"], jobs=1, timeout=60)) == [Done("a", "a")]


def test_a_function_that_workers_cannot_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo = write_module(tmp_path, monkeypatch, "raise ImportError('no such codec')")
    with pytest.raises(RunAbortedError, match=r"cannot import the function .*no such codec"):
        list(run_isolated(echo, ["a"], jobs=1, timeout=60))


def test_a_function_that_cannot_be_sent_is_refused_at_once() -> None:
    with pytest.raises(AttributeError):
        run_isolated(lambda text: text, ["a"], jobs=1, timeout=60)


def test_an_item_that_cannot_be_sent_ends_the_run() -> None:
    before = children()
    with pytest.raises(TypeError, match="pickle"):
        list(run_isolated(abs, [threading.Lock()], jobs=1, timeout=60))  # type: ignore[list-item]
    assert children() <= before


@pytest.mark.parametrize(
    ("jobs", "timeout"), [(0, 1.0), (1, 0.0), (1, -1.0), (1, float("inf")), (1, float("nan"))]
)
def test_nonsense_is_refused_at_once(jobs: int, timeout: float) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        run([], jobs=jobs, timeout=timeout)


def test_without_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(RunAbortedError, match="cannot be started"):
        outcomes("say a")


def test_a_worker_that_served_long_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_ITEMS_PER_WORKER", 3)
    found = [one.result for one in outcomes(*["count"] * 7) if isinstance(one, Done)]
    assert found == [1, 2, 3, 1, 2, 3, 1]


# Pulling


def test_items_are_pulled_as_they_are_needed() -> None:
    pulled = 0

    def endless() -> Iterator[str]:
        nonlocal pulled
        for pulled in itertools.count(1):  # noqa: B007 - counted for the caller
            yield "say a"

    with closing(run(endless(), jobs=2)) as found:
        assert pulled == 0
        for number, one in enumerate(itertools.islice(found, 100)):
            assert one == Done("say a", "a")
            assert pulled <= number + 1 + 2 * isolation._AHEAD


def test_a_slow_item_does_not_let_results_pile_up() -> None:
    tasks = iter(["sleep 0.5", *["say a"] * 100])
    with closing(run(tasks, jobs=2)) as found:
        assert next(found) == Done("sleep 0.5", None)
        assert len(list(tasks)) >= 101 - 2 * isolation._AHEAD


def test_an_error_of_the_items_ends_the_run(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def broken() -> Iterator[str]:
        yield f"hang {pids}"
        wait_until(lambda: len(pids_in(pids)) == 1)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(run(broken(), jobs=2))
    assert not any(map(alive, pids_in(pids)))


# The end


def test_closing_early_ends_workers_in_the_middle_of_their_items(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    tasks = [f"await-two {pids}", f"hang {pids}", f"hang-in-c {pids}", f"hang {pids}"]
    with closing(run(tasks, jobs=3)) as found:
        assert next(found).error is None
        started = time.monotonic()
    assert time.monotonic() - started < 2.0
    assert not any(map(alive, pids_in(pids)))
    assert list(found) == []


def test_an_iterator_that_is_dropped_ends_its_workers(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    for _ in run([f"await-two {pids}", *[f"hang {pids}"] * 2], jobs=3):
        break
    assert not any(map(alive, pids_in(pids)))


DRIVER = """
import sys
from cvm_batch.isolation import run_isolated
from isolated_work import work
for one in run_isolated(work, sys.argv[1:], jobs=2, timeout=60):
    print(one.error or one.result, flush=True)
"""


def start(script: str, *arguments: str, path: str, **options: Any) -> subprocess.Popen[str]:
    """A caller in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def output(process: subprocess.Popen[str], typed: str = "") -> tuple[str, str]:
    with process:
        return process.communicate(typed, timeout=60)


@pytest.mark.parametrize("verb", ["hang", "hang-in-c"])
def test_workers_end_with_their_parent(verb: str, tmp_path: Path, work_path: str) -> None:
    pids = tmp_path / "pids"
    with start(DRIVER, f"{verb} {pids}", f"{verb} {pids}", path=work_path) as driver:
        wait_until(lambda: len(pids_in(pids)) == 2)
        assert all(map(alive, pids_in(pids)))
        driver.kill()
        wait_until(lambda: not any(map(alive, pids_in(pids))))


def test_ctrl_c_is_for_the_parent(tmp_path: Path, work_path: str) -> None:
    pids = tmp_path / "pids"
    tasks = [f"hang {pids}", f"hang-in-c {pids}"]
    driver = start(DRIVER, *tasks, path=work_path, start_new_session=True)
    wait_until(lambda: len(pids_in(pids)) == 2)
    os.killpg(driver.pid, signal.SIGINT)
    said, complained = output(driver)
    assert driver.returncode == -signal.SIGINT
    assert said == ""
    assert complained.count("Traceback") == 1
    assert complained.endswith("\nKeyboardInterrupt\n")
    assert not any(map(alive, pids_in(pids)))


def test_a_worker_is_out_of_the_terminals_reach_from_its_first_moment() -> None:
    (found,) = run_isolated(os.getsid, [0], jobs=1, timeout=60)
    assert isinstance(found, Done)
    assert found.result != os.getsid(0)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_workers_heed_no_request_to_stop(name: str) -> None:
    assert outcomes(f"crash {name}", "say b") == [Done(f"crash {name}", None), Done("say b", "b")]


def test_a_run_that_is_left_half_used_ends_with_the_interpreter(
    tmp_path: Path, work_path: str
) -> None:
    pids = tmp_path / "pids"
    script = """
import sys
from cvm_batch.isolation import run_isolated
from isolated_work import work
found = run_isolated(work, sys.argv[1:], jobs=3, timeout=60)
print(next(found).error)
"""
    tasks = [f"await-two {pids}", f"hang {pids}", f"hang-in-c {pids}"]
    assert output(start(script, *tasks, path=work_path)) == ("None\n", "")
    wait_until(lambda: not any(map(alive, pids_in(pids))))


def test_nothing_stays_open(work_path: str) -> None:
    script = """
import os
from cvm_batch.isolation import run_isolated
from isolated_work import work
before = os.listdir("/proc/self/fd")
for _ in range(2):
    tasks = ["say a", "crash SIGSEGV", "hang /dev/null", "exit 1"]
    print(len(list(run_isolated(work, tasks, jobs=2, timeout=0.3))))
assert os.listdir("/proc/self/fd") == before
try:
    print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("no child")
"""
    assert output(start(script, path=work_path)) == ("4\n4\nno child\n", "")


def test_what_workers_print_is_kept_out_of_standard_output(work_path: str) -> None:
    said, complained = output(start(DRIVER, "speak hello", path=work_path))
    assert said == "hello\n"
    assert complained == "hello\nhello from C\n"


def test_workers_do_not_read_what_is_meant_for_their_caller(work_path: str) -> None:
    assert output(start(DRIVER, "stdin", path=work_path), "typed") == ("\n", "")


def test_killed_workers_lose_nothing_that_they_printed(work_path: str) -> None:
    tasks = ["speak hello", "crash SIGSEGV", "speak again"]
    _, complained = output(start(DRIVER, *tasks, path=work_path))
    assert {"hello", "again"} <= set(complained.splitlines())


# Whoever calls

UNGUARDED = """
print("once")
from cvm_batch.isolation import run_isolated
print([one.result for one in run_isolated(str.upper, ["a", "b"], jobs=2, timeout=60)])
"""


@pytest.mark.parametrize("how", ["file", "module", "command", "stdin", "interactive"])
def test_a_script_needs_no_guard(how: str, tmp_path: Path) -> None:
    (tmp_path / "unguarded.py").write_text(UNGUARDED)
    arguments = {
        "file": ["unguarded.py"],
        "module": ["-m", "unguarded"],
        "command": ["-c", UNGUARDED],
        "stdin": ["-"],
        "interactive": ["-q", "-i", "unguarded.py"],
    }[how]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=UNGUARDED if how == "stdin" else "",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "once\n['A', 'B']\n"
    assert done.stderr.strip(">\n ") == ""


def test_a_function_of_the_script_itself_is_refused_with_advice(work_path: str) -> None:
    script = """
from cvm_batch.isolation import run_isolated
def mine(text): return text
list(run_isolated(mine, ["a"], jobs=1, timeout=60))
"""
    driver = start(script, path=work_path)
    _, complained = output(driver)
    assert driver.returncode == 1
    assert "RunAbortedError: A worker process cannot import the function" in complained
    assert "Put it in a module that can be imported." in complained


def test_workers_import_nothing_from_the_working_folder(tmp_path: Path) -> None:
    # As of `cvm-batch` in a folder where somebody keeps a random.py of their own.
    for name in ("random", "pickle", "cvm_batch", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(f"import sys; sys.path.append({str(ROOT)!r})\n{UNGUARDED}")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("once\n['A', 'B']\n", "")


def test_workers_outlive_the_thread_that_started_them() -> None:
    found = run(["pid", "pid"])
    firsts: list[Outcome[str, Any]] = []
    thread = threading.Thread(target=lambda: firsts.append(next(found)))
    thread.start()
    thread.join()
    assert list(found) == firsts


# Cost


def test_overhead_per_item(record_property: Callable[[str, object], None]) -> None:
    with closing(run_isolated(abs, range(-1000, 1), jobs=2, timeout=60)) as found:
        assert next(found) == Done(-1000, 1000)
        started = time.perf_counter()
        assert [one.result for one in found if isinstance(one, Done)] == [*range(999, -1, -1)]
        each = (time.perf_counter() - started) / 1000
    record_property("microseconds_per_item", round(1e6 * each))
    assert each < 0.005
