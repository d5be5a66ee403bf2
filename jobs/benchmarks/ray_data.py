"""The peer: the same work in Ray Data, as its documentation advises for batch inference.

Read tasks hand tiles over the object store to a pool of actors that hold the model, and the
driver takes what the actors found batch by batch. Nothing is written, and of each tile only its
slide, class and confidence come back, which is less than we do.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import checksum
from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.formats import open_archive
from cvm_batch.cpus import usable_cpus

# Ray reads its settings on import.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

Columns = dict[str, Any]

#: For each CPU. Ray's own choice, one for each of up to 200 slides, is slower.
_READ_TASKS = 8


def count_tiles(slides: Sequence[Path], classes: int) -> tuple[Counter[int], float]:
    """Classify all tiles; how many each slide has, and the seconds from the start line.

    The actor takes no CPU, as one with a GPU does not: so all CPUs read.
    """
    with tempfile.TemporaryDirectory() as folder:
        start_line = Path(folder) / "ready"
        references = [{"slide": number, "uri": str(path)} for number, path in enumerate(slides)]
        tasks = min(len(slides), _READ_TASKS * usable_cpus())
        results = (
            ray.data.from_items(references, override_num_blocks=tasks)
            .map_batches(_read, fn_args=[start_line], batch_size=1)
            .map_batches(
                _Classifier,
                fn_constructor_args=[classes, start_line],
                batch_size=checksum.BATCH,
                compute=ray.data.ActorPoolStrategy(size=1),
                num_cpus=0,
            )
        )
        counts: Counter[int] = Counter()
        for batch in results.iter_batches(batch_size=None):
            numbers, found = np.unique(batch["slide"], return_counts=True)
            counts.update(dict(zip(numbers.tolist(), found.tolist(), strict=True)))
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


def _read(batch: Columns, start_line: Path) -> Iterator[Columns]:
    """Yields blocks of a chunk each: the tiles of a whole slide would overflow a block of Ray's.

    Begins when the actor is ready: start-up counts on neither side, and nothing is read in it.
    """
    while not start_line.exists():
        time.sleep(0.005)
    for number, uri in zip(batch["slide"], batch["uri"], strict=True):
        with closing(open_archive(SlideAddress(uri=str(uri)))) as archive:
            info = archive.info
            for start in range(0, info.tiles, info.chunk_tiles):
                stop = min(start + info.chunk_tiles, info.tiles)
                tiles = np.asarray(archive.read(start, stop).tiles)
                yield {"slide": np.full(len(tiles), number), "tiles": tiles}


class _Classifier:
    """What the actors of the pool are."""

    def __init__(self, classes: int, start_line: Path) -> None:
        self._classes = classes
        start_line.touch()

    def __call__(self, batch: Columns) -> Columns:
        found = checksum.probabilities(batch["tiles"], self._classes)
        return {
            "slide": batch["slide"],
            "class": found.argmax(axis=1),
            "confidence": found.max(axis=1),
        }
