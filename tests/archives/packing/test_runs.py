"""Packing that is interrupted, repeated, refused or in the way of something."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import SlideArchive
from cvm_batch.archives.opening import PLAIN
from cvm_batch.archives.packing import arrays as pack_arrays
from cvm_batch.archives.packing import worker as pack_worker
from cvm_batch.archives.packing.chunks import ChunkFolder
from cvm_batch.archives.packing.pack import PackProgress, pack_slides
from cvm_batch.archives.packing.targets import check_outside, holding
from cvm_batch.archives.tables.slides import ListedSlide
from cvm_batch.errors import CommitError, Reason, SlideIdCollisionError, UsageError
from tests.archives.contract import touch
from tests.archives.making import (
    cells,
    image_names,
    table_of,
    write_folder,
    write_table,
    write_tar,
    write_zip,
)
from tests.archives.packing_slides import (
    assert_same,
    contents,
    here,
    leftovers,
    not_packed,
    pack_all,
    packed,
)
from tests.archives.reading import flip_bit, read_all

__all__ = ["here"]  # a fixture

COUNT = 2100
"""Nine chunks of tiles, three portions."""

pytestmark = pytest.mark.usefixtures("here")


class StoppedError(BaseException):
    """The end of a process, at a place of a test's choice."""


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    write_zip(folder / "slide.zip", cells(COUNT, px=(6, 5)).tiles, ".bmp")
    return folder


@pytest.fixture
def undisturbed(slides: Path, tmp_path: Path) -> dict[str, bytes]:
    pack_all(slides, tmp_path / "undisturbed")
    return contents(tmp_path / "undisturbed")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with one small slide of its own, which a test may change."""
    write_zip(tmp_path / "small" / "slide.zip", cells(5).tiles)
    return tmp_path / "small"


def stop_after(chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process that packs end when it has written so many chunks."""
    put, written = ChunkFolder.put, 0

    def put_or_stop(self: ChunkFolder, *arguments: object) -> None:
        nonlocal written
        if written == chunks:
            raise StoppedError
        written += 1
        put(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ChunkFolder, "put", put_or_stop)


def pack_until_stopped(slides: Path, out: Path, chunks: int = 5) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(chunks, patch)
        with pytest.raises(StoppedError):
            pack_all(slides, out)


def chunks_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first tiles of the chunks that are read from a slide from now on."""
    read, starts = pack_worker.read_chunk, []

    def read_and_note(
        archive: SlideArchive, step: int, layout: pack_arrays.TileLayout, start: int, stop: int
    ) -> object:
        starts.append(start)
        return read(archive, step, layout, start, stop)

    monkeypatch.setattr(pack_worker, "read_chunk", read_and_note)
    return starts


class TestGoingOn:
    def test_reads_only_what_is_not_there(
        self,
        slides: Path,
        undisturbed: dict[str, bytes],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        pack_until_stopped(slides, tmp_path / "out")
        assert contents(tmp_path / "out") == {}, "nothing is seen of it before it is whole"
        starts = chunks_read(monkeypatch)
        pack_all(slides, tmp_path / "out")
        assert starts == [5 * 256, 6 * 256, 7 * 256, 8 * 256]
        assert contents(tmp_path / "out") == undisturbed
        assert leftovers(tmp_path / "out") == []

    @pytest.mark.parametrize("part", ["archive/tiles/c.1.0.0.0", "records/1.json", "source.json"])
    @pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
    def test_damaged_leftovers_are_made_anew(
        self, part: str, damage: str, slides: Path, undisturbed: dict[str, bytes], tmp_path: Path
    ) -> None:
        pack_until_stopped(slides, tmp_path / "out")
        file = tmp_path / "out" / ".slide.partial" / part
        if damage == "flipped":
            flip_bit(file, np.random.default_rng(0))
        elif damage == "cut":
            file.write_bytes(file.read_bytes()[:20])
        else:
            file.unlink()
        pack_all(slides, tmp_path / "out")
        assert contents(tmp_path / "out") == undisturbed

    def test_leftovers_of_another_source_are_not_used(self, small: Path, tmp_path: Path) -> None:
        pack_until_stopped(small, tmp_path / "out", chunks=0)
        partial = tmp_path / "out" / ".slide.partial"
        before = (partial / "source.json").read_bytes()
        write_zip(small / "slide.zip", cells(7, seed=1).tiles)
        pack_until_stopped(small, tmp_path / "out", chunks=0)
        assert (partial / "source.json").read_bytes() != before
        outcomes = pack_all(small, tmp_path / "out")
        assert packed(outcomes["slide.zip"]).record.tiles == 7

    @pytest.mark.parametrize("step", ["remember", "rename"])
    def test_a_stop_at_the_very_end(
        self, step: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pack_all(small, tmp_path / "undisturbed")
        with pytest.MonkeyPatch.context() as patch:
            _stop_at_publishing(step, patch)
            with pytest.raises(StoppedError):
                pack_all(small, tmp_path / "out")
        packed(pack_all(small, tmp_path / "out")["slide.zip"])
        assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
        assert leftovers(tmp_path / "out") == []


def _stop_at_publishing(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the archive is in its place, or just after."""
    rename = Path.rename

    def rename_and_stop(self: Path, target: Path) -> None:
        if step == "rename" and self.name == "archive":
            rename(self, target)
        if self.name == "archive":
            raise StoppedError

    monkeypatch.setattr(Path, "rename", rename_and_stop)


