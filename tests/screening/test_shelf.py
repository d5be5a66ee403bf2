"""Archives kept open between parts."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import SlideInfo
from cvm_batch.errors import InputChangedError, ReadError
from cvm_batch.screening.shelf import Shelf
from cvm_batch.screening.work import SlideSource
from tests.doubles import MemoryArchive

SLIDE = SlideSource(0, "a", SlideAddress(uri="a"), "memory")


class Opened:
    """Opens archives that know whether they are closed."""

    def __init__(self) -> None:
        self.archives: list[MemoryArchive] = []

    def __call__(self, address: SlideAddress) -> MemoryArchive:
        self.archives.append(MemoryArchive(np.zeros((5, 8, 8, 3), np.uint8)))
        return self.archives[-1]


def test_an_archive_is_opened_once_for_all_parts() -> None:
    opened = Opened()
    shelf = Shelf(opened)
    first, second = shelf.take(SLIDE), shelf.take(SLIDE)
    assert first.archive is second.archive
    shelf.give_back(first, spoiled=False)
    shelf.give_back(second, spoiled=False)
    assert not opened.archives[0].closed
    shelf.close()
    assert opened.archives[0].closed


def test_a_spoiled_archive_is_closed_by_its_last_user_and_no_other() -> None:
    opened = Opened()
    shelf = Shelf(opened)
    first, second = shelf.take(SLIDE), shelf.take(SLIDE)
    shelf.give_back(first, spoiled=True)
    third = shelf.take(SLIDE)
    assert third.archive is not second.archive
    shelf.give_back(second, spoiled=True)
    assert [archive.closed for archive in opened.archives] == [True, False]
    shelf.give_back(third, spoiled=False)
    assert not opened.archives[1].closed


def test_a_check_is_made_of_the_archive_in_use() -> None:
    opened = Opened()
    shelf = Shelf(opened)
    first, second = shelf.take(SLIDE), shelf.take(SLIDE)
    shelf.give_back(first, spoiled=True)
    opened.archives[0].identity = "another"
    with pytest.raises(InputChangedError):
        shelf.check(second)


def test_who_waited_for_an_archive_that_is_refused_is_told_the_same() -> None:
    """Not that there is a fault in the program: what may pass would not be tried again."""
    waiting = threading.Event()

    class Slow(MemoryArchive):
        def describe(self) -> SlideInfo:
            assert waiting.wait(60)
            raise ReadError("the share is away")

    shelf = Shelf(lambda slide: Slow(np.zeros((5, 8, 8, 3), np.uint8)))
    with ThreadPoolExecutor(2) as pool:
        taken = [pool.submit(shelf.take, SLIDE) for _ in range(2)]
        while SLIDE not in shelf._entries or shelf._entries[SLIDE].users < 2:
            time.sleep(0.001)
        waiting.set()
        assert {type(each.exception(60)) for each in taken} == {ReadError}


def test_a_dear_check_takes_a_twentieth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Remote(MemoryArchive):
        def describe(self) -> SlideInfo:
            nonlocal now
            now += 0.5
            return super().describe()

    monkeypatch.setattr(time, "monotonic", lambda: now)
    archive = Remote(np.zeros((5, 8, 8, 3), np.uint8))
    shelf = Shelf(lambda slide: archive)
    taken = shelf.take(SLIDE)
    began = now = 1000.0
    shelf.check(taken)
    archive.identity = "another"
    now = began + 9.9
    shelf.check(taken)
    now = began + 10.0
    for _ in range(2):
        with pytest.raises(InputChangedError):
            shelf.check(taken)


def test_a_slide_is_not_looked_at_again_when_it_was_just_opened() -> None:
    looks = 0

    class Counted(MemoryArchive):
        def describe(self) -> SlideInfo:
            nonlocal looks
            looks += 1
            return super().describe()

    archive = Counted(np.zeros((5, 8, 8, 3), np.uint8))
    assert archive.info.identity == SLIDE.identity
    looks = 0
    shelf = Shelf(lambda slide: archive)
    taken = shelf.take(SLIDE)
    assert looks == 0
    shelf.check(taken)
    shelf.give_back(taken, spoiled=False)
    shelf.take(SLIDE)
    assert looks == 2, "at the end of a part, and when it is taken up again"


def test_a_slide_that_is_opened_as_another_is_refused() -> None:
    shelf = Shelf(lambda slide: MemoryArchive(np.zeros((5, 8, 8, 3), np.uint8), identity="another"))
    with pytest.raises(InputChangedError):
        shelf.take(SLIDE)
