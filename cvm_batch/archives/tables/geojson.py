"""Cells marked or found in QuPath, from the GeoJSON that it exports.

A FeatureCollection, a list of Features or one Feature. A Point is a nucleus' centre, a
MultiPoint as many of them; of a Polygon or MultiPolygon the bounding box is the cell's,
and its centre the nucleus', unless ``nucleusGeometry`` says where that lies. One file
holds points or outlines, of one ``objectType``: where kinds are mixed, outlines of tissue
are likely to be among the cells, and nothing tells which they are.
"""

from __future__ import annotations

import codecs
import json
from array import array
from collections.abc import Iterator
from itertools import chain
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cvm_batch.archives.limits import MAX_TILE_PIXELS, MIB
from cvm_batch.errors import BadFormatError, OverLimitError

#: One Feature as text: 500,000 points of one MultiPoint take 11 MB. Objects made of JSON
#: take up to 25 times the memory of its text.
_MOST_FEATURE_CHARS = 16 * MIB
_PIECE_BYTES = MIB
#: Of what JSON knows besides strings and numbers, and of one escaped character.
_LONGEST_TOKEN_CHARS = 16
#: What of a Feature is looked at. Measurements, most of the text, may even be NaN.
_MEMBERS = ("type", "id", "geometry", "nucleusGeometry", "properties")
#: QuPath before 0.3 wrote what an object is in place of its id.
_LEGACY_TYPES = {
    "PathCellObject": "cell",
    "PathDetectionObject": "detection",
    "PathAnnotationObject": "annotation",
    "PathTileObject": "tile",
    "TMACoreObject": "tmaCore",
    "PathRootObject": "root",
}
_POINTS = ("Point", "MultiPoint")
_OUTLINES = ("Polygon", "MultiPolygon")
_CELL_TYPES = ("cell", "detection", "annotation", None)
#: Characters of a foreign name in a message.
_MOST_SHOWN = 40
_EXPORT_CELLS = "Select the cells alone in QuPath and export the selected objects."


class MarkedCells(NamedTuple):
    """Cells in the order of the file."""

    cell_ids: pa.LargeStringArray | None
    """The Features' ids, of a MultiPoint's points ``<id>/<index>``; None unless all have one."""
    xy: NDArray[np.float64]
    """Nucleus centres [n, 2] in level-0 pixels."""
    extent: NDArray[np.float64] | None
    """Width and height of the cells' bounding boxes [n, 2]; None of points."""


def read_geojson(data: bytes, where: str, *, most_cells: int) -> MarkedCells:
    """Raises BadFormatError or OverLimitError; ``where`` is for messages."""
    cells = _Cells()
    try:
        for feature in _features(_Text(data, where)):
            cells.add(feature)
            if len(cells) > most_cells:
                raise OverLimitError(
                    f"{where} has more than the {most_cells} cells that a slide may have. Split it."
                )
    except _UnfitError as error:
        raise BadFormatError(f"Feature {cells.features} of {where} {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadFormatError(
            f"{where} cannot be read as GeoJSON: {error}, after {cells.features} Features. Export "
            "it again."
        ) from error
    return cells.together()


class _UnfitError(Exception):
    """A Feature that is no cell. The message goes on from its name."""