class TestFurtherRuns:
    def test_leave_what_is_packed(self, small: Path, tmp_path: Path) -> None:
        first = packed(pack_all(small, tmp_path / "out")["slide.zip"])
        times = _times(first.archive)
        again = packed(pack_all(small, tmp_path / "out")["slide.zip"])
        assert (first.already, again.already) == (False, True)
        assert again.record == first.record
        assert _times(again.archive) == times

    def test_pack_what_has_changed(self, small: Path, tmp_path: Path) -> None:
        pack_all(small, tmp_path / "out")
        write_zip(small / "slide.zip", cells(9, seed=1).tiles)
        again = packed(pack_all(small, tmp_path / "out")["slide.zip"])
        assert not again.already
        assert_same(read_all(again.archive), read_all(small / "slide.zip"))

    def test_pack_what_is_not_whole_any_more(self, small: Path, tmp_path: Path) -> None:
        archive = packed(pack_all(small, tmp_path / "out")["slide.zip"]).archive
        whole = contents(archive)
        (archive / "tiles" / "c.0.0.0.0").unlink()
        assert not packed(pack_all(small, tmp_path / "out")["slide.zip"]).already
        assert contents(archive) == whole

    def test_force_packs_anew(self, small: Path, tmp_path: Path) -> None:
        archive = packed(pack_all(small, tmp_path / "out")["slide.zip"]).archive
        whole = contents(archive)
        flip_bit(archive / "tiles" / "c.0.0.0.0", np.random.default_rng(0))
        assert packed(pack_all(small, tmp_path / "out")["slide.zip"]).already
        assert not packed(pack_all(small, tmp_path / "out", force=True)["slide.zip"]).already
        assert contents(archive) == whole
        assert leftovers(tmp_path / "out") == []


def _times(archive: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in archive.rglob("*")}


class TestInTheWay:
    def test_what_was_not_packed_here_is_kept(self, small: Path, tmp_path: Path) -> None:
        kept = tmp_path / "out" / "slide.zarr" / "kept"
        kept.parent.mkdir(parents=True)
        kept.write_text("mine")
        with pytest.raises(UsageError, match="was not packed here"):
            pack_all(small, tmp_path / "out")
        assert kept.read_text() == "mine"
        archive = packed(pack_all(small, tmp_path / "out", force=True)["slide.zip"]).archive
        assert not kept.exists()
        assert_same(read_all(archive), read_all(small / "slide.zip"))

    def test_two_slides_of_one_name(self, small: Path, tmp_path: Path) -> None:
        write_tar(small / "slide.tar", cells(5))
        with pytest.raises(SlideIdCollisionError, match=r"slide\.tar.*slide\.zip.*slide\.zarr"):
            pack_all(small, tmp_path / "out")

    def test_a_folder_that_another_pack_holds(self, small: Path, tmp_path: Path) -> None:
        with (
            holding(tmp_path / "out"),
            pytest.raises(UsageError, match="another pack is writing"),
        ):
            pack_all(small, tmp_path / "out")

    def test_a_folder_inside_of_a_source(self, small: Path) -> None:
        with pytest.raises(UsageError, match="packed again"):
            check_outside(small / "deep" / "out", [str(small)])
        check_outside(small.parent / "out", [str(small), "s3://bucket/night"])

    @pytest.mark.parametrize("slide_id", ["../up", ".hidden/a", "a//b", "", "n" * 300, "a\0b"])
    def test_names_that_no_archive_can_have(
        self, slide_id: str, small: Path, tmp_path: Path
    ) -> None:
        address = SlideAddress(uri=str(small / "slide.zip"))
        slide = ListedSlide(slide_id=slide_id, address=address)
        with pytest.raises(UsageError, match="cannot be packed under its name"):
            list(pack_slides([slide], PLAIN, tmp_path / "out"))
        assert contents(tmp_path) == contents(small.parent)


