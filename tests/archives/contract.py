"""What every slide archive keeps, whatever its format: subclass it and say how to write one."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import ExpectedFrom, Integrity, SlideArchive, TileBlock
from cvm_batch.archives.contents import changed_at
from cvm_batch.archives.places import disk
from cvm_batch.archives.places.disk import DiskPlace
from cvm_batch.archives.places.files import gone
from cvm_batch.errors import InputChangedError, Reason
from tests.archives.making import Cells, cells
from tests.archives.reading import content_identity_at, identity_at, open_at

COUNT = 23


class ArchiveContract:
    """Slides here have 23 cells; zarr puts seven of them in a chunk."""

    integrity: Integrity
    expected_from = ExpectedFrom.LISTING
    tile_px: tuple[int, int] | None = None
    chunk_tiles = 1
    lost_as = Reason.MISSING_TILES
    content_is_recorded = False
    """Whether a slide records digests of its files, which stand for what they hold."""

    def write(self, path: Path, slide: Cells) -> Path:
        """Write ``slide`` to ``path`` plus the format's suffix, without loss."""
        raise NotImplementedError

    def lose_tiles(self, path: Path) -> set[int]:
        """Take some tiles out of the archive at ``path``; return their indices."""
        raise NotImplementedError

    def a_file_of(self, path: Path) -> Path:
        """One file of the archive, which holds pixels."""
        return path

    @pytest.fixture(scope="class")
    @classmethod
    def slide(cls) -> Cells:
        return cells(COUNT)

    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, slide: Cells, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return cls().write(tmp_path_factory.mktemp("slides") / "slide", slide)

    @pytest.fixture(scope="class")
    @classmethod
    def archive(cls, path: Path) -> Iterator[SlideArchive]:
        with closing(open_at(path)) as archive:
            yield archive

    def test_describes_itself(self, archive: SlideArchive) -> None:
        info = archive.describe()
        assert info == archive.info
        assert info.tiles == COUNT
        assert info.expected_from is self.expected_from
        assert info.integrity is self.integrity
        assert info.tile_px == self.tile_px
        assert info.chunk_tiles == self.chunk_tiles

    def test_describing_is_stable_and_cheap(self, archive: SlideArchive, path: Path) -> None:
        started = time.perf_counter()
        descriptions = {archive.describe() for _ in range(20)}
        assert time.perf_counter() - started < 2
        assert len(descriptions) == 1
        with closing(open_at(path)) as again:
            assert again.describe() in descriptions
        assert identity_at(path) == archive.describe().identity

    def test_pixels_coordinates_and_ids_are_the_slide_s(
        self, archive: SlideArchive, slide: Cells
    ) -> None:
        block = archive.read(0, COUNT)
        assert isinstance(block.tiles, np.ndarray)
        np.testing.assert_array_equal(block.tiles, slide.tiles)
        np.testing.assert_array_equal(block.xy, slide.xy)
        assert block.cell_id == slide.cell_id
        assert block.readable.all()
        assert not block.faults

    @settings(
        max_examples=25,
        deadline=None,
        # One body for all formats is what a contract is.
        suppress_health_check=[HealthCheck.differing_executors],
    )
    @given(cuts=st.sets(st.integers(1, COUNT - 1)))
    def test_any_partition_gives_the_same(
        self, archive: SlideArchive, slide: Cells, cuts: set[int]
    ) -> None:
        edges = [0, *sorted(cuts), COUNT]
        blocks = [archive.read(a, b) for a, b in pairwise(edges)]
        np.testing.assert_array_equal(np.concatenate([b.tiles for b in blocks]), slide.tiles)
        np.testing.assert_array_equal(np.concatenate([b.xy for b in blocks]), slide.xy)
        assert [name for block in blocks for name in block.cell_id] == slide.cell_id
        index = np.concatenate([block.index for block in blocks])
        np.testing.assert_array_equal(index, np.arange(COUNT))
        assert index.dtype == np.int64

    @pytest.mark.parametrize(("start", "stop"), [(0, 0), (3, 2), (-1, 2), (0, COUNT + 1)])
    def test_ranges_outside_are_refused(self, archive: SlideArchive, start: int, stop: int) -> None:
        with pytest.raises(IndexError, match=str(COUNT)):
            archive.read(start, stop)

    def test_threads_read_the_same(self, archive: SlideArchive, slide: Cells) -> None:
        ranges = [(start, min(start + 5, COUNT)) for start in range(0, COUNT, 3)] * 8
        with ThreadPoolExecutor(4) as pool:
            blocks = list(pool.map(lambda span: archive.read(*span), ranges))
        for (start, stop), block in zip(ranges, blocks, strict=True):
            np.testing.assert_array_equal(block.tiles, slide.tiles[start:stop])

    def test_what_is_handed_out_can_be_written_to(
        self, archive: SlideArchive, slide: Cells
    ) -> None:
        block = archive.read(0, 7)
        block.tiles[...] = 0
        block.xy[...] = 0
        again = archive.read(0, 7)
        np.testing.assert_array_equal(again.tiles, slide.tiles[:7])
        np.testing.assert_array_equal(again.xy, slide.xy[:7])

    def test_closing_twice_is_harmless(self, path: Path) -> None:
        archive = open_at(path)
        archive.close()
        archive.close()

    def test_missing_tiles_are_marked_and_the_rest_is_right(
        self, slide: Cells, tmp_path: Path
    ) -> None:
        path = self.write(tmp_path / "slide", slide)
        lost = self.lose_tiles(path)
        assert lost
        with closing(open_at(path)) as archive:
            assert archive.describe().tiles == COUNT
            assert_block(archive.read(0, COUNT), slide, 0, dict.fromkeys(lost, self.lost_as))
            start = min(lost)
            assert_block(archive.read(start, start + 1), slide, start, {start: self.lost_as})

    def test_touching_a_file_changes_the_identity(self, slide: Cells, tmp_path: Path) -> None:
        path = self.write(tmp_path / "slide", slide)
        with closing(open_at(path)) as archive:
            before = archive.describe()
            touch(self.a_file_of(path))
            assert archive.describe().identity != before.identity
            assert archive.describe().tiles == before.tiles
        assert identity_at(path) != before.identity

    def test_what_its_files_hold_tells_it_wherever_they_lie(
        self, slide: Cells, tmp_path: Path
    ) -> None:
        (tmp_path / "first").mkdir()
        path = self.write(tmp_path / "first" / "slide", slide)
        before = content_identity_at(path)
        touch(self.a_file_of(path))
        assert content_identity_at(path) == before
        copied = shutil.copytree(tmp_path / "first", tmp_path / "second", copy_function=shutil.copy)
        copy = copied / path.name
        assert content_identity_at(copy) == before
        file = self.a_file_of(copy)
        file.write_bytes(file.read_bytes()[:-1] + b"!")
        assert (content_identity_at(copy) == before) == self.content_is_recorded

    def test_it_tells_when_it_came_whatever_its_files_say(
        self, slide: Cells, tmp_path: Path
    ) -> None:
        (tmp_path / "first").mkdir()
        began = time.time()
        path = self.write(tmp_path / "first" / "slide", slide)
        written = changed_at(SlideAddress(uri=str(path)))
        assert began - 1 < written < time.time() + 1
        long_ago = (1_000_000_000, 1_000_000_000)
        os.utime(self.a_file_of(path), long_ago)
        time.sleep(0.1)
        copied = shutil.copytree(tmp_path / "first", tmp_path / "second")  # with its times
        copy = copied / path.name
        assert self.a_file_of(copy).stat().st_mtime == long_ago[1]
        assert changed_at(SlideAddress(uri=str(copy))) > written

    def test_one_that_is_being_written_has_just_changed(
        self, slide: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A name that was listed is gone when it is looked at: who copies writes beside."""
        path = self.write(tmp_path / "slide", slide)

        def vanished(*_: object) -> None:
            raise gone(path)

        before = time.time()
        monkeypatch.setattr(disk, "_stamp", vanished)
        monkeypatch.setattr(DiskPlace, "stamp", vanished)
        monkeypatch.setattr(DiskPlace, "is_file", lambda place: place.path.is_file())
        assert before <= changed_at(SlideAddress(uri=str(path))) <= time.time()

    def test_a_file_that_changes_under_the_reader_is_noticed(
        self, slide: Cells, tmp_path: Path
    ) -> None:
        path = self.write(tmp_path / "slide", slide)
        with closing(open_at(path)) as archive:
            archive.read(0, COUNT)
            touch(self.a_file_of(path))
            with pytest.raises(InputChangedError, match="changed"):
                archive.read(0, COUNT)


def touch(file: Path) -> None:
    """Another modification time, as if the file had been written anew."""
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


def assert_block(block: TileBlock, slide: Cells, start: int, faults: dict[int, Reason]) -> None:
    """The tiles of ``slide`` from ``start`` on, save those whose indices are in ``faults``."""
    reasons = {int(block.index[position]): f.reason for position, f in block.faults.items()}
    assert reasons == faults
    for position, index in enumerate(block.index.tolist()):
        assert index == start + position
        assert block.readable[position] == (index not in faults)
        if index not in faults:
            np.testing.assert_array_equal(block.tiles[position], slide.tiles[index])
