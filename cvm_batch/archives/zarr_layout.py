"""What a zarr group must hold to be a slide, checked from its metadata alone."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvm_batch.archives.limits import MAX_TABLE_BYTES, MAX_TILE_PIXELS, MAX_TILES
from cvm_batch.archives.members import Members
from cvm_batch.archives.zarr_metadata import ArraySpec, Group, read_array, read_group
from cvm_batch.errors import BadFormatError, EmptyArchiveError, OverLimitError


@dataclass(frozen=True, kw_only=True)
class SlideLayout:
    """The arrays of one slide, of lengths that agree."""

    tiles: ArraySpec
    """uint8 [N, h, w, 3] in chunks of whole tiles."""
    xy: ArraySpec | None
    """Numbers [N, 2], level-0 pixels."""
    cell_id: ArraySpec | None
    """Text or whole numbers [N]."""
    mpp: float | None
    """Microns per level-0 pixel."""


def read_layout(members: Members) -> SlideLayout:
    """Raises BadFormatError, EmptyArchiveError, OverLimitError or UnsafeArchiveError."""
    group = read_group(members)
    tiles = _read_tiles(members, group)
    count = tiles.shape[0]
    layout = SlideLayout(
        tiles=tiles,
        xy=_read_column(members, group, "xy", (count, 2)),
        cell_id=_read_column(members, group, "cell_id", (count,)),
        mpp=_mpp(group.attributes.get("mpp"), members.path),
    )
    _check_names(members, tiles)
    return layout


def _read_tiles(members: Members, group: Group) -> ArraySpec:
    """The array ``tiles``, its metadata found to be those of tiles."""
    spec = read_array(members, group, "tiles")
    where = f"'tiles' in {members.path}"
    if spec is None:
        raise BadFormatError(
            f"{members.path} has no array 'tiles'. Write the cells as uint8 [N, h, w, 3] under "
            "that name."
        )
    if spec.dtype != np.uint8 or len(spec.shape) != 4 or spec.shape[3] != 3:
        raise BadFormatError(
            f"{where} is {spec.dtype} {list(spec.shape)}; tiles are uint8 [N, h, w, 3], RGB. "
            "Convert it."
        )
    tiles, height, width, _ = spec.shape
    if tiles == 0:
        raise EmptyArchiveError(
            f"{where} holds no tile. Check that the export of its cells has ended, or leave it out."
        )
    if height < 1 or width < 1 or spec.chunks[1:] != spec.shape[1:]:
        raise BadFormatError(
            f"{where} has tiles of {height} x {width} pixels in chunks of {spec.chunks[1:]}. "
            "Write it in chunks of whole tiles."
        )
    if tiles > MAX_TILES or height * width > MAX_TILE_PIXELS:
        raise OverLimitError(
            f"{where} says it has {tiles} tiles of {height} x {width} pixels, more than "
            f"{MAX_TILES} tiles or {MAX_TILE_PIXELS} pixels. Check how it was made."
        )
    return spec


def _read_column(
    members: Members, group: Group, name: str, shape: tuple[int, ...]
) -> ArraySpec | None:
    """An optional array with a row for each tile."""
    spec = read_array(members, group, name)
    if spec is None:
        return None
    where = f"{name!r} in {members.path}"
    kinds = "uif" if name == "xy" else "uiU"
    if spec.shape != shape or (spec.dtype is not None and spec.dtype.kind not in kinds):
        raise BadFormatError(
            f"{where} is {spec.dtype or 'text'} {list(spec.shape)}; its shape must be "
            f"{list(shape)}, with numbers for xy, text or whole numbers for cell_id. Write it anew."
        )
    if name == "xy" and spec.dtype is None:
        raise BadFormatError(f"{where} is text. Write coordinates as numbers.")
    if spec.dtype is not None and math.prod(shape) * spec.dtype.itemsize > MAX_TABLE_BYTES:
        raise OverLimitError(f"{where} would take more than {MAX_TABLE_BYTES} bytes. Shorten it.")
    return spec


def _check_names(members: Members, spec: ArraySpec) -> None:
    """Refuse chunks beyond the shape: tiles that a damaged shape would cut off in silence."""
    chunk_name = re.compile(re.escape(spec.key_prefix) + r"(\d{1,9})\D.*")
    for name in members.names:
        match = chunk_name.fullmatch(name)
        if match is None:
            members.check_name(name)
        elif int(match[1]) >= spec.grid[0]:
            raise BadFormatError(
                f"{members.path} has the chunk {name!r}, beyond the {spec.shape[0]} tiles that "
                "its metadata tell of. Copy it again, or write it anew."
            )


def _mpp(value: Any, path: Path) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise BadFormatError(
            f"{path} has the attribute mpp {value!r}: microns per pixel are a number above zero. "
            "Correct it, or leave it out."
        )
    return float(value)
