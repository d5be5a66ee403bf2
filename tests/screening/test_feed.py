"""Reading ahead and cutting batches: order, bounds, and errors that stay with their part."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import SlideArchive, TileFault
from cvm_batch.errors import ChecksumMismatchError, Reason
from cvm_batch.screening.feed import Batch, ReadAhead, batches
from cvm_batch.screening.shelf import Shelf
from cvm_batch.screening.tally import PartTally
from cvm_batch.screening.work import Part, SlideSource
from tests.doubles import MemoryArchive


def numbered(count: int, side: int = 4) -> NDArray[np.uint8]:
    """Tiles whose pixels are their own index."""
    tiles = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(tiles, (count, side, side, 3)).copy()


class Night:
    """Archives by uri, and a tally for each whole slide."""

    def __init__(self, archives: dict[str, MemoryArchive], chunk_tiles: int = 1) -> None:
        self.archives = archives
        self.opened: list[str] = []
        self.tallies = [
            PartTally(
                Part(
                    SlideSource(n, uri, SlideAddress(uri=uri), "memory", chunk_tiles),
                    0,
                    len(archive.tiles),
                ),
                classes=2,
                primary=[0],
            )
            for n, (uri, archive) in enumerate(archives.items())
        ]

    def open(self, address: SlideAddress) -> SlideArchive:
        self.opened.append(address.uri)
        return self.archives[address.uri]


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def read_all(night: Night, pool: ThreadPoolExecutor, size: int) -> list[Batch]:
    ahead = ReadAhead(night.tallies, Shelf(night.open), pool, ahead=6)
    try:
        return list(batches(ahead, size))
    finally:
        ahead.close()


def seen(found: list[Batch]) -> dict[str, list[int]]:
    """The tiles handed out, by slide and in order of their index, checked against their pixels."""
    by_slide: dict[str, list[int]] = {}
    for batch in found:
        position = 0
        for tally, tiles in batch.owners:
            for index in tiles.index:
                assert (batch.tiles[position] == index % 256).all()
                position += 1
            by_slide.setdefault(tally.part.slide.slide_id, []).extend(map(int, tiles.index))
        assert position == len(batch.tiles)
    return {slide: sorted(indices) for slide, indices in by_slide.items()}


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=12),
    batch=st.integers(1, 70),
    chunk=st.sampled_from([1, 16, 100]),
)
def test_every_tile_once_and_every_batch_full(sizes: list[int], batch: int, chunk: int) -> None:
    night = Night({f"s{n}": MemoryArchive(numbered(size)) for n, size in enumerate(sizes)}, chunk)
    with ThreadPoolExecutor(3) as pool:
        found = read_all(night, pool, batch)
    assert seen(found) == {f"s{n}": list(range(size)) for n, size in enumerate(sizes)}
    assert all(len(one.tiles) == batch for one in found[:-1])
    assert sum(not archive.closed for archive in night.archives.values()) <= 4, "all but a few"


def test_only_what_is_left_of_blocks_is_copied(pool: ThreadPoolExecutor) -> None:
    archives = {name: MemoryArchive(numbered(70)) for name in "ab"}
    found = read_all(Night(archives, chunk_tiles=70), pool, 32)
    assert [len(batch.tiles) for batch in found] == [32, 32, 32, 32, 12]
    whole, left = found[:4], found[4]
    for batch in whole:
        ((owner, _),) = batch.owners
        assert np.shares_memory(batch.tiles, archives[owner.part.slide.slide_id].tiles)
    assert not any(np.shares_memory(left.tiles, archive.tiles) for archive in archives.values())
    assert [owner.part.slide.slide_id for owner, _ in left.owners] == ["a", "b"]


def test_blocks_end_where_chunks_end(pool: ThreadPoolExecutor) -> None:
    archive = MemoryArchive(numbered(250))
    night = Night({"a": archive}, chunk_tiles=100)
    night.tallies = [PartTally(Part(night.tallies[0].part.slide, 30, 250), 2, [0])]
    read_all(night, pool, 32)
    assert sorted(archive.reads) == [(30, 100), (100, 200), (200, 250)]


def test_an_error_costs_its_slide_alone(pool: ThreadPoolExecutor) -> None:
    bad = MemoryArchive(numbered(200), error_at=(130, ChecksumMismatchError("chunk 1 is bad")))
    night = Night({"a": MemoryArchive(numbered(90)), "b": bad, "c": MemoryArchive(numbered(90))})
    found = seen(read_all(night, pool, 32))
    assert found["a"] == found["c"] == list(range(90))
    good, failed, also_good = night.tallies
    assert good.failure is None
    assert also_good.failure is None
    assert failed.failure is not None
    assert failed.failure.reason is Reason.CHECKSUM_MISMATCH
    assert bad.closed


def test_what_a_decoder_throws_costs_its_slide_too(pool: ThreadPoolExecutor) -> None:
    night = Night({"a": MemoryArchive(numbered(5), error_at=(2, ZeroDivisionError("oops")))})
    assert read_all(night, pool, 32) == []
    failure = night.tallies[0].failure
    assert failure is not None
    assert failure.reason is Reason.BAD_FORMAT
    assert "ZeroDivisionError" in failure.detail


def test_a_slide_that_is_not_the_planned_one_is_refused(pool: ThreadPoolExecutor) -> None:
    night = Night({"a": MemoryArchive(numbered(5), identity="another")})
    assert read_all(night, pool, 32) == []
    failure = night.tallies[0].failure
    assert failure is not None
    assert failure.reason is Reason.INPUT_CHANGED


def test_a_slide_that_changes_while_it_is_read_is_refused(pool: ThreadPoolExecutor) -> None:
    class Changing(MemoryArchive):
        def read(self, start: int, stop: int):  # type: ignore[no-untyped-def]
            self.identity = "changed"
            return super().read(start, stop)

    night = Night({"a": Changing(numbered(5))})
    read_all(night, pool, 32)
    failure = night.tallies[0].failure
    assert failure is not None
    assert failure.reason is Reason.INPUT_CHANGED


def test_unreadable_tiles_are_left_out_and_noted(pool: ThreadPoolExecutor) -> None:
    faults = {3: TileFault(Reason.UNREADABLE_TILES, "d.jpg is truncated")}
    night = Night({"a": MemoryArchive(numbered(10), faults=faults)})
    assert seen(read_all(night, pool, 4)) == {"a": [0, 1, 2, 4, 5, 6, 7, 8, 9]}


def test_tiles_of_several_sizes_share_a_batch(pool: ThreadPoolExecutor) -> None:
    night = Night(
        {"a": MemoryArchive(numbered(3, side=4)), "b": MemoryArchive(numbered(3, side=6))}
    )
    (batch,) = read_all(night, pool, 32)
    assert [tile.shape[0] for tile in batch.tiles] == [4, 4, 4, 6, 6, 6]


def test_reading_stays_a_bounded_way_ahead() -> None:
    release = threading.Event()

    class Slow(MemoryArchive):
        def read(self, start: int, stop: int):  # type: ignore[no-untyped-def]
            release.wait(10)
            return super().read(start, stop)

    archives: dict[str, MemoryArchive] = {f"s{n}": Slow(numbered(64)) for n in range(50)}
    night = Night(archives)
    with ThreadPoolExecutor(16) as pool:
        ahead = ReadAhead(night.tallies, Shelf(night.open), pool, ahead=6)
        release.set()
        next(iter(ahead))
        pool.submit(lambda: None).result()
        assert len(night.opened) <= 7
        ahead.close()
