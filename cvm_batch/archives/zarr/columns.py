"""What a zarr slide says of its tiles beside their pixels: a row for each of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cvm_batch.archives.limits import MAX_TILE_PIXELS
from cvm_batch.archives.members.base import Members
from cvm_batch.archives.zarr.chunks import read_numbers, read_texts
from cvm_batch.archives.zarr.layout import SlideLayout
from cvm_batch.archives.zarr.metadata import ArraySpec, Varying
from cvm_batch.errors import BadFormatError, OverLimitError


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """All rows of a slide; None for what it does not say."""

    sizes: NDArray[np.int64] | None
    """Height and width [N, 2], where they vary."""
    xy: NDArray[np.float64] | None
    """[N, 2], level-0 pixels."""
    cell_id: pa.LargeStringArray | NDArray[np.generic] | None
    """Text or whole numbers [N]."""
    readable: NDArray[np.bool_] | None
    padded: NDArray[np.bool_] | None

    @classmethod
    def read(cls, members: Members, layout: SlideLayout) -> Columns:
        """Raises SlideError."""
        readable = _flags(members, layout.readable)
        return cls(
            sizes=None if layout.size is None else read_sizes(members, layout.size),
            xy=_coordinates(members, layout.xy, readable),
            cell_id=_ids(members, layout.cell_id),
            readable=readable,
            padded=_flags(members, layout.padded),
        )

    def ids(self, start: int, stop: int) -> list[str] | None:
        """The ids of tiles [start, stop)."""
        if self.cell_id is None:
            return None
        rows = self.cell_id[start:stop]
        return rows.to_pylist() if isinstance(rows, pa.Array) else list(map(str, rows.tolist()))


def read_sizes(members: Members, spec: ArraySpec) -> NDArray[np.int64]:
    """Height and width [N, 2] of tiles of varying size. Raises BadFormatError or OverLimitError."""
    stored = read_numbers(members, spec)
    least = stored.min()
    # Each side by itself first: the product of two of them might wrap around.
    if least < 1 or stored.max() > MAX_TILE_PIXELS:
        limit = f"from 1 to {MAX_TILE_PIXELS} pixels"
        raise BadFormatError(
            f"{spec.name!r} in {members.place} has sides from {least} to {stored.max()}, not "
            f"{limit}. Write the archive anew."
        )
    sizes = stored.astype(np.int64)
    largest = sizes[sizes.prod(axis=1).argmax()]
    if largest.prod() > MAX_TILE_PIXELS:
        raise OverLimitError(
            f"{members.place} says it has a tile of {largest[0]} x {largest[1]} pixels, more than "
            f"{MAX_TILE_PIXELS}. Check how it was made."
        )
    return sizes


def typical_size(members: Members, layout: SlideLayout) -> tuple[int, int] | None:
    """Median height and width of tiles of varying size; None where none can be read.

    Crops of clusters are larger and those at a border smaller, but most are of one cell, so
    that the median shows the magnification.
    """
    if layout.size is None:
        return None
    sizes = read_sizes(members, layout.size)
    readable = _flags(members, layout.readable)
    if readable is not None:
        sizes = sizes[readable]
    if not len(sizes):
        return None
    height, width = np.median(sizes, axis=0).round().astype(int).tolist()
    return height, width


def _coordinates(
    members: Members, spec: ArraySpec | None, readable: NDArray[np.bool_] | None
) -> NDArray[np.float64] | None:
    if spec is None:
        return None
    xy = np.asarray(read_numbers(members, spec), np.float64)
    # Where a packed cell lies that was only counted, nobody knows.
    known = slice(None) if readable is None else readable
    if not np.isfinite(xy[known]).all():
        raise BadFormatError(
            f"{spec.name!r} in {members.place} has values that are not finite. Correct them, or "
            "leave it out."
        )
    return xy


def _ids(
    members: Members, spec: ArraySpec | None
) -> pa.LargeStringArray | NDArray[np.generic] | None:
    if spec is None:
        return None
    return (read_texts if spec.dtype is Varying.TEXT else read_numbers)(members, spec)


def _flags(members: Members, spec: ArraySpec | None) -> NDArray[np.bool_] | None:
    """Truth values, which a damaged byte must not turn round in silence."""
    if spec is None:
        return None
    stored = read_numbers(members, spec)
    values = stored.view(np.uint8) if stored.dtype == np.bool_ else stored
    if values.max() > 1:
        raise BadFormatError(
            f"{spec.name!r} in {members.place} has the value {values.max()} where only 0 and 1 "
            "can be. Write it anew."
        )
    return values.astype(np.bool_)
