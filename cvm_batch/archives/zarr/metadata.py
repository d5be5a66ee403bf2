"""What zarr metadata say of a group and its arrays, checked before anything is allocated.

Read are zarr v2 and v3 with regular chunks, in shards or not. A place is where a chunk or a
file of them lies in the grid, as (0, 0, 0, 0).
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, NoReturn

import numpy as np

from cvm_batch.archives.limits import MAX_CHUNK_BYTES, MAX_METADATA_BYTES, MAX_TILES
from cvm_batch.archives.members.base import Members, read_named
from cvm_batch.archives.zarr.codecs import Codec, parse_codec
from cvm_batch.errors import BadFormatError, OverLimitError, UnsafeArchiveError

_V2_DTYPE = re.compile(r"[<>|]([uif][1248]|b1|U[1-9]\d{0,5})")
_V3_DTYPES = {
    f"{kind}{bits}": np.dtype(f"{kind}{bits}")
    for kind, sizes in {"uint": (8, 16, 32, 64), "int": (8, 16, 32, 64), "float": (32, 64)}.items()
    for bits in sizes
} | {"bool": np.dtype("?")}


class Varying(Enum):
    """Items of varying length, and the codec that joins those of a chunk."""

    TEXT = "vlen-utf8"
    BYTES = "vlen-bytes"


_V3_VARYING = {
    "string": Varying.TEXT,
    "variable_length_bytes": Varying.BYTES,
    "bytes": Varying.BYTES,
}
_SEPARATORS = ("/", ".")


@dataclass(frozen=True)
class Group:
    zarr_format: int
    attributes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Files that hold many chunks each, and an index of them."""

    shape: tuple[int, ...]
    """Of a shard."""
    order: tuple[int, ...]
    """The array's axes as those of the index."""
    endian: str
    """Of the index: ``<`` or ``>``."""
    codecs: tuple[Codec, ...]
    """Checksums around the index, outermost first."""
    index_at_start: bool


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array: shape, chunks, and how a chunk's bytes become numbers, text or bytes."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    """Shape of what is decoded together; in a shard, of the chunks inside."""
    dtype: np.dtype[Any] | Varying
    order: tuple[int, ...]
    """The array's axes as a decoded chunk has them."""
    codecs: tuple[Codec, ...]
    """Outermost first, down to the bytes of the numbers."""
    fill_value: Any
    """What lies in an edge chunk beyond the array, where it is a whole number."""
    axes: tuple[str, ...]
    """Names of the axes in lower case; empty where they have none."""
    shards: Sharding | None
    key_prefix: str
    separator: str

    @property
    def number(self) -> np.dtype[Any]:
        """The type of its numbers. Raises TypeError where items vary."""
        if isinstance(self.dtype, Varying):
            raise TypeError(f"{self.name!r} holds {self.dtype.value}, no numbers")
        return self.dtype

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk; at most so many where items vary."""
        if isinstance(self.dtype, Varying):
            return MAX_CHUNK_BYTES
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks along each axis."""
        return _grid(self.shape, self.chunks)

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Of a chunk, or of a shard of them."""
        return self.shards.shape if self.shards else self.chunks

    @property
    def file_grid(self) -> tuple[int, ...]:
        """Files along each axis."""
        return _grid(self.shape, self.file_shape)

    @property
    def shard_grid(self) -> tuple[int, ...]:
        """Chunks of one file along each axis."""
        return _grid(self.file_shape, self.chunks)

    def key(self, place: Sequence[int]) -> str:
        """The name of a file in the store."""
        return self.key_prefix + self.separator.join(map(str, place))


def read_group(members: Members) -> Group:
    """The group at the root. Raises BadFormatError and what reading raises."""
    if "zarr.json" in members.names:
        value = _document(members, "zarr.json")
        if value.get("zarr_format") != 3 or value.get("node_type") != "group":
            _refuse(members, "zarr.json", "is not the metadata of a zarr v3 group")
        return Group(3, _attributes(members, "zarr.json", value.get("attributes", {})))
    if ".zgroup" in members.names:
        if _document(members, ".zgroup").get("zarr_format") != 2:
            _refuse(members, ".zgroup", "is not the metadata of a zarr v2 group")
        attributes = _document(members, ".zattrs") if ".zattrs" in members.names else {}
        return Group(2, attributes)
    raise BadFormatError(
        f"{members.place} holds no zarr group: neither zarr.json nor .zgroup lies at its top. "
        "In a zip, the group itself must be the top, not a folder around it."
    )


def read_array(members: Members, group: Group, name: str) -> ArraySpec | None:
    """The array ``name`` of the group, or None where there is none.

    Raises BadFormatError, OverLimitError or UnsafeArchiveError.
    """
    document = f"{name}/zarr.json" if group.zarr_format == 3 else f"{name}/.zarray"
    if document not in members.names:
        return None
    value = _document(members, document)
    where = f"{document!r} in {members.place}"
    beside = f"{name}/.zattrs"
    if group.zarr_format == 2 and beside in members.names:
        value["attributes"] = _document(members, beside)
    try:
        spec = (_parse_v3 if group.zarr_format == 3 else _parse_v2)(name, value, where)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BadFormatError(
            f"{where} is no zarr array metadata that this version reads: {error!r}. Write the "
            "archive anew."
        ) from error
    if spec.chunk_bytes > MAX_CHUNK_BYTES:
        raise OverLimitError(
            f"{where} has chunks of {spec.chunk_bytes} bytes, more than {MAX_CHUNK_BYTES}. Write "
            "it with fewer tiles in a chunk."
        )
    if math.prod(spec.shard_grid) > MAX_TILES:
        raise OverLimitError(
            f"{where} has shards of {math.prod(spec.shard_grid)} chunks, more than {MAX_TILES}. "
            "Write it with fewer chunks in a shard."
        )
    return spec


def _parse_v2(name: str, value: Mapping[str, Any], where: str) -> ArraySpec:
    if value["zarr_format"] != 2 or value["order"] not in ("C", "F"):
        raise ValueError("only zarr_format 2 in order C or F is read")
    filters = list(value.get("filters") or [])
    dtype: np.dtype[Any] | Varying
    if value["dtype"] == "|O":
        if not filters or filters[0].get("id") not in [kind.value for kind in Varying]:
            raise UnsafeArchiveError(
                f"{where} holds Python objects. Only text stored as vlen-utf8 and bytes as "
                "vlen-bytes are read."
            )
        dtype = Varying(filters.pop(0)["id"])
    elif isinstance(value["dtype"], str) and _V2_DTYPE.fullmatch(value["dtype"]):
        dtype = np.dtype(value["dtype"])
    else:
        raise ValueError(f"dtype {value['dtype']!r}")
    compressor = [] if value["compressor"] is None else [value["compressor"]]
    codecs = [(codec["id"], codec) for codec in [*compressor, *reversed(filters)]]
    separator = value.get("dimension_separator", ".")
    if separator not in _SEPARATORS:
        raise ValueError(f"dimension_separator {separator!r}")
    shape = _sides(value["shape"], least=0)
    axes = tuple(range(len(shape)))
    return ArraySpec(
        name=name,
        shape=shape,
        chunks=_shape_of_chunks(value["chunks"], len(shape)),
        dtype=dtype,
        order=axes if value["order"] == "C" else axes[::-1],
        codecs=_byte_codecs(codecs, where),
        fill_value=value.get("fill_value"),
        axes=_axis_names(value),
        shards=None,
        key_prefix=f"{name}/",
        separator=separator,
    )


def _parse_v3(name: str, value: Mapping[str, Any], where: str) -> ArraySpec:
    if value["zarr_format"] != 3 or value["node_type"] != "array":
        raise ValueError("not a zarr v3 array")
    if value.get("storage_transformers"):
        raise ValueError("storage transformers are not read")
    if value["chunk_grid"]["name"] != "regular":
        raise ValueError("only regular chunks are read")
    encoding, settings = _named(value["chunk_key_encoding"])
    separator = settings.get("separator", "/" if encoding == "default" else ".")
    if encoding not in ("default", "v2") or separator not in _SEPARATORS:
        raise ValueError(f"chunk_key_encoding {encoding!r} with separator {separator!r}")
    shape = _sides(value["shape"], least=0)
    chunks = _shape_of_chunks(value["chunk_grid"]["configuration"]["chunk_shape"], len(shape))
    steps = _Steps.parse(value["codecs"], len(shape))
    shards = None
    if steps.name == "sharding_indexed":
        shards, chunks, steps = _parse_shards(chunks, steps, where)
    dtype = _v3_dtype(value["data_type"])
    if steps.name != (dtype.value if isinstance(dtype, Varying) else "bytes"):
        raise UnsafeArchiveError(
            f"{where} turns its values into bytes with {steps.name!r}, which is not read. Store "
            "numbers with 'bytes', text with 'vlen-utf8' and bytes with 'vlen-bytes'."
        )
    if isinstance(dtype, np.dtype) and steps.settings.get("endian") == "big":
        dtype = dtype.newbyteorder(">")
    return ArraySpec(
        name=name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        order=steps.order,
        codecs=_byte_codecs(reversed(steps.rest), where),
        fill_value=value.get("fill_value"),
        axes=_axis_names(value),
        shards=shards,
        key_prefix=f"{name}/c{separator}" if encoding == "default" else f"{name}/",
        separator=separator,
    )


class _Steps(NamedTuple):
    """The codecs of v3, in the order of writing."""

    order: tuple[int, ...]
    """The array's axes as they are after all transposing."""
    name: str
    """What turns values into bytes, and its settings."""
    settings: Mapping[str, Any]
    rest: list[tuple[str, Mapping[str, Any]]]
    """From bytes to bytes."""

    @classmethod
    def parse(cls, codecs: Any, axes: int) -> _Steps:
        steps = deque(map(_named, codecs))
        order = tuple(range(axes))
        while steps[0][0] == "transpose":
            _, settings = steps.popleft()
            turn = _sides(settings["order"], least=0)
            if sorted(turn) != list(range(axes)):
                raise ValueError(f"transpose to {turn} of {axes} axes")
            order = tuple(order[axis] for axis in turn)
        return cls(order, *steps.popleft(), list(steps))


