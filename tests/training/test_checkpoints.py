"""Checkpoints: damaged ones, and trainings that go on from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cvm_batch.errors import RunAbortedError
from cvm_batch.training.checkpoints import KEPT, Checkpoints
from cvm_batch.training.datasets import LabelledCells, load_cells
from cvm_batch.training.loop import Epoch, Trained, train
from cvm_batch.training.recipe import Recipe
from cvm_batch.training.splits import Split, grouped_split

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cells(data: Path) -> LabelledCells:
    return load_cells(data)


@pytest.fixture(scope="module")
def split(cells: LabelledCells) -> Split:
    return grouped_split(cells.labels, cells.groups, seed=0)


def save(checkpoints: Checkpoints, *epochs: int) -> list[Path]:
    return [
        checkpoints.save({"epoch": epoch, "weights": torch.arange(1000.0)}, epoch)
        for epoch in epochs
    ]


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "deep" / "checkpoints")
    assert checkpoints.load(CPU) is None
    paths = save(checkpoints, 1, 2, 3)
    assert checkpoints.paths() == paths[-KEPT:]
    state = checkpoints.load(CPU)
    assert state is not None
    assert state["epoch"] == 3
    assert not list(checkpoints.folder.glob(".*"))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_one_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    *_, last = save(checkpoints, 1, 2)
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes({"truncated": content[:-7], "flipped": content, "empty": b""}[damage])
    state = checkpoints.load(CPU)
    assert state is not None
    assert state["epoch"] == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunAbortedError, match=r"checkpoint .* cannot be written"):
        save(Checkpoints(tmp_path / "file"), 1)


class _PowerError(Exception):
    """It went."""


def run(
    recipe: Recipe, cells: LabelledCells, split: Split, folder: Path, *, fails_after: int = 99
) -> tuple[Trained, list[int]]:
    seen: list[int] = []

    def on_epoch(epoch: Epoch) -> None:
        seen.append(epoch.number)
        if epoch.number == fails_after:
            raise _PowerError

    trained = train(
        recipe, cells, split, device=CPU, on_epoch=on_epoch, checkpoints=Checkpoints(folder)
    )
    return trained, seen


@pytest.mark.parametrize("ema", [None, 0.9], ids=["plain", "averaged"])
def test_a_training_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, tiny_recipe: Recipe, cells: LabelledCells, split: Split, ema: float | None
) -> None:
    recipe = replace(tiny_recipe, epochs=4, ema_decay=ema)
    undisturbed, _ = run(recipe, cells, split, tmp_path / "one")
    with pytest.raises(_PowerError):
        run(recipe, cells, split, tmp_path / "two", fails_after=2)
    resumed, seen = run(recipe, cells, split, tmp_path / "two")
    assert seen == [1, 2, 3, 4]
    timeless = {"seconds": 0.0, "images_per_second": 0.0}
    assert [replace(epoch, **timeless) for epoch in resumed.epochs] == [
        replace(epoch, **timeless) for epoch in undisturbed.epochs
    ]
    for mine, theirs in zip(
        resumed.network.state_dict().values(),
        undisturbed.network.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_a_finished_training_is_not_repeated(
    tmp_path: Path, tiny_recipe: Recipe, cells: LabelledCells, split: Split
) -> None:
    first, _ = run(tiny_recipe, cells, split, tmp_path)
    paths = Checkpoints(tmp_path).paths()
    again, seen = run(tiny_recipe, cells, split, tmp_path)
    assert seen == [1, 2]
    assert again.epochs == first.epochs
    assert Checkpoints(tmp_path).paths() == paths


def test_a_damaged_one_does_not_count_among_the_two(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    sound, damaged = save(checkpoints, 1, 2)
    damaged.write_bytes(b"damaged")
    checkpoints.load(CPU)
    assert checkpoints.paths() == [sound]
    (again,) = save(checkpoints, 2)
    assert checkpoints.paths() == [sound, again]


def test_one_epoch_has_one_checkpoint_and_nothing_half_written_stays(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    first, _ = save(checkpoints, 1, 2)
    (tmp_path / ".epoch-0002-0123456789abcdef.pt.99.tmp").write_bytes(b"half")
    other = checkpoints.save({"epoch": 2, "weights": torch.zeros(3)}, 2)
    assert sorted(tmp_path.iterdir()) == sorted([first, other])