class _Cells:
    """Takes Features one by one and keeps numbers and ids only."""

    def __init__(self) -> None:
        self.features = 0
        """How many were given, the last one included that is no cell."""
        self._centres = array("d")
        self._extents = array("d")
        self._ids = bytearray()
        self._id_ends = array("q", [0])
        self._kind: tuple[str | None, bool] | None = None

    def __len__(self) -> int:
        return len(self._centres) // 2

    def add(self, feature: Any) -> None:
        """Raises _UnfitError."""
        self.features += 1
        if not (isinstance(feature, dict) and feature.get("type") == "Feature"):
            raise _UnfitError("is none: its type is something else. Export cells from QuPath.")
        geometry = _geometry(feature.get("geometry"))
        has_outline = geometry["type"] in _OUTLINES
        self._check_kind(_object_type(feature), has_outline)
        name = _id(feature)
        if has_outline:
            self._add_outline(_box(geometry), feature.get("nucleusGeometry"))
            self._add_id(name)
        elif geometry["type"] == "Point":
            self._add_points([geometry.get("coordinates")])
            self._add_id(name)
        # QuPath keeps a set of points for each class, with none in it at first.
        elif (points := geometry.get("coordinates")) != []:
            for index in range(self._add_points(points)):
                self._add_id(name and f"{name}/{index}")

    def together(self) -> MarkedCells:
        has_boxes = len(self._extents) > 0
        return MarkedCells(
            cell_ids=self._all_ids(),
            xy=np.array(self._centres).reshape(-1, 2),
            extent=np.array(self._extents).reshape(-1, 2) if has_boxes else None,
        )

    def _check_kind(self, object_type: str | None, has_outline: bool) -> None:
        if object_type not in _CELL_TYPES:
            raise _UnfitError(f"is of the objectType {object_type!r}, not a cell. {_EXPORT_CELLS}")
        first, this = self._kind, (object_type, has_outline)
        if first is None:
            self._kind = this
        elif first != this:
            raise _UnfitError(
                f"is {_kind_name(*this)}, but the first one is {_kind_name(*first)}: what of them "
                f"are cells cannot be told. {_EXPORT_CELLS}"
            )

    def _add_points(self, points: Any) -> int:
        """How many they are."""
        xs, ys = _xs_ys(points)
        self._centres.extend(chain.from_iterable(zip(xs, ys, strict=True)))
        return len(xs)

    def _add_outline(self, box: _Box, nucleus: Any) -> None:
        width, height = box.right - box.left, box.bottom - box.top
        if not (width > 0 and height > 0):
            raise _UnfitError(f"is {width:g} x {height:g} pixels large. Remove it, or redraw it.")
        if width * height > MAX_TILE_PIXELS:
            raise _UnfitError(
                f"is {width:g} x {height:g} pixels large, rather an outline of tissue than a cell. "
                f"{_EXPORT_CELLS}"
            )
        self._extents.extend((width, height))
        at = box if nucleus is None else _box(_geometry(nucleus))
        self._centres.extend((_between(at.left, at.right), _between(at.top, at.bottom)))

    def _add_id(self, name: str | None) -> None:
        if name is not None:
            self._ids += name.encode("utf-8", "backslashreplace")
            self._id_ends.append(len(self._ids))

    def _all_ids(self) -> pa.LargeStringArray | None:
        if len(self._id_ends) - 1 != len(self):
            return None
        buffers = pa.py_buffer(bytes(self._id_ends)), pa.py_buffer(bytes(self._ids))
        return pa.LargeStringArray.from_buffers(len(self), *buffers)


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float


def _between(low: float, high: float) -> float:
    return low + (high - low) / 2


def _id(feature: dict[str, Any]) -> str | None:
    name = feature.get("id")
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    return name if isinstance(name, str) and name and name not in _LEGACY_TYPES else None


def _object_type(feature: dict[str, Any]) -> str | None:
    properties = feature.get("properties")
    if not isinstance(properties, dict):
        properties = {}
    if properties.get("childObjects"):
        raise _UnfitError(f"has further objects nested in it. {_EXPORT_CELLS}")
    name = feature.get("id")
    legacy = _LEGACY_TYPES.get(name) if isinstance(name, str) else None
    # QuPath 0.3 wrote object_type.
    found = properties.get("objectType", properties.get("object_type", legacy))
    return None if found is None else str(found)[:_MOST_SHOWN]


def _kind_name(object_type: str | None, has_outline: bool) -> str:
    shape = "an outline" if has_outline else "made of points"
    return f"{shape}, of {f'objectType {object_type!r}' if object_type else 'no objectType'}"