def _parse_shards(
    shape: tuple[int, ...], outer: _Steps, where: str
) -> tuple[Sharding, tuple[int, ...], _Steps]:
    """Of a shard of ``shape``: itself, the shape of its chunks, and how those are written."""
    inner = _Steps.parse(outer.settings["codecs"], len(shape))
    if outer.rest or inner.name == "sharding_indexed":
        raise ValueError("shards inside of shards, or encoded as a whole, are not read")
    index = _Steps.parse(outer.settings["index_codecs"], len(shape) + 1)
    checksums = _byte_codecs(reversed(index.rest), where)
    plain = index.name == "bytes" and index.order == tuple(range(len(shape) + 1))
    if not plain or not all(codec.is_checksum for codec in checksums):
        raise ValueError("an index of shards must be plain bytes, with or without a checksum")
    location = outer.settings.get("index_location", "end")
    if location not in ("start", "end"):
        raise ValueError(f"index_location {location!r}")
    # Given by the axes as they are once those of the whole shard are transposed.
    turned = _shape_of_chunks(outer.settings["chunk_shape"], len(shape))
    chunks = tuple(side for _, side in sorted(zip(outer.order, turned, strict=True)))
    if any(side % chunk for side, chunk in zip(shape, chunks, strict=True)):
        raise ValueError(f"chunks of {chunks} do not divide shards of {shape}")
    sharding = Sharding(
        shape=shape,
        order=outer.order,
        endian=">" if index.settings.get("endian") == "big" else "<",
        codecs=checksums,
        index_at_start=location == "start",
    )
    order = tuple(outer.order[axis] for axis in inner.order)
    return sharding, chunks, inner._replace(order=order)


