"""What zarr metadata say of a group and its arrays, checked before anything is allocated.

Read are zarr v2 and v3 with regular chunks in C order. A key is a chunk's name in the
store; a position is a chunk's place in the grid, as (0, 0, 0, 0).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from cvm_batch.archives.limits import MAX_CHUNK_BYTES, MAX_METADATA_BYTES
from cvm_batch.archives.members import Members
from cvm_batch.archives.zarr_codecs import Codec, parse_codec
from cvm_batch.errors import BadFormatError, OverLimitError, UnsafeArchiveError

_V2_DTYPE = re.compile(r"[<>|]([uif][1248]|U[1-9]\d{0,5})")
_V3_DTYPES = {
    f"{kind}{bits}": np.dtype(f"{kind}{bits}")
    for kind, sizes in {"uint": (8, 16, 32, 64), "int": (8, 16, 32, 64), "float": (32, 64)}.items()
    for bits in sizes
}


@dataclass(frozen=True)
class Group:
    zarr_format: int
    attributes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array: shape, chunks, and how a chunk's bytes become numbers or text."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any] | None
    """None for text of varying length (vlen-utf8)."""
    codecs: tuple[Codec, ...]
    """Outermost first, down to the bytes of the numbers."""
    key_prefix: str
    separator: str

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk; at most so many for text."""
        return MAX_CHUNK_BYTES if self.dtype is None else _chunk_bytes(self.chunks, self.dtype)

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks along each axis."""
        return tuple(-(-side // chunk) for side, chunk in zip(self.shape, self.chunks, strict=True))

    def key(self, position: Sequence[int]) -> str:
        return self.key_prefix + self.separator.join(map(str, position))


def read_group(members: Members) -> Group:
    """The group at the root. Raises BadFormatError and what reading raises."""
    if "zarr.json" in members:
        value = _document(members, "zarr.json")
        if value.get("zarr_format") != 3 or value.get("node_type") != "group":
            _refuse(members, "zarr.json", "is not the metadata of a zarr v3 group")
        return Group(3, _attributes(members, "zarr.json", value.get("attributes", {})))
    if ".zgroup" in members:
        if _document(members, ".zgroup").get("zarr_format") != 2:
            _refuse(members, ".zgroup", "is not the metadata of a zarr v2 group")
        attributes = _document(members, ".zattrs") if ".zattrs" in members else {}
        return Group(2, attributes)
    raise BadFormatError(
        f"{members.path} holds no zarr group: neither zarr.json nor .zgroup lies at its top. "
        "In a zip, the group itself must be the top, not a folder around it."
    )


def read_array(members: Members, group: Group, name: str) -> ArraySpec | None:
    """The array ``name`` of the group, or None where there is none.

    Raises BadFormatError, OverLimitError or UnsafeArchiveError.
    """
    document = f"{name}/zarr.json" if group.zarr_format == 3 else f"{name}/.zarray"
    if document not in members:
        return None
    value = _document(members, document)
    where = f"{document!r} in {members.path}"
    try:
        spec = (_parse_v3 if group.zarr_format == 3 else _parse_v2)(name, value, where)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFormatError(
            f"{where} is no valid zarr array metadata: {error!r}. Write the archive anew."
        ) from error
    if spec.chunk_bytes > MAX_CHUNK_BYTES:
        raise OverLimitError(
            f"{where} has chunks of {spec.chunk_bytes} bytes, more than {MAX_CHUNK_BYTES}. Write "
            "it with fewer tiles in a chunk."
        )
    return spec


def _parse_v2(name: str, value: Mapping[str, Any], where: str) -> ArraySpec:
    if value["zarr_format"] != 2 or value["order"] != "C":
        raise ValueError("only zarr_format 2 in order C is read")
    filters = list(value.get("filters") or [])
    dtype = None
    if value["dtype"] == "|O":
        if not filters or filters[0].get("id") != "vlen-utf8":
            raise UnsafeArchiveError(
                f"{where} holds Python objects. Only text stored as vlen-utf8 is read."
            )
        del filters[0]
    elif isinstance(value["dtype"], str) and _V2_DTYPE.fullmatch(value["dtype"]):
        dtype = np.dtype(value["dtype"])
    else:
        raise ValueError(f"dtype {value['dtype']!r}")
    compressor = [] if value["compressor"] is None else [value["compressor"]]
    return _spec(
        name=name,
        shape=value["shape"],
        chunks=value["chunks"],
        dtype=dtype,
        codecs=[(codec["id"], codec) for codec in [*compressor, *reversed(filters)]],
        key_prefix=f"{name}/",
        separator=value.get("dimension_separator", "."),
        where=where,
    )


def _parse_v3(name: str, value: Mapping[str, Any], where: str) -> ArraySpec:
    if value["zarr_format"] != 3 or value["node_type"] != "array":
        raise ValueError("not a zarr v3 array")
    if value.get("storage_transformers"):
        raise ValueError("storage transformers are not read")
    if value["chunk_grid"]["name"] != "regular":
        raise ValueError("only regular chunks are read")
    first, *rest = [_named(codec) for codec in value["codecs"]]
    dtype = _v3_dtype(value["data_type"])
    if first[0] == "sharding_indexed":
        parse_codec(*first, where)
    if first[0] != ("vlen-utf8" if dtype is None else "bytes"):
        raise UnsafeArchiveError(
            f"{where} begins its codecs with {first[0]!r}, which is not read. Store numbers "
            "with 'bytes' and text with 'vlen-utf8'."
        )
    if dtype is not None and first[1].get("endian") == "big":
        dtype = dtype.newbyteorder(">")
    encoding, settings = _named(value["chunk_key_encoding"])
    if encoding not in ("default", "v2"):
        raise ValueError(f"chunk_key_encoding {encoding!r}")
    separator = settings.get("separator", "/" if encoding == "default" else ".")
    return _spec(
        name=name,
        shape=value["shape"],
        chunks=value["chunk_grid"]["configuration"]["chunk_shape"],
        dtype=dtype,
        codecs=list(reversed(rest)),
        key_prefix=f"{name}/c{separator}" if encoding == "default" else f"{name}/",
        separator=separator,
        where=where,
    )


def _spec(
    *,
    name: str,
    shape: Any,
    chunks: Any,
    dtype: np.dtype[Any] | None,
    codecs: Sequence[tuple[str, Mapping[str, Any]]],
    key_prefix: str,
    separator: str,
    where: str,
) -> ArraySpec:
    if separator not in ("/", "."):
        raise ValueError(f"separator {separator!r}")
    parsed = tuple(parse_codec(codec, settings, where) for codec, settings in codecs)
    if sum(not codec.is_checksum for codec in parsed) > 1:
        # The size between two compressors is not known, so that it could not be bounded.
        raise ValueError("more than one compressor")
    spec = ArraySpec(
        name=name,
        shape=_sides(shape, least=0),
        chunks=_sides(chunks, least=1),
        dtype=dtype,
        codecs=parsed,
        key_prefix=key_prefix,
        separator=separator,
    )
    if len(spec.shape) != len(spec.chunks):
        raise ValueError(f"chunks {spec.chunks} of an array {spec.shape}")
    return spec


def _v3_dtype(value: Any) -> np.dtype[Any] | None:
    if value == "string":
        return None
    if isinstance(value, dict) and value["name"] == "fixed_length_utf32":
        (characters,) = _sides([value["configuration"]["length_bytes"] // 4], least=1)
        return np.dtype(f"U{characters}")
    return _V3_DTYPES[value]


def _named(value: Any) -> tuple[str, Mapping[str, Any]]:
    """A v3 extension point: its name and settings; the short form is the name alone."""
    if isinstance(value, str):
        return value, {}
    return str(value["name"]), value.get("configuration") or {}


def _sides(value: Any, *, least: int) -> tuple[int, ...]:
    # bool is an int to Python, and 3.0 equals 3: ask for the type itself.
    if type(value) is not list or any(type(side) is not int or side < least for side in value):
        raise ValueError(f"{value!r} is not a list of whole numbers from {least}")
    return tuple(value)


def _chunk_bytes(chunks: Sequence[int], dtype: np.dtype[Any]) -> int:
    return math.prod(chunks) * dtype.itemsize


def _document(members: Members, name: str) -> dict[str, Any]:
    data = members.read(name)
    if len(data) > MAX_METADATA_BYTES:
        raise OverLimitError(
            f"{name!r} in {members.path} has {len(data)} bytes, more than the "
            f"{MAX_METADATA_BYTES} of zarr metadata. Write the archive anew."
        )
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadFormatError(
            f"{name!r} in {members.path} is not JSON: {error}. Write the archive anew."
        ) from error
    if not isinstance(value, dict):
        _refuse(members, name, "is not a JSON object")
    return value


def _attributes(members: Members, name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        _refuse(members, name, "has attributes that are not an object")
    return value


def _refuse(members: Members, name: str, why: str) -> NoReturn:
    raise BadFormatError(f"{name!r} in {members.path} {why}. Write the archive anew.")