def _geometry(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _UnfitError("has no geometry. Mark cells by points or by closed outlines.")
    if (kind := value.get("type")) not in (*_POINTS, *_OUTLINES):
        raise _UnfitError(
            f"has a geometry of the type {str(kind)[:_MOST_SHOWN]!r}. Mark cells by points or by "
            "closed outlines."
        )
    plane = value.get("plane")
    if isinstance(plane, dict) and (plane.get("z") or plane.get("t")):
        raise _UnfitError(
            "lies in another plane of the image than the first, the only one that is read. Mark "
            "the cells in that one."
        )
    return value


def _box(geometry: dict[str, Any]) -> _Box:
    """The bounding box; what is left out of an outline lies inside of it."""
    points = geometry.get("coordinates")
    if geometry["type"] == "Point":
        points = [points]
    elif geometry["type"] in _OUTLINES:
        outlines: Any = [points] if geometry["type"] == "Polygon" else points
        try:
            points = list(chain.from_iterable(outline[0] for outline in outlines))
        except (TypeError, LookupError) as error:
            raise _no_coordinates() from error
    xs, ys = _xs_ys(points)
    return _Box(min(xs), min(ys), max(xs), max(ys))


def _xs_ys(points: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The coordinates of at least one point; further than x and y are left out."""
    try:
        # Without NumPy, which takes thrice as long for a few numbers, and reads text.
        xs, ys, *_ = zip(*points, strict=True)
        if not ({*map(type, xs), *map(type, ys)} <= {int, float} and isfinite(sum(xs) + sum(ys))):
            raise _no_coordinates()
    except (TypeError, ValueError, OverflowError) as error:
        raise _no_coordinates() from error
    return xs, ys


def _no_coordinates() -> _UnfitError:
    return _UnfitError("has coordinates that are not pairs of finite numbers. Export it again.")


def _features(text: _Text) -> Iterator[Any]:
    """The Features, as they are parsed. Raises ValueError, RecursionError or OverLimitError."""
    if text.peek() == "[":
        yield from _elements(text)
    else:
        members: dict[str, Any] = {}
        for name in _member_names(text):
            if name in members:
                raise ValueError(f"{name!r} occurs twice")
            if name == "features" and text.peek() == "[":
                members[name] = ...
                yield from _elements(text)
                continue
            value = text.value()
            if name in _MEMBERS:
                members[name] = value
        if members.get("type") == "Feature":
            yield members
        elif "features" not in members:
            raise ValueError("it is neither a FeatureCollection nor Features")
    if text.peek():
        raise ValueError("something follows its end")


def _elements(text: _Text) -> Iterator[Any]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        yield text.value()
        if text.take(",]") == "]":
            return


def _member_names(text: _Text) -> Iterator[str]:
    """The names of an object's members; the caller takes each value before it goes on."""
    text.take("{")
    while True:
        name = text.value()
        if not isinstance(name, str):
            raise ValueError("a member has no name")
        text.take(":")
        yield name
        if text.take(",}") == "}":
            return


class _Text:
    """JSON text that is decoded and parsed piece by piece, to hold little of it at once."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data = memoryview(data)
        self._where = where
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._parser = json.JSONDecoder()
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is no space; nothing at the end."""
        while True:
            while self._at < len(self._text):
                if (character := self._text[self._at]) not in " \t\r\n":
                    return character
                self._at += 1
            if not self._more():
                return ""

    def take(self, expected: str) -> str:
        """The next character that is no space, one of ``expected``. Raises ValueError."""
        character = self.peek()
        if not character or character not in expected:
            raise ValueError(f"{character or 'its end'!r} where {expected[0]!r} belongs")
        self._at += 1
        return character

    def value(self) -> Any:
        """The next value. Raises ValueError, RecursionError or OverLimitError."""
        self.peek()
        while True:
            try:
                value, end = self._parser.raw_decode(self._text, self._at)
                # A number may go on in the next piece.
                if end < len(self._text) or not self._more():
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if not (self._is_cut(error) and self._more()):
                    raise ValueError(error.msg) from None

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether an error may be due to the text that ends too early, in mid-value."""
        is_at_end = error.pos >= len(self._text) - _LONGEST_TOKEN_CHARS
        return is_at_end or error.msg.startswith("Unterminated string")

    def _more(self) -> bool:
        """Decode a further piece, as long as all that waits, so that few parses are in vain."""
        waiting = len(self._text) - self._at
        if waiting > _MOST_FEATURE_CHARS:
            raise OverLimitError(
                f"{self._where} has a Feature of more than {_MOST_FEATURE_CHARS} characters, which "
                "no cell has, or it is damaged. Export it again, without measurements."
            )
        if not self._data:
            return False
        size = max(waiting, _PIECE_BYTES)
        piece, self._data = self._data[:size], self._data[size:]
        decoded = self._decoder.decode(piece, final=not self._data)
        self._text, self._at = self._text[self._at :] + decoded, 0
        return True
