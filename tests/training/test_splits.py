from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvm_batch.errors import DataSetError
from cvm_batch.training.splits import grouped_folds, grouped_split, paper_split, write_split

#: Cells as (class, group); groups of very different size, as microscope frames are.
CELLS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 30).map(lambda n: int(n**1.5))),
    min_size=1,
    max_size=200,
)


def parted(cells: list[tuple[int, int]]) -> tuple[np.ndarray, list[str]]:
    labels = np.array([label for label, _ in cells], dtype=np.int64)
    return labels, [f"g{group}" for _, group in cells]


@given(CELLS, st.integers(0, 1000))
def test_every_cell_once_and_no_group_on_two_sides(cells: list[tuple[int, int]], seed: int) -> None:
    labels, groups = parted(cells)
    try:
        split = grouped_split(labels, groups, seed=seed)
    except DataSetError:
        # Asked to leave no side empty, it may say that it cannot.
        return
    sides = list(split.sides().values())
    assert sorted(np.concatenate(sides).tolist()) == list(range(len(labels)))
    assert all(len(side) and (np.diff(side) > 0).all() for side in sides)
    held = [{groups[position] for position in side} for side in sides]
    assert sum(map(len, held)) == len(set(groups))


@given(CELLS, st.integers(0, 1000))
def test_deterministic_by_seed(cells: list[tuple[int, int]], seed: int) -> None:
    labels, groups = parted(cells)

    def sides() -> list[list[int]] | str:
        try:
            split = grouped_split(labels, groups, seed=seed)
        except DataSetError as error:
            return str(error)
        return [side.tolist() for side in split.sides().values()]

    assert sides() == sides()


def test_another_seed_gives_another_split() -> None:
    labels = np.zeros(60, dtype=np.int64)
    groups = [f"g{cell // 2}" for cell in range(60)]
    one, other = (grouped_split(labels, groups, seed=seed) for seed in (0, 1))
    assert one.test.tolist() != other.test.tolist()


def test_equal_frames_come_out_at_the_shares() -> None:
    labels = np.tile([0, 0, 0, 1], 50)
    groups = [f"g{cell // 4}" for cell in range(200)]
    split = grouped_split(labels, groups, seed=3)
    assert [len(side) for side in split.sides().values()] == [120, 40, 40]


def test_a_rare_class_on_few_frames_reaches_every_side_from_two_frames() -> None:
    """As ASC-H in CRIC: six frames, of very different size, among many without it."""
    rng = np.random.default_rng(0)
    sizes = {f"rare{n}": size for n, size in enumerate([25, 15, 11, 7, 5, 1])}
    cells = [(1, group) for group, size in sizes.items() for _ in range(size)]
    cells += [(0, f"common{rng.integers(170)}") for _ in range(2000)]
    labels = np.array([label for label, _ in cells])
    groups = [group for _, group in cells]
    split = grouped_split(labels, groups, seed=0)
    for side, positions in split.sides().items():
        rare = [groups[position] for position in positions if labels[position] == 1]
        assert len(set(rare)) == 2, side
        assert (labels[positions] == 0).sum() == pytest.approx(
            2000 * {"train": 0.6}.get(side, 0.2), abs=20
        )


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(DataSetError, match=r"4 cells in 2 groups leave nothing for"):
        grouped_split(np.array([0, 1, 0, 1]), ["a", "a", "b", "b"], seed=0)


#: Classes of the paper's Tables 1, 4 (before its augmentation) and 5: train, validation, test.
TABLES = {
    "Table 1": [
        (484, 161, 161), (446, 148, 148), (413, 137, 137), (525, 175, 174), (491, 164, 163),
        (518, 172, 172), (488, 163, 162), (495, 165, 165), (476, 159, 158), (473, 157, 157),
        (499, 166, 166),
    ],
    "Table 4": [(405, 135, 135), (146, 48, 48)],
    "Table 5": [
        (731, 244, 243), (1871, 623, 623), (931, 310, 310), (1737, 579, 579), (729, 243, 242),
        (852, 284, 284), (1998, 666, 665), (1409, 470, 469),
    ],
}  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_the_papers_tables_follow_from_the_class_sizes(table: str) -> None:
    rows = TABLES[table]
    labels = np.repeat(np.arange(len(rows)), [sum(row) for row in rows])
    split = paper_split(labels, seed=3)
    found = [np.bincount(labels[side], minlength=len(rows)) for side in split.sides().values()]
    assert np.stack(found, axis=1).tolist() == [list(row) for row in rows]
    everyone = np.concatenate(list(split.sides().values()))
    assert sorted(everyone) == list(range(len(labels)))
    other = paper_split(labels, seed=4)
    assert not np.array_equal(split.test, other.test)
    assert np.array_equal(split.test, paper_split(labels, seed=3).test)


def test_the_papers_totals() -> None:
    sums = {table: np.sum(rows, axis=0).tolist() for table, rows in TABLES.items()}
    assert sums["Table 1"] == [5308, 1767, 1763]
    assert sums["Table 5"] == [10258, 3419, 3415]
    # Fourfold: 1620 and 584 training images.
    assert [4 * row[0] for row in TABLES["Table 4"]] == [1620, 584]


def test_every_cell_is_tested_once_in_cross_validation() -> None:
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 3, 400), [str(g) for g in rng.integers(0, 40, 400)]
    folds = grouped_folds(labels, groups, folds=5, seed=0)
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(400))
    for fold in folds:
        on = [{groups[at] for at in side} for side in fold.sides().values()]
        assert len(on[0] | on[1] | on[2]) == sum(map(len, on))
        assert sum(map(len, fold.sides().values())) == 400
    with pytest.raises(DataSetError, match="three folds at least"):
        grouped_folds(labels, groups, folds=2, seed=0)
    with pytest.raises(DataSetError, match="do not make 5 folds"):
        grouped_folds(labels[:4], ["a", "b", "a", "b"], folds=5, seed=0)


def test_a_split_as_a_table(tmp_path: Path) -> None:
    split = paper_split(np.repeat([0, 1], 5), seed=0)
    files = [f"{at}.png" for at in range(10)]
    labels, groups = np.repeat([0, 1], 5), [str(at) for at in range(10)]
    write_split(tmp_path / "s.csv", split, files, ("a", "b"), labels, groups)
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert {row["file"] for row in rows if row["side"] == "test"} == {
        files[at] for at in split.test
    }