def _byte_codecs(codecs: Iterable[tuple[str, Mapping[str, Any]]], where: str) -> tuple[Codec, ...]:
    parsed = tuple(parse_codec(name, settings, where) for name, settings in codecs)
    if sum(not codec.is_checksum for codec in parsed) > 1:
        # The size between two compressors is not known, so that it could not be bounded.
        raise ValueError("more than one compressor")
    return parsed


def _v3_dtype(value: Any) -> np.dtype[Any] | Varying:
    if isinstance(value, dict) and value["name"] == "fixed_length_utf32":
        (characters,) = _sides([value["configuration"]["length_bytes"] // 4], least=1)
        return np.dtype(f"U{characters}")
    name, _ = _named(value)
    return _V3_VARYING[name] if name in _V3_VARYING else _V3_DTYPES[name]


def _axis_names(value: Mapping[str, Any]) -> tuple[str, ...]:
    attributes = value.get("attributes") or {}
    names = value.get("dimension_names") or attributes.get("_ARRAY_DIMENSIONS") or []
    return tuple(name.lower() if isinstance(name, str) else "" for name in names)


def _named(value: Any) -> tuple[str, Mapping[str, Any]]:
    """A v3 extension point: its name and settings; the short form is the name alone."""
    if isinstance(value, str):
        return value, {}
    return str(value["name"]), value.get("configuration") or {}


def _shape_of_chunks(value: Any, axes: int) -> tuple[int, ...]:
    chunks = _sides(value, least=1)
    if len(chunks) != axes:
        raise ValueError(f"chunks {chunks} of an array of {axes} axes")
    return chunks


def _sides(value: Any, *, least: int) -> tuple[int, ...]:
    # bool is an int to Python, and 3.0 equals 3: ask for the type itself.
    if type(value) is not list or any(type(side) is not int or side < least for side in value):
        raise ValueError(f"{value!r} is not a list of whole numbers from {least}")
    return tuple(value)


def _grid(shape: Sequence[int], chunks: Sequence[int]) -> tuple[int, ...]:
    return tuple(-(-side // chunk) for side, chunk in zip(shape, chunks, strict=True))


def _document(members: Members, name: str) -> dict[str, Any]:
    data = read_named(members, name)
    if len(data) > MAX_METADATA_BYTES:
        raise OverLimitError(
            f"{name!r} in {members.place} has {len(data)} bytes, more than the "
            f"{MAX_METADATA_BYTES} of zarr metadata. Write the archive anew."
        )
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadFormatError(
            f"{name!r} in {members.place} is not JSON: {error}. Write the archive anew."
        ) from error
    if not isinstance(value, dict):
        _refuse(members, name, "is not a JSON object")
    return value


def _attributes(members: Members, name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        _refuse(members, name, "has attributes that are not an object")
    return value


def _refuse(members: Members, name: str, why: str) -> NoReturn:
    raise BadFormatError(f"{name!r} in {members.place} {why}. Write the archive anew.")
