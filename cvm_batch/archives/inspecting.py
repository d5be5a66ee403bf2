"""A look into one slide: what it is, what is in it, and a picture of some of its cells."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import SlideInfo, TileBlock
from cvm_batch.archives.formats import open_archive, opening, recognise
from cvm_batch.archives.opening import OpenOptions

#: Tiles are looked at in runs of so many, as neighbours are stored together.
_RUN = 12
_SIDE, _GAP, _CAPTION = 96, 4, 14
_PAPER, _INK, _WRONG = (255, 255, 255), (60, 60, 60), (200, 30, 30)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `inspect_slide` found."""

    format: str
    info: SlideInfo
    looked_at: int
    """Tiles that were read."""
    unreadable: int
    """How many of those could not be shown."""
    padded: int
    """How many reach beyond the slide's border."""
    sizes: tuple[tuple[int, int, int], ...]
    """Height, width and number of the tiles that were read, the most frequent first."""
    faults: tuple[str, ...]
    """What was wrong with the first few."""
    sheet: Image.Image
    """The tiles that were read, in rows of neighbours, the slide's first ones at the top."""


def inspect_slide(address: SlideAddress, options: OpenOptions, rows: int = 8) -> Inspection:
    """Read ``rows`` runs of tiles, spread evenly over the slide. Raises SlideError."""
    found = recognise(opening(address, options).place)
    with closing(open_archive(address, options)) as archive:
        info = archive.info
        blocks = [archive.read(start, stop) for start, stop in _runs(info.tiles, rows)]
    assert found is not None  # else opening would have failed
    sizes = Counter(
        (int(tile.shape[0]), int(tile.shape[1]))
        for block in blocks
        for tile, readable in zip(block.tiles, block.readable, strict=True)
        if readable
    )
    faults = [fault.detail for block in blocks for _, fault in sorted(block.faults.items())]
    return Inspection(
        format=found.name,
        info=info,
        looked_at=sum(map(len, blocks)),
        unreadable=len(faults),
        padded=sum(int(block.padded.sum()) for block in blocks if block.padded is not None),
        sizes=tuple((height, width, count) for (height, width), count in sizes.most_common()),
        faults=tuple(faults[:3]),
        sheet=_sheet(blocks),
    )


def _runs(tiles: int, rows: int) -> list[tuple[int, int]]:
    """Ranges of neighbours, the first and the last of them at the slide's ends."""
    run = min(_RUN, tiles)
    starts = np.unique(np.linspace(0, tiles - run, rows).round().astype(int))
    ranges: list[tuple[int, int]] = []
    for start in starts.tolist():
        # In a small slide, evenly spread runs would show the same tiles again.
        first = max(start, ranges[-1][1]) if ranges else start
        if first < start + run:
            ranges.append((first, start + run))
    return ranges


def _sheet(blocks: list[TileBlock]) -> Image.Image:
    step_x, step_y = _SIDE + _GAP, _SIDE + _GAP + _CAPTION
    width = max(map(len, blocks)) * step_x + _GAP
    sheet = Image.new("RGB", (width, len(blocks) * step_y + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, block in enumerate(blocks):
        for column in range(len(block)):
            x, y = _GAP + column * step_x, _GAP + row * step_y
            if block.readable[column]:
                tile = _thumbnail(block.tiles[column])
                sheet.paste(tile, (x + (_SIDE - tile.width) // 2, y + (_SIDE - tile.height) // 2))
            else:
                box = (x, y, x + _SIDE - 1, y + _SIDE - 1)
                draw.rectangle(box, outline=_WRONG)
                draw.line(box, fill=_WRONG)
            caption = str(int(block.index[column]))
            draw.text((x, y + _SIDE), caption, fill=_INK if block.readable[column] else _WRONG)
    return sheet


def _thumbnail(tile: NDArray[np.uint8]) -> Image.Image:
    """Enlarged by whole factors only, so that a blurred cell is the slide's own blur."""
    image = Image.fromarray(tile)
    factor = _SIDE // max(image.size)
    if factor > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return image
