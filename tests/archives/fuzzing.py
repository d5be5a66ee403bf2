"""What the coverage-guided fuzzer calls: every parser of bytes from outside.

    python -m tests.archives.fuzzing TARGET FOLDER SECONDS

FOLDER takes the corpus, and what makes a target fail. A target may refuse its bytes with
the errors that its docstring names; anything else is a fault of ours.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

Target = Callable[[bytes], None]


def targets(folder: Path) -> dict[str, tuple[Target, Sequence[bytes]]]:
    """By name: a target, and the bytes to begin with. Modules are imported on the way."""
    from cvm_batch.archives.images import decoding
    from cvm_batch.archives.packing.manifest import PackedFile, PackManifest, parse_manifest
    from cvm_batch.archives.tables.cells import TableKind, parse_table
    from cvm_batch.archives.tables.digests import parse_digests
    from cvm_batch.archives.tables.slides import read_slides_table
    from cvm_batch.archives.zarr import codecs as zarr_codecs
    from cvm_batch.errors import SlideError, UsageError
    from tests.archives import making
    from tests.archives.reading import read_all

    slide = making.cells(3)
    tiles = np.asarray(slide.tiles)

    def archive(suffix: str) -> Target:
        path = folder / f"slide{suffix}"

        def target(data: bytes) -> None:
            path.write_bytes(data)
            with suppress(SlideError):
                read_all(path)

        return target

    def table(name: str, kind: TableKind) -> Target:
        def target(data: bytes) -> None:
            with suppress(SlideError):
                parse_table(data, name, "the table", of=kind)

        return target

    def manifest(name: str) -> Target:
        def target(data: bytes) -> None:
            with suppress(UsageError):
                read_slides_table(data, name, "the manifest", "/slides")

        return target

    def image(data: bytes) -> None:
        with suppress(SlideError, decoding.UndecodableError):
            decoding.decode(data, "the image")

    def codec(data: bytes) -> None:
        names = ("blosc", "zstd", "lz4", "gzip", "zlib", "crc32", "crc32c", "adler32")
        if data:
            step = zarr_codecs.parse_codec(names[data[0] % len(names)], {}, "the array")
            with suppress(zarr_codecs.DamagedChunkError):
                zarr_codecs.decode_chunk((step,), data[1:], 4096)

    def digests(data: bytes) -> None:
        with suppress(SlideError):
            parse_digests(data, "the digests")

    def pack_manifest(data: bytes) -> None:
        with suppress(SlideError):
            parse_manifest(data, "the manifest")

    packed = PackManifest(tiles=1, files={"zarr.json": PackedFile(2, "ab" * 32, None)})
    point = '{"type":"Point","coordinates":[1,2.5]}'
    feature = f'{{"type":"Feature","geometry":{point},"properties":{{"name":"a"}}}}'
    collection = f'{{"type":"FeatureCollection","features":[{feature}]}}'
    csv = b"slide_id,uri,priority,cells_expected\n1,a.zip,3,100\n"
    cells_csv = b'cell_id,x,y,width,height\n1,2.5,3,10,10\n"2",4,5,10,10\n'
    return {
        "zip": (archive(".zip"), [making.write_zip(folder / "a.zip", tiles).read_bytes()]),
        "tar": (archive(".tar"), [making.write_tar(folder / "a.tar", slide).read_bytes()]),
        "zarr": (
            archive(".zarr.zip"),
            [
                making.write_zarr(folder / f"{n}.zarr.zip", tiles, zarr_format=n).read_bytes()
                for n in (2, 3)
            ],
        ),
        "image": (
            image,
            [making.encode(tiles[0], end) for end in (".png", ".jpg", ".bmp", ".tif", ".webp")],
        ),
        "codec": (codec, [bytes([n]) + _stored(n) for n in range(8)]),
        "cells_csv": (table("a.cells.csv", TableKind.SLIDE), [cells_csv]),
        "cells_parquet": (table("a.cells.parquet", TableKind.SLIDE), [_parquet(x=[1.0], y=[2.0])]),
        "geojson": (table("a.geojson", TableKind.SLIDE), [collection.encode(), feature.encode()]),
        "manifest_csv": (manifest("a.csv"), [csv]),
        "manifest_parquet": (manifest("a.parquet"), [_parquet(slide_id=["1"], uri=["a.zip"])]),
        "digests": (digests, [b"ab" * 32 + b"  slide/a.png\n"]),
        "pack_manifest": (pack_manifest, [packed.to_bytes()]),
    }


TARGETS = (
    "zip", "tar", "zarr", "image", "codec", "cells_csv", "cells_parquet", "geojson",
    "manifest_csv", "manifest_parquet", "digests", "pack_manifest",
)  # fmt: skip


def _parquet(**columns: list[object]) -> bytes:
    packed = io.BytesIO()
    parquet.write_table(pa.table(columns), packed)
    return packed.getvalue()


def _stored(codec: int) -> bytes:
    """Something that the codec of that number decodes."""
    import numcodecs
    from numcodecs.checksum32 import CRC32, CRC32C, Adler32

    codecs = (
        numcodecs.Blosc(), numcodecs.Zstd(), numcodecs.LZ4(), numcodecs.GZip(), numcodecs.Zlib(),
        CRC32(), CRC32C(location="end"), Adler32(),
    )  # fmt: skip
    return bytes(codecs[codec].encode(np.arange(64, dtype=np.uint8)))


def main(name: str, folder: Path, seconds: str) -> None:
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["cvm_batch.archives"]):
        target, begin = targets(folder)[name]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(begin):
        (corpus / str(number)).write_bytes(data)
    atheris.Setup(
        [
            sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-artifact_prefix={folder}/",
            "-seed=1", "-max_len=8192", "-timeout=20", "-rss_limit_mb=0", "-malloc_limit_mb=4096",
        ],
        target,
    )  # fmt: skip
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
