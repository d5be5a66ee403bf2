"""Slides made for tests: each format written from arrays, and read back by nothing of ours.

`cells` gives a slide's truth, the ``write_*`` functions put it on disk: pixels without
loss (PNG, or zarr), unless a suffix says otherwise.
"""

from __future__ import annotations

import csv
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.dtype import VariableLengthBytes
from zarr.storage import LocalStore, ZipStore

#: How `pack` writes chunks: fast to decode, and every byte of them protected.
PACKED = (BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=1), Crc32cCodec())
#: What zarr v2 chunks mostly are.
BLOSC_V2 = (numcodecs.Blosc(cname="lz4", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE),)


@dataclass(frozen=True)
class Cells:
    """What a slide holds."""

    tiles: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
    """uint8 [h, w, 3] each."""
    xy: NDArray[np.float64]
    """[n, 2]"""
    cell_id: list[str]

    def __len__(self) -> int:
        return len(self.tiles)


def cells(count: int, *, px: tuple[int, int] = (12, 10), seed: int = 0) -> Cells:
    """Cells of ``px`` (height, width), every tile another; smooth enough to compress."""
    rng = np.random.default_rng(seed)
    base = rng.integers(120, 240, (count, 1, 1, 3))
    tiles = (base + rng.integers(-20, 16, (count, *px, 3))).astype(np.uint8)
    xy = rng.uniform(0, 40_000, (count, 2))
    return Cells(tiles, xy, [f"cell-{number}" for number in rng.permutation(count)])


def encode(tile: NDArray[np.uint8], suffix: str = ".png", **settings: Any) -> bytes:
    """One image file; JPEG and WebP lose a little."""
    packed = io.BytesIO()
    Image.fromarray(tile).save(packed, Image.registered_extensions()[suffix], **settings)
    return packed.getvalue()


def image_names(count: int, suffix: str = ".png") -> list[str]:
    """Names whose sorted order is that of the tiles."""
    return [f"{number:05d}{suffix}" for number in range(count)]


def write_folder(
    path: Path, tiles: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], suffix: str = ".png"
) -> Path:
    """A folder of crops, named by `image_names`."""
    path.mkdir(parents=True)
    for name, tile in zip(image_names(len(tiles), suffix), tiles, strict=True):
        (path / name).write_bytes(encode(tile, suffix))
    return path


def write_zip(
    path: Path,
    tiles: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    suffix: str = ".png",
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A zip of crops, named by `image_names`."""
    names = image_names(len(tiles), suffix)
    members = {name: encode(tile, suffix) for name, tile in zip(names, tiles, strict=True)}
    return write_zip_members(path, members, compression)


def write_zip_members(
    path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    return path


def write_tar(
    path: Path, slide: Cells, suffix: str = ".png", layout: int = tarfile.USTAR_FORMAT
) -> Path:
    """A tar of crops, named by `image_names`."""
    names = image_names(len(slide), suffix)
    members = {name: encode(tile, suffix) for name, tile in zip(names, slide.tiles, strict=True)}
    return write_tar_members(path, members, layout)


def write_tar_members(
    path: Path, members: Mapping[str, bytes], layout: int = tarfile.USTAR_FORMAT
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=layout) as packed:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    return path


def record(path: Path) -> Path:
    """A sidecar with the digest of every file of ``path``, as sha256sum writes it."""
    sidecar = path.with_name(path.name + ".sha256")
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(path.parent)}\n"
        for file in files_of(path)
    ]
    sidecar.write_text("".join(lines))
    return sidecar


def files_of(path: Path) -> list[Path]:
    """All files of an archive, whatever holds them."""
    return [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())


def write_table(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    """A cells table, as CSV or Parquet by its suffix."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(dict(columns)), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def table_of(slide: Cells, names: Sequence[str]) -> dict[str, Sequence[Any]]:
    """The columns of a cells table that says all of a slide's cells."""
    return {
        "file": names,
        "cell_id": slide.cell_id,
        "x": slide.xy[:, 0].tolist(),
        "y": slide.xy[:, 1].tolist(),
    }


def write_zarr(
    path: Path,
    tiles: NDArray[np.uint8],
    *,
    xy: NDArray[Any] | None = None,
    cell_id: Sequence[str] | Sequence[int] | None = None,
    mpp: float | None = None,
    zarr_format: int = 3,
    chunk: int = 256,
    compressors: Sequence[Any] | None = None,
    tiles_name: str = "tiles",
    **tiles_array: Any,
) -> Path:
    """A zarr slide, in a ``.zip`` where the path says so. Default `PACKED` or `BLOSC_V2`.

    ``tiles_array``: further settings of the array of tiles, as zarr has them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if compressors is None:
        compressors = PACKED if zarr_format == 3 else BLOSC_V2
    packed = path.suffix == ".zip"
    store = ZipStore(path, mode="w") if packed else LocalStore(path)
    group = zarr.create_group(
        store,
        zarr_format=zarr_format,
        # Set at once: a zip would get a second member when attributes are added later.
        attributes={} if mpp is None else {"mpp": mpp},
    )
    _write_array(group, tiles_name, tiles, chunk, compressors, **tiles_array)
    if xy is not None:
        _write_array(group, "xy", xy, 4 * chunk, compressors)
    if cell_id is not None:
        _write_array(group, "cell_id", np.asarray(cell_id), 4 * chunk, compressors)
    store.close()
    return path


def write_varying_zarr(
    path: Path, tiles: Sequence[NDArray[np.uint8]], *, zarr_format: int = 3, chunk: int = 7
) -> Path:
    """A zarr slide of tiles whose sizes vary."""
    group = zarr.create_group(path, zarr_format=zarr_format)
    compressors = PACKED if zarr_format == 3 else BLOSC_V2
    pixels = np.empty(len(tiles), object)
    pixels[:] = [tile.tobytes() for tile in tiles]
    _write_array(group, "tiles", pixels, chunk, compressors, dtype=VariableLengthBytes())
    sizes = np.array([tile.shape[:2] for tile in tiles], np.int32)
    _write_array(group, "size", sizes, chunk, compressors)
    return path


def _write_array(
    group: zarr.Group,
    name: str,
    values: NDArray[Any],
    chunk: int,
    compressors: Sequence[Any],
    **settings: Any,
) -> None:
    usual = {
        "chunks": (min(chunk, max(1, len(values))), *values.shape[1:]),
        "dtype": str if values.dtype.kind == "U" else values.dtype,
        # zarr v2 takes one compressor, and none as None.
        "compressors": list(compressors) or None,
        # Else a chunk of zeros is left out, and cannot be told from a lost one.
        "config": {"write_empty_chunks": True},
    }
    group.create_array(name, shape=values.shape, **usual | settings)[...] = values
