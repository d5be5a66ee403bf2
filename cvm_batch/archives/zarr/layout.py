"""What a zarr group must hold to be a slide, checked from its metadata alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvm_batch.archives.limits import MAX_MEMBERS, MAX_TABLE_BYTES, MAX_TILE_PIXELS, MAX_TILES
from cvm_batch.archives.members.base import Members
from cvm_batch.archives.opening import ArrayNames
from cvm_batch.archives.places.place import Place
from cvm_batch.archives.zarr.metadata import ArraySpec, Group, Varying, read_array, read_group
from cvm_batch.errors import BadFormatError, EmptyArchiveError, OverLimitError

_USUAL = ArrayNames()
#: A whole number of hundreds of digits would be no float any more.
_MOST_MPP = 1e9
#: What axes are called; what the first is called does not matter, unless it is one of these.
_AXES = {
    "h": ("h", "y", "height", "row", "rows"),
    "w": ("w", "x", "width", "col", "cols", "column", "columns"),
    "c": ("c", "ch", "channel", "channels", "rgb", "band", "bands", "color", "colour"),
}
_ROLES = {name: role for role, names in _AXES.items() for name in names}
_WANTED = "tiles are uint8 [N, h, w, 3] or [N, 3, h, w], RGB"


@dataclass(frozen=True, kw_only=True)
class SlideLayout:
    """The arrays of one slide, of lengths that agree."""

    tiles: ArraySpec
    """uint8 of four axes; or Varying.BYTES [N], the RGB pixels of each tile."""
    axes: tuple[int, int, int] | None
    """Which of the four axes is height, width and channels; None where tiles vary in size."""
    size: ArraySpec | None
    """Whole numbers [N, 2], height and width, where tiles vary in size; else None."""
    xy: ArraySpec | None
    """Numbers [N, 2], level-0 pixels."""
    cell_id: ArraySpec | None
    """Text or whole numbers [N]."""
    readable: ArraySpec | None
    """Truth values [N]: whether a tile could be read when the slide was packed."""
    padded: ArraySpec | None
    """Truth values [N]: whether a tile reaches beyond the slide's border."""
    mpp: tuple[float, float] | None
    """Microns per level-0 pixel, x and y."""

    @property
    def count(self) -> int:
        return self.tiles.shape[0]

    @property
    def tile_px(self) -> tuple[int, int] | None:
        """Height and width of every tile; None where they vary."""
        if self.axes is None:
            return None
        height, width, _ = self.axes
        return self.tiles.shape[height], self.tiles.shape[width]


def read_layout(members: Members, arrays: ArrayNames) -> SlideLayout:
    """Raises BadFormatError, EmptyArchiveError, OverLimitError or UnsafeArchiveError."""
    found = _Arrays(members, arrays)
    tiles, axes = found.tiles()
    count = tiles.shape[0]
    return SlideLayout(
        tiles=tiles,
        axes=axes,
        size=found.sizes(count) if axes is None else None,
        xy=found.column("xy", arrays.xy, (count, 2), "uif"),
        cell_id=found.column("cell_id", arrays.cell_id, (count,), "uiUT"),
        readable=found.column("readable", "readable", (count,), "bu"),
        padded=found.column("padded", "padded", (count,), "bu"),
        mpp=_mpp(found.group.attributes.get("mpp"), members.place),
    )


class _Arrays:
    """The arrays of a group, each checked when it is asked for."""

    def __init__(self, members: Members, names: ArrayNames) -> None:
        self.group: Group = read_group(members)
        self._members = members
        self._names = names

    def tiles(self) -> tuple[ArraySpec, tuple[int, int, int] | None]:
        """The array of tiles, and which of its axes are height, width and channels."""
        spec = self._read(self._names.tiles)
        if spec is None:
            raise self._absent(self._names.tiles, "tiles")
        where = self._where(spec)
        varying = spec.dtype is Varying.BYTES and len(spec.shape) == 1
        if not varying and (spec.dtype != np.uint8 or len(spec.shape) != 4):
            raise BadFormatError(f"{where} is {_kind(spec)}; {_WANTED}. Convert it.")
        axes = None if varying else _axes(spec, where)
        if spec.shape[0] == 0:
            raise EmptyArchiveError(
                f"{where} holds no tile. Check that the export of its cells has ended, or leave "
                "it out."
            )
        if spec.shape[0] > MAX_TILES:
            raise OverLimitError(
                f"{where} says it has {spec.shape[0]} tiles, more than {MAX_TILES} tiles. Check "
                "how it was made."
            )
        if axes is not None:
            _check_pixels(spec, axes, where)
        _check_files(spec, where)
        return spec, axes

    def sizes(self, count: int) -> ArraySpec:
        spec = self.column("size", self._names.size, (count, 2), "ui")
        if spec is None:
            raise self._absent(self._names.size, "size")
        return spec

    def column(self, what: str, name: str, shape: tuple[int, ...], kinds: str) -> ArraySpec | None:
        """An optional array with a row for each tile; ``kinds`` as NumPy's, T for text."""
        spec = self._read(name)
        if spec is None:
            if name != getattr(_USUAL, what, name):
                raise self._absent(name, what)
            return None
        where = self._where(spec)
        if spec.shape != shape or _letter(spec) not in kinds:
            raise BadFormatError(
                f"{where} is {_kind(spec)}; its shape must be {list(shape)}, and its values "
                f"{_described(kinds)}. Write it anew."
            )
        item = 0 if isinstance(spec.dtype, Varying) else spec.dtype.itemsize
        if math.prod(shape) * item > MAX_TABLE_BYTES:
            raise OverLimitError(
                f"{where} would take more than {MAX_TABLE_BYTES} bytes. Shorten it."
            )
        _check_files(spec, where)
        return spec

    def _read(self, name: str) -> ArraySpec | None:
        return read_array(self._members, self.group, name)

    def _where(self, spec: ArraySpec) -> str:
        return f"{spec.name!r} in {self._members.place}"

    def _absent(self, name: str, what: str) -> BadFormatError:
        there = sorted(islice(self._present(), 20))
        listed = ", ".join(map(repr, there)) or "no array at all"
        return BadFormatError(
            f"{self._members.place} has no array {name!r}; there is {listed}. Write its {what} "
            f"under that name, or say which it is: --array {what}=NAME."
        )

    def _present(self) -> Iterator[str]:
        document = "/zarr.json" if self.group.zarr_format == 3 else "/.zarray"
        for name in self._members.names:
            if name.endswith(document):
                yield name.removesuffix(document)


