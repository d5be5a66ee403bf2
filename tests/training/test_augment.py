from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cvm_batch.training.augment import augment
from cvm_batch.training.recipe import Augmentation

NOTHING = Augmentation(horizontal_flip=False, vertical_flip=False, quarter_turns=False)


def images(n: int = 64, side: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def changed(before: Tensor, augmentation: Augmentation, seed: int = 0) -> Tensor:
    return augment(before, augmentation, torch.Generator().manual_seed(seed))


def test_nothing_asked_nothing_changed() -> None:
    assert torch.equal(changed(images(), NOTHING), images())


def test_turns_and_flips_give_all_eight_attitudes_and_no_others() -> None:
    one = images(1)[0]
    attitudes = [
        turned.rot90(quarter, (1, 2)) for turned in (one, one.flip(1)) for quarter in range(4)
    ]
    after = changed(one.repeat(200, 1, 1, 1), Augmentation())
    met = [next(i for i, a in enumerate(attitudes) if torch.equal(a, image)) for image in after]
    assert set(met) == set(range(8))


def test_shift_moves_the_picture_by_no_more_than_asked() -> None:
    before = torch.zeros(100, 3, 21, 21, dtype=torch.uint8)
    before[:, :, 10, 10] = 255
    after = changed(
        before,
        replace(NOTHING, shift_px=3),
    )
    assert after.shape == before.shape
    places = after[:, 0].flatten(1).argmax(dim=1)
    rows, columns = places // 21, places % 21
    for offsets in (rows - 10, columns - 10):
        assert set(offsets.tolist()) == set(range(-3, 4))


def test_jitter_is_mild_and_differs_between_images() -> None:
    before = torch.full((50, 3, 8, 8), 128, dtype=torch.uint8)
    after = changed(
        before,
        replace(NOTHING, jitter=0.2),
    )
    levels = after[:, :, 0, 0].float() / 128
    assert levels.min() >= 0.8 * 0.9 - 0.01
    assert levels.max() <= 1.2 * 1.1 + 0.01
    assert len(levels[:, 0].unique()) > 10


def test_deterministic_by_seed_and_the_input_is_left_alone() -> None:
    everything = Augmentation(shift_px=2, jitter=0.1)
    before = images()
    assert torch.equal(changed(before, everything), changed(before, everything))
    assert not torch.equal(changed(before, everything), changed(before, everything, seed=1))
    assert torch.equal(before, images())
