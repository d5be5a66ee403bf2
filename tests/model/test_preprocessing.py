"""The inference transform against the training transform: Pillow and torchvision."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from cvm_batch.model import resizing
from cvm_batch.model.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

CPU = torch.device("cpu")
DEVICES = [CPU, *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]

OBLONG = [
    (20, 400),
    (400, 20),
    (400, 300),
    (226, 225),
    (225, 226),
    (97, 300),
    (33, 97),
    (66, 80),
    (101, 57),
    (223, 225),
    (224, 100),
    (256, 192),
]


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """The hardest image to resize: every pixel differs from its neighbours."""
    rng = np.random.default_rng((height, width, seed))
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow(tile: NDArray[np.uint8], side: int) -> NDArray[np.int16]:
    resized = Image.fromarray(tile).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(resized).astype(np.int16)


def resized(preprocessing: Preprocessing, tile: NDArray[np.uint8]) -> NDArray[np.int16]:
    """The one tile [s, s, 3], signed so that differences may be taken."""
    images = preprocessing.resize(np.stack([tile]), CPU)
    assert images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    return images[0].permute(1, 2, 0).numpy().astype(np.int16)


@pytest.mark.parametrize("side", [96, 224])
def test_resize_equals_pillow_on_every_size(side: int) -> None:
    preprocessing = Preprocessing(input_px=side)
    for px in range(20, 401):
        tile = noise(px, px)
        np.testing.assert_array_equal(resized(preprocessing, tile), pillow(tile, side))
    for height, width in OBLONG:
        tile = noise(height, width)
        np.testing.assert_array_equal(resized(preprocessing, tile), pillow(tile, side))


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("side", [96, 224])
def test_resize_on_a_device_equals_pillow(side: int, device: torch.device) -> None:
    """The arithmetic of GPUs, on the CPU as well."""
    for height, width in [(px, px) for px in range(20, 401)] + OBLONG:
        tile = noise(height, width)
        found = resizing.resized(torch.from_numpy(tile[None]).to(device), side)[0].cpu()
        np.testing.assert_array_equal(found.numpy(), pillow(tile, side), str((height, width)))


def test_resize_does_not_wrap_at_black_and_white() -> None:
    board = np.kron(np.indices((10, 10)).sum(axis=0) % 2, np.ones((7, 7)))
    tile = np.repeat((255 * board).astype(np.uint8)[..., None], 3, axis=2)
    difference = np.abs(resized(Preprocessing(), tile) - pillow(tile, 224))
    assert difference.max() <= 1


def test_resize_leaves_tiles_of_the_input_size_alone() -> None:
    tile = noise(224, 224)
    np.testing.assert_array_equal(resized(Preprocessing(), tile), tile)


def test_resize_takes_any_memory_layout() -> None:
    tile = noise(40, 60)
    flipped = tile[::-1, ::-1]
    expected = resized(Preprocessing(), np.ascontiguousarray(flipped))
    np.testing.assert_array_equal(resized(Preprocessing(), flipped), expected)


def test_varying_sizes_equal_one_by_one_in_order() -> None:
    preprocessing = Preprocessing(input_px=96)
    sizes = [(40, 40), (96, 96), (33, 97), (40, 40), (200, 10), (33, 97)]
    tiles = [noise(height, width, seed) for seed, (height, width) in enumerate(sizes)]
    together = preprocessing.resize(tiles, CPU)
    assert together.is_contiguous(memory_format=torch.channels_last)
    one_by_one = torch.cat([preprocessing.resize(tile[None], CPU) for tile in tiles])
    assert torch.equal(together, one_by_one)


@pytest.mark.parametrize(
    ("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), ((0.5, 0.5, 0.5), (0.5, 0.4, 0.3))]
)
def test_normalise_equals_torchvision(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    expected = v2.functional.normalize(levels.float() / 255, list(mean), list(std))
    preprocessing = Preprocessing(mean=mean, std=std)
    measured = preprocessing.normalise(levels, torch.float32)
    torch.testing.assert_close(measured, expected, rtol=0, atol=2e-6)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(preprocessing.normalise(levels, dtype), measured.to(dtype))


def test_json_round_trip() -> None:
    preprocessing = Preprocessing(input_px=96, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    value = json.loads(json.dumps(preprocessing.to_json()))
    assert Preprocessing.from_json(value) == preprocessing


@pytest.mark.parametrize(
    "nonsense",
    [
        {"input_px": 0},
        {"input_px": "wide"},
        {"mean": [0.5, 0.5]},
        {"mean": ["grey", 0, 0]},
        {"std": [0.5, 0.5, 0.5, 0.5]},
        {"std": [0.5, 0.0, 0.5]},
        {"std": [0.5, -0.1, 0.5]},
        {"interpolation": "bicubic"},
    ],
    ids=repr,
)
def test_nonsense_is_refused(nonsense: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Preprocessing.from_json(Preprocessing().to_json() | nonsense)


@pytest.mark.parametrize("field", Preprocessing().to_json())
def test_a_missing_field_is_refused(field: str) -> None:
    value = Preprocessing().to_json()
    del value[field]
    with pytest.raises(KeyError, match=field):
        Preprocessing.from_json(value)