def check_names(members: Members, spec: ArraySpec, expected: NDArray[np.int64]) -> None:
    """Refuse chunks beyond the shape: tiles that a damaged shape would cut off in silence.

    ``expected``: the members that belong to the array by its shape.
    """
    others = np.ones(len(members.names), np.bool_)
    others[expected[expected >= 0]] = False
    separator = re.escape(spec.separator)
    chunk_name = re.compile(rf"{re.escape(spec.key_prefix)}\d+(?:{separator}\d+)*")
    for position in np.flatnonzero(others).tolist():
        name = members.names[position]
        if chunk_name.fullmatch(name):
            raise BadFormatError(
                f"{members.place} has the chunk {name!r}, beyond the {spec.shape[0]} tiles that "
                "its metadata tell of. Copy it again, or write it anew."
            )
        members.check_name(position)


def _axes(spec: ArraySpec, where: str) -> tuple[int, int, int]:
    """Which axes are height, width and channels: by their names, else by their lengths."""
    roles = [_ROLES.get(name, "") for name in spec.axes]
    named = sorted(roles[1:]) == ["c", "h", "w"]
    if named and not roles[0]:
        axes = (roles.index("h"), roles.index("w"), roles.index("c"))
    elif named or sorted(roles) == ["", "c", "h", "w"]:
        raise BadFormatError(
            f"{where} has the axes {list(spec.axes)}, of which the first must be the tiles. "
            f"Transpose it: {_WANTED}."
        )
    elif spec.shape[3] != 3 and spec.shape[1] == 3:
        axes = (2, 3, 1)
    else:
        axes = (1, 2, 3)
    if spec.shape[axes[2]] != 3:
        raise BadFormatError(f"{where} is {_kind(spec)}; {_WANTED}. Convert it.")
    return axes


def _check_pixels(spec: ArraySpec, axes: tuple[int, int, int], where: str) -> None:
    height, width = (spec.shape[axis] for axis in axes[:2])
    if height < 1 or width < 1:
        raise BadFormatError(f"{where} has tiles of {height} x {width} pixels. Write it anew.")
    if height * width > MAX_TILE_PIXELS:
        raise OverLimitError(
            f"{where} says it has tiles of {height} x {width} pixels, more than "
            f"{MAX_TILE_PIXELS}. Check how it was made."
        )
    cut = any(spec.shape[axis] % spec.chunks[axis] for axis in (1, 2, 3))
    if cut and type(spec.fill_value) is not int:
        # What lies beyond the edge shows whether the shape is the one it was written with.
        raise BadFormatError(
            f"{where} has tiles of {height} x {width} pixels in chunks of {spec.chunks}, which "
            "do not divide them, and no fill_value. Write it in chunks of whole tiles."
        )


def _check_files(spec: ArraySpec, where: str) -> None:
    files = math.prod(spec.file_grid)
    if files > MAX_MEMBERS:
        raise OverLimitError(
            f"{where} says it has {files} files, more than {MAX_MEMBERS}. Write it in larger "
            "chunks."
        )


def _kind(spec: ArraySpec) -> str:
    dtype = spec.dtype.name.lower() if isinstance(spec.dtype, Varying) else spec.dtype
    return f"{dtype} {list(spec.shape)}"


def _letter(spec: ArraySpec) -> str:
    """The kind of a type, as NumPy's letters say it."""
    if isinstance(spec.dtype, Varying):
        return "T" if spec.dtype is Varying.TEXT else "O"
    return spec.dtype.kind


def _described(kinds: str) -> str:
    words = {"b": "truth values", "u": "whole numbers", "f": "numbers", "U": "text"}
    return " or ".join(word for kind, word in words.items() if kind in kinds)


def _mpp(value: Any, place: Place) -> tuple[float, float] | None:
    if value is None:
        return None
    both = value if isinstance(value, list) and len(value) == 2 else [value, value]
    if any(type(axis) not in (int, float) or not 0 < axis < _MOST_MPP for axis in both):
        raise BadFormatError(
            f"{place} has the attribute mpp {value!r}: microns per pixel are a number above "
            "zero, or two, for x and y. Correct it, or leave it out."
        )
    return float(both[0]), float(both[1])
