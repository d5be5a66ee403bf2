"""Identities of many slides: in order, and not one by one where each has to be waited for."""

from __future__ import annotations

import time

import pytest

from cvm_batch.archives import describing
from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.describing import identities
from cvm_batch.archives.opening import PLAIN, OpenOptions

SLIDES = [SlideAddress(uri=f"/slides/{number}.zip") for number in range(400)]


@pytest.mark.parametrize("slow_from", [0, 100, 1000], ids=["share", "falls asleep", "disk"])
def test_in_order_whatever_a_look_costs(monkeypatch: pytest.MonkeyPatch, slow_from: int) -> None:
    def look(address: SlideAddress, _: OpenOptions) -> str | None:
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


def test_who_stops_asking_stops_it() -> None:
    asked = identities(iter(SLIDES), PLAIN)
    next(asked)
    asked.close()
    assert list(identities((), PLAIN)) == []
