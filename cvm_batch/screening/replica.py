"""A replica: one model on one device, which opens archives itself and streams them."""

from __future__ import annotations

import platform
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import torch

from cvm_batch import signs
from cvm_batch.archives.archive import SlideArchive
from cvm_batch.errors import BundleDigestError, RunAbortedError
from cvm_batch.memory import keep_freed_memory
from cvm_batch.model.backends.starting import start_engine
from cvm_batch.model.bundle import load_bundle
from cvm_batch.model.engine import Classified, default_device
from cvm_batch.results.cells import PartFiles
from cvm_batch.results.folder import OUTAGE_SECONDS, ResultsFolder
from cvm_batch.screening.feed import Batch, ReadAhead, batches
from cvm_batch.screening.finishing import Finishing
from cvm_batch.screening.shelf import Shelf, opener
from cvm_batch.screening.tally import PartTally
from cvm_batch.screening.versions import versions
from cvm_batch.screening.work import Lease, PartOutcome, ReplicaInfo, ReplicaSpec, SlideSource

#: Batches handed to each lane of the engine ahead of the one being counted: one runs, one
#: waits.
_BATCHES_AHEAD = 2
#: Threads that write and flush what parts found.
_FINISHERS = 4


class Replica:
    """Classifies leases. ``classify`` may be called from two threads at once: while one
    lease is on the device, the next one's tiles are being read."""

    def __init__(
        self,
        spec: ReplicaSpec,
        *,
        device: torch.device | None = None,
        open_slide: Callable[[SlideSource], SlideArchive] | None = None,
    ) -> None:
        """``open_slide``: how slides are opened, by default as files of this node.

        Raises BundleError, also where the device fails the bundle's sentinels.
        """
        keep_freed_memory()
        bundle = load_bundle(spec.bundle)
        if bundle.digest != spec.bundle_digest:
            raise BundleDigestError(
                f"The bundle at {spec.bundle} is not the one this run was planned with. "
                "Do not exchange bundles in place: write a new folder, and submit again."
            )
        self._spec = spec
        self._bundle = bundle
        self._readers = spec.readers or spec.threads
        self._decoders = ThreadPoolExecutor(self._readers, thread_name_prefix="decode")
        self._finishers = ThreadPoolExecutor(_FINISHERS, thread_name_prefix="finish")
        self._shelf = Shelf(open_slide or opener(spec.opening))
        self._turn = threading.Lock()
        self._closed = threading.Event()
        self._tiles_done = 0
        self._counting = threading.Lock()
        self._device_name = _name_of(device or default_device())
        warming = self._finishers.submit(_warm_up)
        self._engine = start_engine(
            bundle,
            device=device,
            precision=spec.precision,
            backend=spec.backend,
            batch_size=spec.batch_size,
            threads=spec.threads,
        )
        warming.result()
        results = ResultsFolder(spec.results, outage_seconds=OUTAGE_SECONDS)
        self._files = PartFiles(results, spec.run, bundle.spec.class_names)
        primary = bundle.spec.groups.get(bundle.spec.primary_group or "", ())
        self._primary = [bundle.spec.class_names.index(name) for name in primary]

    def info(self) -> ReplicaInfo:
        return ReplicaInfo(
            device=self._device_name,
            precision=str(self._engine.precision),
            backend=self._engine.backend,
            batch_size=self._engine.batch_size,
            lanes=self._engine.lanes,
            sentinel_difference=self._engine.sentinel_difference,
            # With its build, 2.15.0+cu132; and a string, for which the driver loads no PyTorch.
            versions={**versions(), "torch": str(torch.__version__)},
            node=platform.node(),
        )

    def classify(self, lease: Lease) -> list[PartOutcome]:
        """One outcome per part, in the lease's order.

        What is wrong with a slide is in its outcome. Raises CommitError where results
        cannot be written, and whatever the device raises.
        """
        classes = len(self._bundle.spec.class_names)
        tallies = [PartTally(part, classes, self._primary) for part in lease.parts]
        ahead = self._readers + 2
        blocks = ReadAhead(tallies, self._shelf, self._decoders, ahead)
        running: deque[tuple[Batch, Future[Classified]]] = deque()
        finishing = Finishing(lease.number, self._files, self._finishers)
        classified = 0
        try:
            with self._turn:
                for batch in batches(blocks, self._engine.batch_size):
                    if self._closed.is_set():
                        raise RunAbortedError("The replica was closed while a lease was running.")
                    running.append((batch, self._engine.start(batch.tiles)))
                    if len(running) > _BATCHES_AHEAD * self._engine.lanes:
                        classified += self._count(*running.popleft(), finishing)
            # The next lease's first batch may follow the last one without a gap.
            while running:
                classified += self._count(*running.popleft(), finishing)
        finally:
            blocks.close()
        for tally in tallies:
            finishing.add(tally)  # those that failed, or whose last tiles were unreadable
        self._note_done(lease.tiles - classified)  # of parts that failed, or unreadable
        outcomes = finishing.outcomes()
        return [outcomes[tally] for tally in tallies]

    @property
    def tiles_done(self) -> int:
        """Tiles that it has classified or given up since it began to serve: all of every lease
        that it has answered."""
        return self._tiles_done

    @property
    def signs(self) -> int:
        """Grows with all else that this process gets done: bytes hashed, blocks read, archives
        opened, parts ended."""
        return signs.seen()

    def _count(self, batch: Batch, result: Future[Classified], finishing: Finishing) -> int:
        """Returns the number of its tiles."""
        found = result.result()
        start = 0
        for tally, tiles in batch.owners:
            seconds = found.seconds * len(tiles) / len(batch.tiles)
            tally.seconds += seconds
            tally.device_seconds += seconds
            tally.add(tiles, found.probabilities[start : start + len(tiles)])
            start += len(tiles)
            if tally.complete:
                finishing.add(tally)
        self._note_done(start)
        return start

    def _note_done(self, tiles: int) -> None:
        with self._counting:  # two leases are being classified
            self._tiles_done += tiles

    def close(self) -> None:
        """Give up what runs, at the next batch. Calling it twice is harmless."""
        self._closed.set()
        self._decoders.shutdown(cancel_futures=True)
        self._finishers.shutdown(cancel_futures=True)
        self._engine.close()
        self._shelf.close()


def _warm_up() -> None:
    """Beside the model's start: pyarrow imports pandas, where that is there, with the first array
    that it takes from numpy, which would be a second of the first lease."""
    pa.array(np.zeros(1))


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU"