class TestFailing:
    def test_a_slide_that_changes_meanwhile(self, small: Path, tmp_path: Path) -> None:
        archive = packed(pack_all(small, tmp_path / "out")["slide.zip"]).archive
        before = contents(archive)
        write_zip(small / "slide.zip", cells(8, seed=1).tiles)
        error = not_packed(_pack_and_disturb(small, tmp_path / "out")).error
        assert error.reason is Reason.INPUT_CHANGED
        assert contents(archive) == before
        assert packed(pack_all(small, tmp_path / "out")["slide.zip"]).record.tiles == 8

    def test_a_recorded_digest_that_differs(self, small: Path, tmp_path: Path) -> None:
        digest = hashlib.sha256(b"another").hexdigest()
        (small / "slide.zip.sha256").write_text(f"{digest}  slide.zip\n")
        error = not_packed(pack_all(small, tmp_path / "out")["slide.zip"]).error
        assert error.reason is Reason.CHECKSUM_MISMATCH
        assert contents(tmp_path / "out") == {}

    def test_others_are_packed(self, small: Path, tmp_path: Path) -> None:
        (small / "bad.zip").write_bytes(b"no zip")
        write_folder(small / "more", cells(4).tiles)
        outcomes = pack_all(small, tmp_path / "out")
        assert not_packed(outcomes["bad.zip"]).error.reason is Reason.BAD_FORMAT
        assert packed(outcomes["slide.zip"]).record.tiles == 5
        assert packed(outcomes["more"]).record.tiles == 4

    def test_a_disk_that_is_full(
        self, slides: Path, undisturbed: dict[str, bytes], tmp_path: Path
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            _fill_disk(3, patch)
            with pytest.raises(CommitError, match=r"No space left on device.*same command again"):
                pack_all(slides, tmp_path / "out")
        assert contents(tmp_path / "out") == {}
        pack_all(slides, tmp_path / "out")
        assert contents(tmp_path / "out") == undisturbed


def _pack_and_disturb(slides: Path, out: Path) -> object:
    """Pack a slide that is touched when its last tile was read."""

    def disturb(progress: PackProgress) -> None:
        if progress.tiles and progress.tiles == progress.tiles_done and not progress.slides_done:
            touch(slides / "slide.zip")

    return pack_all(slides, out, report=disturb)["slide.zip"]


def _fill_disk(files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file after so many be one byte short, as on a disk that is full."""
    write, written = Path.write_bytes, 0

    def write_or_fail(self: Path, data: bytes) -> int:
        nonlocal written
        written += 1
        if written <= files:
            return write(self, data)
        write(self, data[:-1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_or_fail)


class TestTilesOfASlide:
    def test_larger_ones_make_smaller_chunks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tiles = [*cells(30, px=(8, 8)).tiles, *cells(30, px=(20, 20)).tiles]
        write_zip(tmp_path / "slides" / "slide.zip", tiles)
        monkeypatch.setattr(pack_arrays, "MAX_PACKED_CHUNK_BYTES", 16 * 20 * 20 * 3)
        archive = packed(pack_all(tmp_path / "slides", tmp_path / "out")["slide.zip"]).archive
        document = json.loads((archive / "tiles" / "zarr.json").read_bytes())
        assert document["chunk_grid"]["configuration"]["chunk_shape"] == [15]
        assert_same(read_all(archive), read_all(tmp_path / "slides" / "slide.zip"))

    def test_those_that_a_manifest_misses_stay_missed(self, small: Path, tmp_path: Path) -> None:
        address = SlideAddress(uri=str(small / "slide.zip"), cells_expected=8)
        slide = ListedSlide(slide_id="s", address=address)
        (outcome,) = pack_slides([slide], PLAIN, tmp_path / "out")
        record = packed(outcome).record
        assert (record.tiles, record.unreadable) == (8, 3)
        assert "expects 8 cells" in record.faults[0]
        assert read_all(packed(outcome).archive).readable.tolist() == [True] * 5 + [False] * 3

    def test_coordinates_of_missed_ones_are_not_known(self, tmp_path: Path) -> None:
        slide = cells(4)
        write_zip(tmp_path / "slide.zip", slide.tiles)
        write_table(tmp_path / "slide.cells.csv", table_of(slide, image_names(4)))
        address = SlideAddress(uri=str(tmp_path / "slide.zip"), cells_expected=6)
        listed = ListedSlide(slide_id="s", address=address)
        (outcome,) = pack_slides([listed], PLAIN, tmp_path / "out")
        block = read_all(packed(outcome).archive)
        assert block.readable.tolist() == [True] * 4 + [False] * 2
        assert block.xy is not None
        np.testing.assert_array_equal(block.xy[:4], slide.xy)
        assert np.isnan(block.xy[4:]).all()


def test_progress_adds_up(slides: Path, tmp_path: Path) -> None:
    seen: list[PackProgress] = []
    note: Callable[[PackProgress], None] = seen.append
    pack_all(slides, tmp_path / "out", report=note)
    assert [each.tiles_done for each in seen] == [0, 1024, 2048, COUNT, COUNT]
    assert {each.tiles for each in seen} == {COUNT}
    assert [each.slides_done for each in seen] == [0, 0, 0, 0, 1]
