"""Tars made header by header, and Python's own tarfile to read them: neither uses ours."""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from cvm_batch.archives.members.packed import TarMembers
from cvm_batch.archives.places.disk import DiskPlace
from tests.archives.making import cells, encode

PNG = encode(cells(1).tiles[0])
LAYOUTS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
BLOCK = 512
END = bytes(2 * BLOCK)


def header(
    name: bytes = b"a.png",
    size: int = 0,
    *,
    kind: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    size_field: bytes | None = None,
    signed: bool = False,
) -> bytes:
    """One header, as any tar writes it: an independent view of the format."""
    octal = b"%011o\0" % size if size_field is None else size_field
    rest = (octal, b"%011o\0" % 0, b" " * 8, kind, b"", magic, b"", b"", b"", b"", prefix)
    block = struct.pack(
        "100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x", name, *[b"0000644\0"] * 3, *rest
    )
    total = sum(struct.unpack("512b", block)) if signed else sum(block)
    return block[:148] + b"%06o\0 " % (total % 8**6) + block[156:]


def member(name: bytes = b"a.png", data: bytes = PNG, **known: object) -> bytes:
    return header(name, len(data), **known) + padded(data)  # type: ignore[arg-type]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return member(b"pax", records, kind=kind)


def record(key: str, value: str) -> bytes:
    text = f" {key}={value}\n".encode()
    length = len(text) + 1
    while length != len(text) + len(str(length)):
        length += 1
    return str(length).encode() + text


def tar(tmp_path: Path, *parts: bytes, end: bytes = END) -> Path:
    path = tmp_path / "slide.tar"
    path.write_bytes(b"".join(parts) + end)
    return path


def contents(path: Path) -> Mapping[str, bytes]:
    """As our reader gives them."""
    with closing(TarMembers(DiskPlace.of(path))) as members:
        return {name: members.read(position) for position, name in enumerate(members.names)}


def by_tarfile(path: Path) -> Mapping[str, bytes]:
    with tarfile.open(path) as packed:
        files = [(info.name, packed.extractfile(info)) for info in packed if info.isreg()]
        return {name.removeprefix("./"): file.read() for name, file in files if file is not None}
