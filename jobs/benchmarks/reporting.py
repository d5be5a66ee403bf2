"""What all benchmarks share: the tiles that they measure with, and how they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

TILE_PX = 100


def made_tiles(count: int, cells: Path | None) -> NDArray[np.uint8]:
    """``count`` tiles [n, 100, 100, 3]: real crops, repeated as needed, or made-up ones."""
    if cells is None:
        noise = np.random.default_rng(0).integers(0, 256, (count, 10, 10, 3), np.uint8)
        return noise.repeat(10, axis=1).repeat(10, axis=2)
    paths = sorted(path for path in cells.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    if not paths:
        raise click.BadParameter(f"{cells} holds no .jpg or .png files", param_hint="--cells")
    chosen = paths[:count]
    size = (TILE_PX, TILE_PX)
    read = np.stack([np.asarray(Image.open(path).convert("RGB").resize(size)) for path in chosen])
    return read[np.arange(count) % len(chosen)]


def report(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    width = max(map(len, figures))
    for name, value in figures.items():
        shown = f"{value:.3g}" if isinstance(value, float) and value < 10 else value
        shown = f"{value:,.1f}" if isinstance(value, float) and value >= 10 else shown
        click.echo(f"{name:{width}}  {shown}")
