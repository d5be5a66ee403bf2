"""Identities of many slides: in order, and not one by one where each has to be waited for."""

from __future__ import annotations

import threading
import time

import pytest

from cvm_batch import threads
from cvm_batch.archives import describing
from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.describing import identities
from cvm_batch.archives.opening import PLAIN, OpenOptions

SLIDES = [SlideAddress(uri=f"/slides/{number}.zip") for number in range(400)]


@pytest.mark.parametrize("slow_from", [0, 100, 1000], ids=["share", "falls asleep", "disk"])
def test_in_order_whatever_a_look_costs(monkeypatch: pytest.MonkeyPatch, slow_from: int) -> None:
    numbers = set()

    def look(address: SlideAddress, _: OpenOptions) -> str | None:
        numbers.add(threading.get_ident())
        number = int(address.uri.split("/")[-1].removesuffix(".zip"))
        if number >= slow_from:
            time.sleep(0.01)
        return None if number == 7 else address.uri

    monkeypatch.setattr(describing, "_identity", look)
    began = time.perf_counter()
    found = list(identities(SLIDES, PLAIN))
    assert found == [None if at == 7 else slide.uri for at, slide in enumerate(SLIDES)]
    waited = 0.01 * max(0, len(SLIDES) - slow_from)
    assert time.perf_counter() - began < 0.5 + waited / 4
    assert (len(numbers) > 1) == (slow_from < len(SLIDES))


def test_one_slow_look_is_not_yet_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = set()

    def look(address: SlideAddress, _: OpenOptions) -> str | None:
        numbers.add(threading.get_ident())
        if address.uri in ("/slides/10.zip", "/slides/100.zip"):
            time.sleep(0.1)
        return address.uri

    monkeypatch.setattr(describing, "_identity", look)
    assert list(identities(SLIDES, PLAIN)) == [slide.uri for slide in SLIDES]
    assert len(numbers) == 1


def test_of_no_slides() -> None:
    assert list(identities((), PLAIN)) == []


def test_who_waits_may_leave_whatever_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()
    monkeypatch.setattr(describing, "_identity", lambda *_: hang.wait(60) and None)
    monkeypatch.setattr(threads, "_LOOK_SECONDS", 0.05)
    began = time.monotonic()

    def waiting() -> None:
        if time.monotonic() - began > 0.2:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        list(identities(SLIDES, PLAIN, waiting))
    assert time.monotonic() - began < 30
    hang.set()
