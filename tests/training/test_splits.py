from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvm_batch.errors import DataSetError
from cvm_batch.training.splits import grouped_split

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
