"""How fast slides are read, against their decoders alone on the same bytes and threads."""

from __future__ import annotations

import io
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.reporting import made_tiles, report
from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import SlideArchive
from cvm_batch.archives.formats import open_archive
from cvm_batch.archives.images.decoding import decode
from cvm_batch.archives.opening import PLAIN, OpenOptions
from cvm_batch.cpus import usable_cpus

_BLOCK = 256
_ROUNDS = 5
#: Side in level-0 pixels of the crops that are cut out of a whole slide.
_CROP_PX = 100


#: A piece of work for any thread; gives a number of tiles.
Work = Callable[[], int]


@dataclass(frozen=True)
class Contest:
    """One slide, and what is left of reading it when the archive around it is taken away."""

    name: str
    slide: Path
    bare: Sequence[Work]
    options: OpenOptions = PLAIN


@click.command()
@click.option("--tiles", default=20_000, show_default=True, help="Cells in each slide.")
@click.option("--cells", type=click.Path(path_type=Path), help="Folder of real crops.")
@click.option("--wsi", type=click.Path(path_type=Path), help="A real whole slide.")
@click.option("--threads", type=int, default=usable_cpus, help="Default: one per CPU.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def archives(tiles: int, cells: Path | None, wsi: Path | None, threads: int, as_json: bool) -> None:
    """Archives on disk -> tiles in memory, as a share of the decoder alone.

    Both read the same slide with the same threads, by turns; the share is the median over
    the rounds.
    """
    pixels = made_tiles(tiles, cells)
    figures: dict[str, Any] = {"tiles": tiles, "threads": threads}
    with tempfile.TemporaryDirectory() as name:
        for contest in contests(Path(name), pixels, wsi):
            figures |= _measured(contest, threads)
    report(figures, as_json)


def contests(folder: Path, pixels: NDArray[np.uint8], wsi: Path | None) -> Iterator[Contest]:
    yield _zarr(folder / "packed.zarr", pixels)
    for suffix in ("jpg", "png"):
        images = [_encoded(tile, suffix) for tile in pixels]
        yield _zip(folder / f"{suffix}.zip", images, suffix)
        yield _tar(folder / f"{suffix}.tar", images, suffix)
        yield _folder(folder / suffix, images, suffix)
    if wsi is not None:
        yield _whole_slide(folder / wsi.name, wsi, len(pixels))


def _measured(contest: Contest, threads: int) -> dict[str, Any]:
    shares, alone, read = [], [], []
    with ThreadPoolExecutor(threads) as pool:
        _speed(pool, contest.bare)
        for _ in range(_ROUNDS):
            alone.append(_speed(pool, contest.bare))
            with closing(
                open_archive(SlideAddress(uri=str(contest.slide)), contest.options)
            ) as archive:
                count = archive.info.tiles
                work = [partial(_read, archive, *span) for span in _spans(count)]
                archive.read(0, 1)
                read.append(_speed(pool, work))
            shares.append(read[-1] / alone[-1])
    return {
        f"{contest.name}: decoder alone, tiles/s": median(alone),
        f"{contest.name}: archive, tiles/s": median(read),
        f"{contest.name}: share": median(shares),
    }


def _speed(pool: ThreadPoolExecutor, work: Sequence[Work]) -> float:
    started = time.perf_counter()
    tiles: int = sum(pool.map(lambda piece: piece(), work))
    return tiles / (time.perf_counter() - started)


def _spans(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, _BLOCK):
        yield start, min(start + _BLOCK, count)


def _read(archive: SlideArchive, start: int, stop: int) -> int:
    return len(archive.read(start, stop))


def _zarr(path: Path, pixels: NDArray[np.uint8]) -> Contest:
    import zarr
    from numcodecs import Blosc  # type: ignore[import-untyped]
    from numcodecs.checksum32 import CRC32C  # type: ignore[import-untyped]
    from zarr.codecs import BloscCodec, Crc32cCodec

    group = zarr.open_group(path, mode="w")
    array = group.create_array(
        "tiles",
        shape=pixels.shape,
        chunks=(_BLOCK, *pixels.shape[1:]),
        dtype="uint8",
        compressors=[BloscCodec(cname="lz4", shuffle="bitshuffle", typesize=1), Crc32cCodec()],
    )
    array[:] = pixels
    chunks = [file.read_bytes() for file in sorted(path.glob("tiles/c/*/0/0/0"))]
    crc, blosc = CRC32C(location="end"), Blosc()
    tile_bytes = int(np.prod(pixels.shape[1:]))

    def piece(chunk: bytes) -> int:
        return len(blosc.decode(crc.decode(chunk))) // tile_bytes

    return Contest("zarr", path, [partial(piece, chunk) for chunk in chunks])


def _encoded(tile: NDArray[np.uint8], suffix: str) -> bytes:
    file = io.BytesIO()
    settings = {"quality": 90} if suffix == "jpg" else {}
    Image.fromarray(tile).save(file, "JPEG" if suffix == "jpg" else "PNG", **settings)
    return file.getvalue()


def _decoding(images: Sequence[bytes]) -> list[Work]:
    def piece(start: int, stop: int) -> int:
        return len([decode(image, "memory") for image in images[start:stop]])

    return [partial(piece, *span) for span in _spans(len(images))]


def _zip(path: Path, images: Sequence[bytes], suffix: str) -> Contest:
    with zipfile.ZipFile(path, "w") as packed:
        for number, image in enumerate(images):
            packed.writestr(f"{number:07d}.{suffix}", image)
    return Contest(f"zip of {suffix}", path, _decoding(images))


def _tar(path: Path, images: Sequence[bytes], suffix: str) -> Contest:
    with tarfile.open(path, "w") as packed:
        for number, image in enumerate(images):
            info = tarfile.TarInfo(f"{number:07d}.{suffix}")
            info.size = len(image)
            packed.addfile(info, io.BytesIO(image))
    return Contest(f"tar of {suffix}", path, _decoding(images))


def _folder(path: Path, images: Sequence[bytes], suffix: str) -> Contest:
    path.mkdir()
    for number, image in enumerate(images):
        (path / f"{number:07d}.{suffix}").write_bytes(image)
    return Contest(f"folder of {suffix}", path, _decoding(images))


def _whole_slide(link: Path, slide: Path, cells: int) -> Contest:
    """OpenSlide alone, a handle for each thread, on the same crops in the same order."""
    import openslide

    from cvm_batch.archives.wsi.regions import WholeSlide

    link.symlink_to(slide.absolute())
    with closing(WholeSlide(link)) as image:
        size, mpp = image.size, image.mpp or (0.5, 0.5)
    xy = np.random.default_rng(0).uniform(_CROP_PX / 2, np.array(size) - _CROP_PX / 2, (cells, 2))
    table = link.with_name(f"{link.stem}.cells.csv")
    np.savetxt(table, xy, delimiter=",", header="x,y", comments="", fmt="%.1f")
    options = OpenOptions(tile_um=_CROP_PX * mpp[0], mpp=(mpp[0], mpp[0]), least_px=_CROP_PX)
    with closing(open_archive(SlideAddress(uri=str(link)), options)) as archive:
        ordered = archive.read(0, cells).xy
    assert ordered is not None
    corners = np.rint(ordered - _CROP_PX / 2).astype(int).tolist()
    handles = threading.local()

    def piece(start: int, stop: int) -> int:
        if not hasattr(handles, "slide"):
            handles.slide = openslide.OpenSlide(slide)
        for corner in corners[start:stop]:
            crop = handles.slide.read_region(tuple(corner), 0, (_CROP_PX, _CROP_PX))
            np.asarray(crop.convert("RGB"))
        return stop - start

    return Contest("whole slide", link, [partial(piece, *span) for span in _spans(cells)], options)
