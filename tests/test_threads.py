"""Calls in threads that may be left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import pytest

from cvm_batch import threads
from cvm_batch.threads import Sign, in_threads


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_LOOK_SECONDS", 0.02)


def slow_squares(item: int, sign: Sign) -> int:
    time.sleep(0.001 * (item % 5))
    return item * item


def test_in_order_and_not_more_than_asked_for() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(200):
            taken.append(item)
            yield item

    with closing(in_threads(slow_squares, items(), threads=4, ahead=10)) as found:
        for number, square in enumerate(found):
            assert square == number * number
            assert len(taken) <= number + 10
    assert len(taken) == 200


def test_several_at_once() -> None:
    meet = threading.Barrier(3)
    found = in_threads(lambda item, sign: meet.wait(20), range(3), threads=3)
    assert sorted(found) == [0, 1, 2]


def test_what_one_thread_has_not_taken_is_left() -> None:
    left = iter(range(10))
    with closing(in_threads(slow_squares, left, threads=1, ahead=1)) as found:
        assert list(islice(found, 3)) == [0, 1, 4]
    assert list(left) == list(range(3, 10))


def test_an_error_is_raised_where_its_item_was() -> None:
    found = in_threads(lambda item, sign: 6 // item, [3, 2, 0, 1], threads=2)
    assert [next(found), next(found)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_who_leaves_ends_what_gives_signs() -> None:
    ended = threading.Event()

    def for_ever(item: int, sign: Sign) -> None:
        try:
            while True:
                sign()
                time.sleep(0.01)
        except InterruptedError:
            ended.set()
            raise

    def waiting() -> None:
        if time.monotonic() - began > 0.2:
            raise TimeoutError

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        list(in_threads(for_ever, range(3), threads=2, waiting=waiting))
    assert ended.wait(20)


def test_a_silent_call_is_replaced_and_holds_up_nobody() -> None:
    hang, passed = threading.Event(), threading.Event()

    def function(item: int, sign: Sign) -> int:
        for _ in range(150 if item == 0 else 0):  # slow, and alive
            sign()
            time.sleep(0.02)
        if item in (1, 2):
            hang.wait(60)
        if item == 3:
            passed.set()
        return item

    found = in_threads(function, range(6), threads=2, patience=2.0, late=lambda item: -1 - item)
    assert next(found) == 0
    assert passed.wait(20), "those behind were given up while the first went on"
    assert list(found) == [-2, -3, 3, 4, 5]
    hang.set()


def test_what_is_done_and_waits_for_its_turn_is_not_silent() -> None:
    others = threading.Event()

    def function(item: int, sign: Sign) -> str:
        if item == 0:
            for _ in range(150):  # for three times the patience; the others are done at once
                sign()
                time.sleep(0.02)
            assert others.is_set()
        if item == 4:
            others.set()
        return threading.current_thread().name

    before = threading.active_count()
    found = in_threads(function, range(5), threads=2, patience=1.0, late=lambda item: "late")
    next(found)
    assert threading.active_count() <= before + 2
    assert "late" not in list(found)


def test_a_process_ends_though_a_call_does_not() -> None:
    code = """
import time
from contextlib import closing
from cvm_batch.threads import in_threads

sleep = lambda seconds, sign: time.sleep(seconds)
with closing(in_threads(sleep, [0, 600, 600, 600], threads=2)) as found:
    next(found)
print("left")
"""
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout == "left\n"
    assert time.monotonic() - began < 100
