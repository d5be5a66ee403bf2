"""Counting one part: golden numbers, the top cells, and what is never counted."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import TileBlock, TileFault
from cvm_batch.errors import Reason
from cvm_batch.results.cells import PartFiles
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.screening.finishing import Finishing
from cvm_batch.screening.quality import measure
from cvm_batch.screening.tally import PartTally, ReadableTiles
from cvm_batch.screening.work import TOP_CELLS, Part, PartOutcome, SlideSource

CLASSES = ("HSIL", "ASC-US", "NILM")
RUN = RunName("20260131T220000Z-0a1b2c3d", "2026-01-31")


@pytest.fixture
def files(results: ResultsFolder) -> PartFiles:
    return PartFiles(results, RUN, CLASSES)


def tally(tiles: int, start: int = 0) -> PartTally:
    source = SlideSource(0, "slide-a", SlideAddress(uri="/slides/slide-a"), "id")
    return PartTally(Part(source, start, start + tiles), len(CLASSES), primary=[0, 1])


def finish(part: PartTally, files: PartFiles) -> PartOutcome:
    with ThreadPoolExecutor(1) as pool:
        finishing = Finishing(0, files, pool)
        finishing.add(part)
        return finishing.outcomes()[part]


def readable(index: NDArray[np.int64]) -> ReadableTiles:
    """Tiles [n, 6, 8, 3] whose pixels are their index."""
    tiles = np.broadcast_to(index.astype(np.uint8)[:, None, None, None], (len(index), 6, 8, 3))
    return ReadableTiles(
        tiles=tiles,
        index=index,
        xy=np.stack([index * 1.5, np.full(len(index), np.nan)], axis=1),
        cell_id=[f"c{n}" for n in index],
        padded=index % 2 == 0,
        quality=measure(tiles),
    )


def probabilities(primary: NDArray[np.float64]) -> NDArray[np.float32]:
    """HSIL and ASC-US share the primary probability 3 to 1."""
    return np.stack([0.75 * primary, 0.25 * primary, 1 - primary], axis=1).astype(np.float32)


def test_counts_quality_and_rows(files: PartFiles, results: ResultsFolder) -> None:
    part = tally(4, start=10)
    index = np.arange(10, 14, dtype=np.int64)
    part.add(readable(index), probabilities(np.array([0.9, 0.1, 0.8, 0.2])))
    found = finish(part, files)
    assert found.failure is None
    assert found.class_counts == (2, 0, 2)
    assert (found.classified, found.unreadable) == (4, 0)
    assert found.top_scores == pytest.approx((0.9, 0.8, 0.2, 0.1))
    assert found.top_classes == (0, 0, 2, 2)
    assert found.quality.brightness == 10 + 11 + 12 + 13
    assert found.quality.brightness_squared == 100 + 121 + 144 + 169
    assert found.quality.focus == 0
    assert found.quality.confidence == pytest.approx(0.675 + 0.9 + 0.6 + 0.8)

    assert found.cells_file is not None
    table = pq.read_table(results.root / found.cells_file, partitioning=None)
    assert table["index"].to_pylist() == [10, 11, 12, 13]
    assert table["slide_id"].to_pylist() == ["slide-a"] * 4
    assert table["cell_id"].to_pylist() == ["c10", "c11", "c12", "c13"]
    assert table["x"].to_pylist() == [15.0, 16.5, 18.0, 19.5]
    assert table["y"].null_count == 4
    assert table["class"].to_pylist() == ["HSIL", "NILM", "HSIL", "NILM"]
    assert table["p_primary"].to_pylist() == pytest.approx([0.9, 0.1, 0.8, 0.2])
    assert table["probabilities"].to_pylist()[0] == pytest.approx([0.675, 0.225, 0.1])


def test_the_top_cells_come_with_their_tiles(files: PartFiles, results: ResultsFolder) -> None:
    count = 100
    primary = np.random.default_rng(0).permutation(count) / count
    part = tally(count)
    for start in range(0, count, 17):  # however the blocks fall
        index = np.arange(start, min(start + 17, count), dtype=np.int64)
        part.add(readable(index), probabilities(primary[index]))
    found = finish(part, files)
    expected = np.argsort(-primary)[:TOP_CELLS]
    assert found.top_scores == pytest.approx(sorted(primary, reverse=True)[:TOP_CELLS])
    assert found.tops_file is not None
    tops = pq.read_table(results.root / found.tops_file, partitioning=None)
    assert tops["index"].to_pylist() == expected.tolist()
    for index, png in zip(tops["index"].to_pylist(), tops["png"].to_pylist(), strict=True):
        tile = np.asarray(Image.open(io.BytesIO(png)))
        assert tile.shape == (6, 8, 3)
        assert (tile == index).all()


def test_equal_scores_go_by_index(files: PartFiles, results: ResultsFolder) -> None:
    part = tally(60)
    for start in (40, 0, 20):
        index = np.arange(start, start + 20, dtype=np.int64)
        part.add(readable(index), probabilities(np.full(20, 0.5)))
    found = finish(part, files)
    assert found.tops_file is not None
    tops = pq.read_table(results.root / found.tops_file, partitioning=None)
    assert tops["index"].to_pylist() == list(range(TOP_CELLS))


def test_rows_go_by_index_however_batches_came(files: PartFiles, results: ResultsFolder) -> None:
    part = tally(60)
    for start in (40, 0, 20):
        assert not part.complete
        index = np.arange(start, start + 20, dtype=np.int64)
        part.add(readable(index), probabilities(index / 60))
    assert part.complete
    found = finish(part, files)
    assert found.cells_file is not None
    cells = pq.read_table(results.root / found.cells_file, partitioning=None)
    assert cells["index"].to_pylist() == list(range(60))
    assert cells["cell_id"].to_pylist() == [f"c{n}" for n in range(60)]
    assert cells["p_primary"].to_pylist() == pytest.approx([n / 60 for n in range(60)])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_fails_the_part(
    bad: float, files: PartFiles, results: ResultsFolder
) -> None:
    part = tally(3)
    values = probabilities(np.array([0.9, 0.1, 0.8]))
    values[1, 2] = bad
    part.add(readable(np.arange(3, dtype=np.int64)), values)
    found = finish(part, files)
    assert found.failure is not None
    assert found.failure.reason is Reason.NON_FINITE_OUTPUT
    assert "tile 1 of /slides/slide-a" in found.failure.detail
    assert found.cells_file is None
    assert list(results.root.rglob("*.parquet")) == []


def block_with(faults: dict[int, TileFault], count: int) -> TileBlock:
    return TileBlock(
        tiles=np.zeros((count, 6, 8, 3), np.uint8),
        index=np.arange(count, dtype=np.int64),
        xy=None,
        cell_id=None,
        readable=np.array([n not in faults for n in range(count)]),
        faults=faults,
    )


def test_unreadable_tiles_are_told_and_the_others_counted(files: PartFiles) -> None:
    part = tally(6)
    part.note_unreadable(
        block_with({n: TileFault(Reason.UNREADABLE_TILES, f"{n}.jpg") for n in range(5)}, 6)
    )
    part.add(readable(np.array([5])), probabilities(np.array([0.9])))
    found = finish(part, files)
    assert found.failure is None
    assert (found.classified, found.unreadable, found.missing) == (1, 5, 0)
    assert found.fault_details == ("0.jpg", "1.jpg", "2.jpg")


def test_missing_tiles_are_counted_among_the_unreadable(files: PartFiles) -> None:
    part = tally(2)
    part.note_unreadable(block_with({0: TileFault(Reason.MISSING_TILES, "chunk 0")}, 2))
    part.add(readable(np.array([1])), probabilities(np.array([0.9])))
    found = finish(part, files)
    assert (found.unreadable, found.missing) == (1, 1)


def test_a_tile_that_nobody_accounts_for_is_an_error(files: PartFiles) -> None:
    part = tally(3)
    part.add(readable(np.array([0, 1])), probabilities(np.array([0.9, 0.1])))
    with pytest.raises(AssertionError, match="2 classified and 0 unreadable"):
        finish(part, files)


def test_without_a_primary_group_there_are_no_top_cells(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    folder.prepare()
    part = PartTally(tally(2).part, len(CLASSES), primary=[])
    part.add(readable(np.array([0, 1])), probabilities(np.array([0.9, 0.1])))
    found = finish(part, PartFiles(folder, RUN, CLASSES))
    assert found.top_scores == ()
    assert found.tops_file is None
    assert found.cells_file is not None
    table = pq.read_table(tmp_path / found.cells_file, partitioning=None)
    assert table["p_primary"].null_count == 2
