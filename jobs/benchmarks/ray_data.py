"""The peer: the same work in Ray Data, as its documentation advises for batch inference.

Read tasks hand tiles over the object store to a pool of actors that hold the model, and the
driver takes what the actors found batch by batch. As the contest's peer nothing is written, and of
each tile only its slide, class and confidence come back, which is less than we do. With a folder
for results it writes what we write, but for the most suspicious tiles: a row for each cell, and for
each slide its counts, brightness and focus.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks import checksum
from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.formats import open_archive
from cvm_batch.cpus import usable_cpus
from cvm_batch.screening.quality import measure

# Ray reads its settings on import.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

Columns = dict[str, Any]

#: For each CPU. Ray's own choice, one for each of up to 200 slides, is slower.
_READ_TASKS = 8


def count_tiles(
    slides: Sequence[Path], classes: int, results: Path | None = None
) -> tuple[Counter[int], float]:
    """Classify all tiles; how many each slide has, and the seconds from the start line.

    ``results``: a folder that cells and slides are written to. The actor takes no CPU, as one with
    a GPU does not: so all CPUs read.
    """
    with tempfile.TemporaryDirectory() as folder:
        start_line = Path(folder) / "ready"
        references = [{"slide": number, "uri": str(path)} for number, path in enumerate(slides)]
        tasks = min(len(slides), _READ_TASKS * usable_cpus())
        found = (
            ray.data.from_items(references, override_num_blocks=tasks)
            .map_batches(_read, fn_args=[start_line, results is not None], batch_size=1)
            .map_batches(
                _Classifier,
                fn_constructor_args=[classes, start_line, results is not None],
                batch_size=checksum.BATCH,
                compute=ray.data.ActorPoolStrategy(size=1),
                num_cpus=0,
            )
        )
        counts: Counter[int] = Counter()
        with _Results(results, len(slides), classes) if results else nullcontext() as written:
            for batch in found.iter_batches(batch_size=None):
                numbers, many = np.unique(batch["slide"], return_counts=True)
                counts.update(dict(zip(numbers.tolist(), many.tolist(), strict=True)))
                if written is not None:
                    written.add(batch)
        return counts, time.time() - start_line.stat().st_mtime


def start_ray() -> None:
    """A Ray on this machine, with the memory that Ray takes by itself."""
    ray.init(
        address="local",
        num_cpus=usable_cpus(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address="127.0.0.1",
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _read(batch: Columns, start_line: Path, with_all: bool) -> Iterator[Columns]:
    """Yields blocks of a chunk each: the tiles of a whole slide would overflow a block of Ray's.
    ``with_all``: with what else a row of the cells' table has.

    Begins when the actor is ready: start-up counts on neither side, and nothing is read in it.
    """
    while not start_line.exists():
        time.sleep(0.005)
    for number, uri in zip(batch["slide"], batch["uri"], strict=True):
        with closing(open_archive(SlideAddress(uri=str(uri)))) as archive:
            info = archive.info
            for start in range(0, info.tiles, info.chunk_tiles):
                stop = min(start + info.chunk_tiles, info.tiles)
                block = archive.read(start, stop)
                tiles = np.asarray(block.tiles)
                columns = {"slide": np.full(len(tiles), number), "tiles": tiles}
                yield columns | ({"index": block.index, "xy": block.xy} if with_all else {})


class _Classifier:
    """What the actors of the pool are."""

    def __init__(self, classes: int, start_line: Path, with_all: bool) -> None:
        self._classes = classes
        self._with_all = with_all
        start_line.touch()

    def __call__(self, batch: Columns) -> Columns:
        found = checksum.probabilities(batch["tiles"], self._classes)
        told = {
            "slide": batch["slide"],
            "class": found.argmax(axis=1),
            "confidence": found.max(axis=1),
        }
        if self._with_all:
            quality = measure(batch["tiles"])
            told |= {"index": batch["index"], "xy": batch["xy"], "probabilities": found}
            told |= {"brightness": quality.brightness, "focus": quality.focus}
        return told


class _Results:
    """Two Parquet files: a row for each cell, and one for each slide."""

    def __init__(self, folder: Path, slides: int, classes: int) -> None:
        self._folder = folder
        self._counts = np.zeros((slides, classes), np.int64)
        self._quality = np.zeros((slides, 2))
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Results:
        return self

    def add(self, batch: Columns) -> None:
        slide = batch["slide"]
        np.add.at(self._counts, (slide, batch["class"]), 1)
        quality = np.stack([batch["brightness"], batch["focus"]], axis=1)
        np.add.at(self._quality, slide, quality)
        named = ("slide", "index", "class", "confidence")
        table = pa.table(
            {name: batch[name] for name in named}
            | {"xy": _lists(batch["xy"]), "probabilities": _lists(batch["probabilities"])}
        )
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._folder / "cells.parquet", table.schema, compression="zstd"
            )
        self._writer.write_table(table)

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
        cells = np.maximum(1, self._counts.sum(axis=1))[:, np.newaxis]
        brightness, focus = (self._quality / cells).T
        rows = {"counts": _lists(self._counts), "brightness": brightness, "focus": focus}
        pq.write_table(pa.table(rows), self._folder / "slides.parquet", compression="zstd")


def _lists(rows: NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
