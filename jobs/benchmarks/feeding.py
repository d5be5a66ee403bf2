"""Our side of the feeding contest: real runs with the checksum for a model, and bare loops."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import ray
from numpy.typing import NDArray

from benchmarks import checksum
from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.formats import open_archive
from cvm_batch.model.backends.choosing import Backend
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.engine import Classified
from cvm_batch.model.precision import Precision
from cvm_batch.model.timm_import import import_timm
from cvm_batch.screening import ray_executor, replica
from cvm_batch.screening.ray_actor import ReplicaActor
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import DecodeOn, ExecutorKind, Settings
from cvm_batch.screening.work import ReplicaInfo, ReplicaSpec
from cvm_batch.tiles import Tiles

#: Batches at once, as on a GPU.
_LANES = 2


@dataclass(frozen=True)
class Turn:
    """One pass over all tiles."""

    tiles: int
    seconds: float
    """From where all processes are ready."""
    seconds_whole: float
    """With all that comes before and after that."""


# Bare loops


def bare_loop(slides: Sequence[Path], threads: int) -> Turn:
    """Open each slide, read its tiles chunk by chunk, and drop them: our reader."""
    return _loop(_read, slides, threads)


def zarr_loop(slides: Sequence[Path]) -> Turn:
    """The same in one thread with zarr's own reading."""
    import zarr

    with zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1}):
        return _loop(_read_with_zarr, slides, 1)


def _loop(read: Any, slides: Sequence[Path], threads: int) -> Turn:
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        tiles = sum(pool.map(read, slides))
    seconds = time.perf_counter() - started
    return Turn(tiles, seconds, seconds)


def _read(slide: Path) -> int:
    with closing(open_archive(SlideAddress(uri=str(slide)))) as archive:
        info = archive.info
        return sum(len(archive.read(*span)) for span in chunks(info.tiles, info.chunk_tiles))


def _read_with_zarr(slide: Path) -> int:
    import zarr

    array: Any = zarr.open_group(slide, mode="r")["tiles"]
    return sum(len(array[start:stop]) for start, stop in chunks(array.shape[0], array.chunks[0]))


def chunks(tiles: int, step: int) -> Iterator[tuple[int, int]]:
    """The tiles [start, stop) of each chunk."""
    for start in range(0, tiles, step):
        yield start, min(start + step, tiles)


# Real runs


class ChecksumEngine:
    """An `InferenceEngine` without a model."""

    precision = Precision.FP32
    backend = "checksum"
    sentinel_difference = 0.0

    def __init__(self, classes: int, batch_size: int) -> None:
        self.batch_size = batch_size
        self.lanes = _LANES
        self._classes = classes
        self._pool = ThreadPoolExecutor(_LANES, thread_name_prefix="lane")

    def start(self, tiles: Tiles) -> Future[Classified]:
        return self._pool.submit(self._classify, tiles)

    def probabilities(self, tiles: Tiles) -> NDArray[np.float32]:
        return checksum.probabilities(np.asarray(tiles), self._classes)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _classify(self, tiles: Tiles) -> Classified:
        started = time.perf_counter()
        return Classified(self.probabilities(tiles), time.perf_counter() - started)


def start_checksum(bundle: Bundle, *, batch_size: int | None, **_: Any) -> ChecksumEngine:
    """In place of `cvm_batch.model.backends.starting.start_engine`."""
    # A real engine needs timm before it serves. A replica imports it in the background from its
    # beginning on, and would classify beside that here.
    import_timm()
    return ChecksumEngine(len(bundle.spec.class_names), batch_size or checksum.BATCH)


class ChecksumActor(ReplicaActor):
    """A replica in a process of its own, with the checksum for a model."""

    def start(self, spec: ReplicaSpec, decode_on: DecodeOn) -> ReplicaInfo:
        with patch.object(replica, "start_engine", start_checksum):
            return super().start(spec, decode_on)


@contextmanager
def _checksum_for_a_model() -> Iterator[None]:
    """Replicas as they are, in this process and as Ray's actors, but for what they start."""
    for module in (checksum, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)
    engine = patch.object(replica, "start_engine", start_checksum)
    with engine, patch.object(ray_executor, "ReplicaActor", ChecksumActor):
        yield


def real_run(slides: Path, bundle: Bundle, replicas: int | None) -> Turn:
    """A run over the slides in a folder, all of it but the model: plan, leases, committed rows.

    ``replicas``: of Ray; None runs in this process.
    """
    with tempfile.TemporaryDirectory(dir=slides.parent) as out:
        settings = Settings(
            inputs=(str(slides),),
            model=str(bundle.path),
            out=Path(out),
            precision=Precision.FP32,
            backend=Backend.EAGER,
            executor=ExecutorKind.RAY if replicas else ExecutorKind.LOCAL,
            replicas=replicas,
        )
        started = time.perf_counter()
        with _checksum_for_a_model():
            summary = run(settings)
        whole = time.perf_counter() - started
    if summary.exit_code:
        raise click.ClickException(f"the run did not classify everything: {summary.to_json()}")
    return Turn(summary.cells, summary.seconds_classifying, whole)
